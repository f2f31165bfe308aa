"""
The gallery of refiners: how far from the truth, at what cost.

``python -m benchmarks.samplers`` writes a table (CSV and Markdown) and one page of pictures.
"""

import argparse
import csv
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch as th

from benchmarks.files import write_text
from benchmarks.sampler_targets import CellProbabilities, targets
from benchmarks.update_cost import Noise
from sb3_energy import EnergySAC
from sb3_energy.common.proposals import Gaussian, draw_proposals
from sb3_energy.common.refinement import Refinement
from sb3_energy.common.refinement_arguments import make_refinement
from sb3_energy.energies import log_tanh_jacobian, squashed
from sb3_energy.entropy import soft_value
from sb3_energy.refiners import REFINERS
from sb3_energy.types import EnergyFn

CHUNK = 5_000
BATCHES = (1, 256)
N_PROPOSALS = (16, 64, 256)
COLUMNS = ("target", "refiner", "steps", "particles", "total_variation", "energies_per_state", "gradients_per_state")


class Counter(NamedTuple):
    """
    An energy that counts its evaluations.

    :param energy: what is evaluated
    :param counts: evaluations without and with a gradient, of one particle each
    """

    energy: EnergyFn
    counts: list[int]

    def __call__(self, actions: th.Tensor) -> th.Tensor:
        self.counts[int(th.is_grad_enabled() and actions.requires_grad)] += actions.shape[0] * actions.shape[1]
        return self.energy(actions)


def refinements(more: int) -> dict[str, Refinement]:
    """
    :param more: factor of the number of steps
    :return: every refiner with its defaults, those that converge with more steps too, and two with reflecting walls
    """
    made = {}
    for name, cls in REFINERS.items():
        for factor in (1, more) if cls.exact and cls.max_steps is None else (1,):
            steps = cls.default_steps * factor
            label = name if factor == 1 else f"{name}, {steps} steps"
            made[label] = make_refinement(name, None, steps, None, "mixture", True, None)
        if name in ("langevin", "mala"):
            made[f"{name}, reflect"] = make_refinement(name, None, None, None, "mixture", True, None, box="reflect")
    return made


def fitted_base(energy: EnergyFn, n_updates: int = 1000) -> Gaussian:
    """
    The Gaussian that SAC's actor loss fits to the target: it settles on one mode, with about that mode's width.

    :param energy: the target, at a temperature of 1
    :param n_updates: of Adam
    :return: mean and standard deviation ``(1, 2)``, before the squash
    """
    generator, target = th.Generator().manual_seed(0), squashed(energy)
    mean, log_std = th.tensor([[0.3, 0.1]], requires_grad=True), th.full((1, 2), -1.0, requires_grad=True)
    optimizer = th.optim.Adam([mean, log_std], lr=0.02)
    for _ in range(n_updates):
        particles = mean + log_std.exp() * th.randn((256, 2), generator=generator)
        loss = target(particles.unsqueeze(0)).mean() - log_std.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Gaussian(mean.detach(), log_std.detach().exp())


def draws_of(refinement: Refinement, energy: EnergyFn, fitted: Gaussian, n: int, seed: int) -> th.Tensor:
    """
    :param refinement: as a policy has it
    :param energy: the target, at a temperature of 1
    :param fitted: the base, ``(1, 2)``
    :param n: how many draws, each for an observation of its own
    :param seed: of the noise
    :return: ``(n, 2)`` on the box
    """
    generator, one, found = th.Generator().manual_seed(seed), th.ones(()), []
    for start in range(0, n, CHUNK):
        base = Gaussian(*(part.repeat(min(CHUNK, n - start), 1) for part in fitted))
        if refinement.is_identity:
            found.append(base.mean + base.std * th.randn(base.mean.shape, generator=generator))
        else:
            found.append(refinement.sample(base, energy, one, generator))
    return th.tanh(th.cat(found))


def accuracy(n_draws: int, more: int) -> tuple[list[dict[str, Any]], dict[str, dict[str, th.Tensor]]]:
    """
    :param n_draws: for each target and refiner
    :param more: factor of the number of steps for refiners that converge
    :return: rows of the table, and some draws for the picture
    """
    rows, samples = [], {}
    for target, energy in targets().items():
        cells = CellProbabilities(energy)
        exact = cells.exact_draws(n_draws, th.Generator().manual_seed(1))
        rows.append(dict(target=target, refiner="exact draws", total_variation=cells.total_variation(exact)))
        samples[target] = {"exact draws": exact[:400]}
        fitted = fitted_base(energy)
        for label, refinement in refinements(more).items():
            counter = Counter(energy, [0, 0])
            draws = draws_of(refinement, counter, fitted, n_draws, seed=2)
            samples[target][label] = draws[:400]
            shape = dict(steps=refinement.n_steps, particles=refinement.n_particles)
            costs = dict(energies_per_state=counter.counts[0] / n_draws, gradients_per_state=counter.counts[1] / n_draws)
            rows.append(dict(target=target, refiner=label, **shape, total_variation=cells.total_variation(draws), **costs))
        print(f"drawn: {target}", flush=True)
    return rows, samples


