"""
Resident memory of training, in processes of their own: what a process has once touched it may keep.

``python -m benchmarks.speed_memory`` is such a process: JSON in, JSON out.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed_cases import MEMORY_UPDATES, Case, chain
from benchmarks.speed_rows import Row

IMPORTS = "imports alone"
GROWTH = "growth, K = 1"


def resident_mb(peak: bool = False) -> float:
    """
    :param peak: the most there has been, in place of what there is now
    :return: resident memory of this process in 10⁶ bytes; where the kernel has no ``/proc``, always the most
    """
    status = Path("/proc/self/status")
    if status.exists():  # a process begins with its parent's ru_maxrss, so that one says too much
        name = "VmHWM:" if peak else "VmRSS:"
        kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith(name))
        return int(kilobytes) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def train_and_look(asked: Mapping[str, Any]) -> dict[str, float]:
    """
    :param asked: ``algorithm`` (``None``: train nothing), ``kwargs``, ``batch``, and at how many ``updates`` to look
    :return: number of updates -> resident memory in MB, and ``"peak"``
    """
    import torch as th

    from benchmarks.speed_models import filled

    th.set_num_threads(1)
    found = {}
    if asked["algorithm"] is not None:
        model = filled(asked["algorithm"], asked["kwargs"], "medium")
        done = 0
        for updates in asked["updates"]:
            while done < updates:
                model.train(min(100, updates - done), batch_size=asked["batch"])
                done += min(100, updates - done)
            found[str(updates)] = resident_mb()
    return found | {"peak": resident_mb(peak=True)}


def in_a_child(algorithm: str | None, kwargs: Mapping[str, Any], updates: Sequence[int], batch: int = 256) -> dict[str, float]:
    """
    :param algorithm: a name in :func:`benchmarks.speed_models.algorithms`, or ``None``
    :param kwargs: its keyword arguments
    :param updates: after how many to look at the memory, in ascending order
    :param batch: transitions in an update
    :return: what :func:`train_and_look` found in a new process
    :raises RuntimeError: if that process failed
    """
    asked = json.dumps(dict(algorithm=algorithm, kwargs=kwargs, updates=list(updates), batch=batch))
    command = [sys.executable, "-m", "benchmarks.speed_memory", asked]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {algorithm} with {kwargs!r} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def memory_rows(section: str, cases: Sequence[Case], updates: int, growth_widths: Sequence[int] | None) -> list[Row]:
    """
    :param section: of the rows
    :param cases: whose peak memory is measured
    :param updates: of each of them
    :param growth_widths: of the networks that are trained for long (``None``: those of all other cases)
    :return: rows with the peak of each case, and with the memory in the course of a long training
    """
    rows = [Row(section, IMPORTS, "peak", mb=in_a_child(None, {}, [])["peak"])]
    for case in cases:
        rows.append(Row(section, case.name, "peak", mb=in_a_child(case.algorithm, case.kwargs, [updates])["peak"]))
    small = {} if growth_widths is None else dict(net_arch=list(growth_widths))
    found = in_a_child("EnergySAC", chain(1, **small), MEMORY_UPDATES, batch=256 if growth_widths is None else 8)
    return rows + [Row(section, GROWTH, f"{n:,} updates", x=float(n), mb=found[str(n)]) for n in MEMORY_UPDATES]


if __name__ == "__main__":
    print(json.dumps(train_and_look(json.loads(sys.argv[1]))))
