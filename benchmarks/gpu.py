"""What a GPU makes of updates and predictions: eager, as CUDA graphs, compiled. One call, under ten minutes, on any machine
with a GPU; where there is none it says so and exits with status 2.

    python -m benchmarks.gpu

First the tests that need a GPU are run: captured updates against eager ones. Then everything is timed in turn, round by
round, with the GPU idle before and after; a figure is the median over rounds, and so is its ratio to SB3's SAC of the same
round. What there is no time for is left out, and said to be. Observations of 17 numbers, actions of 6, batches of 256,
networks of 2 × 256.
"""

import argparse
import csv
import io
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import SAC

from benchmarks.files import write_text
from benchmarks.speed_models import Noise
from sb3_energy import DeviceReplayBuffer, EnergySAC

STEPS = (0, 1, 5, 10, 20)
PREDICTIONS = (1, 256, 4096)
CHECKS = ("tests/fast_updates/test_on_a_gpu.py", "tests/fast_updates/test_device_buffer.py")
CHECK_SECONDS = 150.0
COLUMNS = ("algorithm", "steps", "capture", "device_buffer", "what", "milliseconds", "ratio_to_sac", "rounds", "note")
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Variant:
    """
    :param steps: of the refinement, 0 for none; ``None``: SB3's SAC
    :param capture: EnergySAC's keyword
    :param device_buffer: whether transitions are kept on the device
    """

    steps: int | None
    capture: str | None = None
    device_buffer: bool = False
    note: str = ""
    model: SAC | None = None
    times: dict[str, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "SAC" if self.steps is None else f"EnergySAC, K = {self.steps}"

    def build(self, device: str, quick: bool) -> None:
        """
        Make the model and fill its buffer.

        :param device: where
        :param quick: whether with small networks
        """
        policy_kwargs: dict[str, Any] = dict(net_arch=[16]) if quick else {}
        kwargs: dict[str, Any] = {}
        if self.steps is not None:
            policy_kwargs |= dict(refiner="none") if self.steps == 0 else dict(refiner_steps=self.steps)
            kwargs |= dict(capture=self.capture, refine_target=self.steps > 0, refine_exploration=False)
        kwargs |= dict(replay_buffer_class=DeviceReplayBuffer if self.device_buffer else None, policy_kwargs=policy_kwargs)
        algorithm = SAC if self.steps is None else EnergySAC
        model = algorithm("MlpPolicy", Noise(), learning_starts=1000, buffer_size=1000, device=device, seed=0, **kwargs)
        self.model = model.learn(300)

    def updates(self, n: int, batch_size: int) -> None:
        assert self.model is not None
        self.model.train(n, batch_size)

    def predictions(self, n: int, batch_size: int) -> None:
        assert self.model is not None
        obs = np.random.default_rng(0).uniform(-1.0, 1.0, (batch_size, 17)).astype(np.float32)
        for _ in range(n):
            self.model.predict(obs)


def variants(capture: str | None, device_buffers: Sequence[bool], quick: bool) -> list[Variant]:
    """
    :param capture: EnergySAC's keyword
    :param device_buffers: without, with, or both
    :param quick: whether few
    :return: one for each number of steps for which there is something to capture
    """
    steps = [k for k in ((0, 1) if quick else STEPS) if k > 0 or capture != "compile"]
    return [Variant(k, capture, device_buffer) for k in steps for device_buffer in device_buffers]


def synchronize(device: str) -> None:
    """
    Wait until the device has nothing to do.

    :param device: of the models
    """
    if device.startswith("cuda"):
        th.cuda.synchronize()


def milliseconds(work: Callable[[int], None], n: int, device: str) -> float:
    """
    :param work: is given how often
    :param n: how often
    :param device: which is idle before and after
    :return: of one
    """
    synchronize(device)
    start = time.perf_counter()
    work(n)
    synchronize(device)
    return (time.perf_counter() - start) / n * 1e3


def ready(group: Sequence[Variant], device: str, quick: bool, until: float) -> None:
    """
    Build models and do what is only done once: warm-ups, recordings, compilations. Who fails or comes too late has a note.

    :param group: what is to be timed
    :param device: where
    :param quick: whether small
    :param until: when no other one is begun
    """
    slowest = 0.0
    for variant in group:
        start = time.perf_counter()
        if start + (2.0 * slowest if variant.capture == "compile" else 0.0) > until:
            variant.note = "left out: no time"
            continue
        try:
            variant.build(device, quick)
            variant.updates(6, 32 if quick else 256)
            if variant.capture == "compile":
                slowest = time.perf_counter() - start
        except Exception as error:  # a table with a hole is worth more than none
            fail(variant, error)
        print(f"{variant.name}, {variant.capture}: {variant.note or f'{time.perf_counter() - start:.1f} s'}", flush=True)


def fail(variant: Variant, error: Exception) -> None:
    """
    :param variant: which is not timed (any more)
    :param error: why
    """
    lines = str(error).splitlines() or [""]
    variant.note, variant.model, variant.times = f"failed: {type(error).__name__}: {lines[0]}".replace("|", "/"), None, {}
    print(f"{variant.name}, {variant.capture}: {variant.note}", flush=True)


def time_group(group: Sequence[Variant], device: str, quick: bool, until: float) -> None:
    """
    Time updates and predictions in turn, at least two rounds and at most fifteen.

    :param group: SAC first
    :param device: where
    :param quick: whether few
    :param until: when no further round is begun
    """
    rounds = 2 if quick else 15
    batch_size, n_updates, n_predictions = (32, 2, 1) if quick else (256, 20, 10)
    works: dict[str, Callable[[Variant], float]] = {
        "update": lambda variant: milliseconds(lambda n: variant.updates(n, batch_size), n_updates, device)
    }
    for size in PREDICTIONS[:2] if quick else PREDICTIONS:
        works[f"predict {size}"] = lambda variant, size=size: milliseconds(
            lambda n: variant.predictions(n, size), n_predictions, device
        )
    for i in range(rounds):
        if i >= 2 and time.perf_counter() > until:
            break
        for what, work in works.items():
            for variant in group:
                # Recorded are updates alone, and compiled code is made again for each size of a batch
                if variant.model is None or (what != "update" and (variant.capture is not None or variant.device_buffer)):
                    continue
                try:
                    elapsed = work(variant)
                except Exception as error:
                    fail(variant, error)
                    continue
                if i > 0 or rounds == 2:  # the first round warms up what the others find warm
                    variant.times.setdefault(what, []).append(elapsed)


def rows_of(groups: Sequence[Sequence[Variant]]) -> list[dict[str, Any]]:
    """
    :param groups: that have been timed, SAC first in each
    :return: a line of the table for each variant and what was timed of it
    """
    rows = []
    for group in groups:
        for variant in group:
            common = dict(
                algorithm="SAC" if variant.steps is None else "EnergySAC",
                steps="" if variant.steps is None else variant.steps,
                capture=variant.capture or "",
                device_buffer=variant.device_buffer,
            )
            if not variant.times:
                rows.append(dict.fromkeys(COLUMNS, "") | common | dict(what="update", note=variant.note))
            for what, times in variant.times.items():
                ratio = np.median(np.array(times) / np.array(group[0].times[what]))
                found = dict(milliseconds=f"{np.median(times):.3f}", ratio_to_sac=f"{ratio:.2f}", rounds=len(times))
                rows.append(dict.fromkeys(COLUMNS, "") | common | dict(what=what) | found)
    return rows


def page(rows: Sequence[dict[str, Any]], header: str) -> str:
    """
    :param rows: of :func:`rows_of`
    :param header: what was measured where
    :return: a markdown page
    """
    lines = [header, "", "| | K | capture | buffer on the device | ms | / SAC's |", "|---|---|---|---|---|---|"]
    for row in rows:
        what = f"{row['algorithm']}: {row['what']}"
        figures = row["note"] or f"{row['milliseconds']} | {row['ratio_to_sac']}"
        if row["note"]:
            figures += " |"
        buffer = "yes" if row["device_buffer"] else "no"
        lines.append(f"| {what} | {row['steps']} | {row['capture'] or 'none'} | {buffer} | {figures} |")
    return "\n".join(lines) + "\n"


def write(output: Path, rows: Sequence[dict[str, Any]], header: str) -> None:
    """
    :param output: a folder
    :param rows: of :func:`rows_of`
    :param header: of the page
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(output / "gpu.csv", text.getvalue())
    write_text(output / "gpu.md", page(rows, header))


def checks() -> tuple[bool, str]:
    """
    :return: whether the tests that need a GPU pass, and what they say
    """
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *CHECKS]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=CHECK_SECONDS)
    except subprocess.TimeoutExpired:
        return False, f"unfinished after {CHECK_SECONDS:.0f} s"
    print(done.stdout[-3000:], done.stderr[-3000:], sep="\n", flush=True)
    return done.returncode == 0, (done.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")


def main(argv: Sequence[str] | None = None) -> int:
    """
    :param argv: the command line (``None``: of this process)
    :return: 0; 1 if a check failed; 2 without a GPU
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help='"cpu" times what is eager alone')
    parser.add_argument("--minutes", type=float, default=9.0, help="that it may take, about")
    parser.add_argument("--quick", action="store_true", help="small networks and few rounds, to see whether it runs")
    parser.add_argument("--output", type=Path, default=Path("results/gpu"))
    args = parser.parse_args(argv)
    on_gpu = args.device.startswith("cuda")
    if on_gpu and not th.cuda.is_available():
        print("benchmarks.gpu needs a GPU that torch can use, and torch.cuda.is_available() is False here", file=sys.stderr)
        return 2
    start = time.perf_counter()
    end = start + 60.0 * args.minutes
    passed, said = checks() if on_gpu and not args.quick else (True, "not run")
    device = th.cuda.get_device_name() if on_gpu else platform.processor() or "CPU"
    header = f"{device}, torch {th.__version__}, one batch of 256 an update. Checks of captured updates: {said}."
    plain = [Variant(None), *variants(None, (False, True) if not args.quick else (True,), args.quick)]
    groups = [plain]
    if on_gpu:
        plain += variants("cuda_graph", (False, True), args.quick)
    ready(plain, args.device, args.quick, end)
    time_group(plain, args.device, args.quick, time.perf_counter() + 0.5 * (end - time.perf_counter()))
    write(args.output, rows_of(groups), header)
    if on_gpu:
        compiled = [Variant(None), *variants("compile", (True,), args.quick)]
        groups.append(compiled)
        ready(compiled, args.device, args.quick, end - 30.0)
        time_group(compiled, args.device, args.quick, end)
        write(args.output, rows_of(groups), header)
    print(page(rows_of(groups), header) + f"\n{time.perf_counter() - start:.0f} s", flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