def entropy_errors(repetitions: int) -> dict[str, dict[int, float]]:
    """
    :param repetitions: over which the estimate is averaged
    :return: target -> number of proposals -> error of the soft value's entropy, in nats
    """
    errors: dict[str, dict[int, float]] = {}
    for target, energy in targets().items():
        truth, errors[target] = CellProbabilities(energy).entropy, {}
        base = Gaussian(*(part.repeat(repetitions, 1) for part in fitted_base(energy)))
        for n in N_PROPOSALS:
            particles, log_prob = draw_proposals(base, n, 0.5, th.Generator().manual_seed(0))
            estimate = soft_value(energy(th.tanh(particles)), log_prob - log_tanh_jacobian(particles))
            errors[target][n] = float(estimate.entropy.mean()) - truth
    return errors


def relative_times(rounds: int) -> dict[str, dict[int, float]]:
    """
    CPU time of ``policy.predict`` over that of ``refiner="none"``, on 17 observations, 6 actions and networks of 2 × 256.

    :param rounds: the median over which is taken, each times all refiners in turn
    :return: refiner -> batch -> ratio
    """
    models = {name: EnergySAC("MlpPolicy", Noise(), device="cpu", policy_kwargs=dict(refiner=name)) for name in REFINERS}
    ratios: dict[str, dict[int, float]] = {name: {} for name in models}
    for batch in BATCHES:
        obs = np.random.default_rng(0).uniform(-1.0, 1.0, (batch, 17)).astype(np.float32)
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(rounds):
            for name, model in models.items():
                start = time.process_time()
                model.policy.predict(obs)
                seconds[name].append(time.process_time() - start)
        for name in models:
            ratios[name][batch] = float(np.median(np.array(seconds[name]) / np.median(seconds["none"])))
    return ratios


def markdown(rows: Sequence[dict[str, Any]], times: dict[str, dict[int, float]], errors: dict[str, dict[int, float]]) -> str:
    """
    :param rows: of :func:`accuracy`
    :param times: of :func:`relative_times`
    :param errors: of :func:`entropy_errors`
    :return: the tables
    """
    names = list(errors)
    by_refiner: dict[str, dict[str, Any]] = {}
    for row in rows:
        by_refiner.setdefault(row["refiner"], {})[row["target"]] = row
    lines = ["| refiner | " + " | ".join(names) + " | energies | gradients | time, batch 1 | time, batch 256 |"]
    lines += ["|---" * (len(names) + 5) + "|"]
    for refiner, found in by_refiner.items():
        cells = [f"{found[name]['total_variation']:.3f}" for name in names]
        costs = [f"{found[names[0]].get(key, 0.0):g}" for key in COLUMNS[-2:]] if refiner != "exact draws" else ["", ""]
        ratios = [f"{times[refiner][batch]:.1f}" for batch in BATCHES] if refiner in times else ["", ""]
        lines.append(f"| {refiner} | " + " | ".join(cells + costs + ratios) + " |")
    lines += ["", "| entropy's error, nats | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for n in N_PROPOSALS:
        lines.append(f"| soft value, {n} proposals | " + " | ".join(f"{errors[name][n]:+.3f}" for name in names) + " |")
    python = platform.python_version()
    lines += [
        "",
        f"{platform.machine()}, one thread, Python {python}, torch {version('torch')}, sb3-energy {version('sb3-energy')}.",
    ]
    return "\n".join(lines) + "\n"


def draw_page(samples: dict[str, dict[str, th.Tensor]], output: Path) -> None:
    """
    :param samples: target -> refiner -> ``(n, 2)`` draws
    :param output: the PNG to write
    """
    energies, columns = targets(), list(next(iter(samples.values())))
    figure, axes = plt.subplots(
        len(samples), len(columns), figsize=(1.65 * len(columns), 1.75 * len(samples)), layout="constrained", squeeze=False
    )
    for line, (target, found) in zip(axes, samples.items(), strict=True):
        density = CellProbabilities(energies[target]).fine.T.numpy()
        for cell, name in zip(line, columns, strict=True):
            cell.imshow(density, origin="lower", extent=(-1, 1, -1, 1), cmap="Blues", vmin=0.0, vmax=1.6 * density.max())
            cell.scatter(*found[name].T.numpy(), s=1.2, color="#b3202c", linewidths=0.0)
            cell.set(xlim=(-1, 1), ylim=(-1, 1), xticks=[], yticks=[])
        line[0].set_ylabel(target.replace(", ", "\n"), fontsize=8)
    for cell, name in zip(axes[0], columns, strict=True):
        cell.set_title(name.replace(", ", "\n").replace("_", "\n"), fontsize=8)
    figure.savefig(output, dpi=80)
    plt.close(figure)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """
    :param argv: the command line's arguments
    :return: the settings
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.samplers", description=__doc__.strip().splitlines()[0])
    parser.add_argument("--draws", type=int, default=100_000, help="for each target and refiner (default %(default)s)")
    parser.add_argument(
        "--more", type=int, default=20, help="factor of the steps of refiners that converge (default %(default)s)"
    )
    parser.add_argument("--repetitions", type=int, default=1000, help="of the entropy's estimate (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=50, help="of the timing (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("results/samplers"), help="folder (default %(default)s)")
    args = parser.parse_args(argv)
    for name in ("draws", "more", "repetitions", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """
    :param argv: the command line's arguments
    """
    args = parse(argv)
    th.set_num_threads(1)
    rows, samples = accuracy(args.draws, args.more)
    text = markdown(rows, relative_times(args.rounds), entropy_errors(args.repetitions))
    args.output.mkdir(parents=True, exist_ok=True)
    with open(args.output / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    write_text(args.output / "table.md", text)
    draw_page(samples, args.output / "gallery.png")
    print(f"\n{text}\nWritten to {args.output}.")


if __name__ == "__main__":
    sys.exit(main())
