"""From cases to rows: who is timed against whom."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from benchmarks import speed_floor
from benchmarks.speed_cases import END_TO_END, MODES, PREDICT_BATCHES, SECTIONS, Case, baseline
from benchmarks.speed_floor import Shape, floor_seconds
from benchmarks.speed_memory import memory_rows
from benchmarks.speed_models import BATCH, PRECISIONS, algorithms, filled, global_precision, make_model
from benchmarks.speed_rows import NAN, Row
from benchmarks.speed_timing import Call, Clock, calibrated, interleaved, speedup
from sb3_energy.matmul import MatmulPrecision

UPDATES = ("update", "refiners", "pgac", "particles", "critics")


@dataclass(frozen=True)
class Effort:
    """
    :param rounds: that everything is timed in
    :param seconds: of one slice
    :param warm_up: seconds for which everything is done before
    :param env_steps: of one slice of learning
    :param memory_updates: of a process whose peak memory is measured
    :param growth_widths: of the networks that are trained to see whether memory grows (``None``: those of all other cases)
    """

    rounds: int = 20
    seconds: float = 0.06
    warm_up: float = 0.6
    env_steps: int = 100
    memory_updates: int = 30
    growth_widths: tuple[int, ...] | None = None


QUICK = Effort(rounds=3, seconds=0.01, warm_up=0.01, env_steps=20, memory_updates=3, growth_widths=(16,))


class Subject(NamedTuple):
    """A case at one precision of matrix products."""

    case: str
    precision: str


Times = dict[Subject, np.ndarray]
PRODUCT = "matrix product"


def available(cases: Sequence[Case]) -> list[Case]:
    """
    :param cases: of a section
    :return: those whose algorithm is installed
    """
    missing = sorted({case.algorithm for case in cases} - set(algorithms()))
    if missing:
        print(f"left out, not installed: {', '.join(missing)}", flush=True)
    return [case for case in cases if case.algorithm in algorithms()]


def at(precision: str, call: Call) -> Call:
    """
    :param precision: of matrix products
    :param call: what to time
    :return: the same in a process at that precision
    """

    def called(n: int) -> None:
        with MatmulPrecision(precision):
            call(n)

    return called


def train_call(model: OffPolicyAlgorithm) -> Call:
    """
    :param model: with transitions
    :return: so many updates, one by one as ``learn()`` does them
    """

    def train(n: int) -> None:
        for _ in range(n):
            model.train(1, batch_size=BATCH)

    return train


def predict_call(model: OffPolicyAlgorithm, batch: int, deterministic: bool) -> Call:
    """
    :param model: whose ``predict`` is timed
    :param batch: of observations; with 1 it is given a single one
    :param deterministic: as ``predict`` takes it
    :return: so many predictions
    """
    shape = (17,) if batch == 1 else (batch, 17)
    obs = np.random.default_rng(0).uniform(-1.0, 1.0, shape).astype(np.float32)

    def predict(n: int) -> None:
        for _ in range(n):
            model.predict(obs, deterministic=deterministic)

    return predict


def learn_call(model: OffPolicyAlgorithm) -> Call:
    """
    :param model: that has begun to learn
    :return: so many further steps in its environment
    """

    def learn(n: int) -> None:
        model.learn(n, reset_num_timesteps=False)

    return learn


def product_calls() -> dict[Subject, Call]:
    """
    :return: products of ``256 × 256`` matrices at each precision
    """
    return {Subject(PRODUCT, precision): at(precision, speed_floor.product()) for precision in PRECISIONS}


def rows_of(
    section: str,
    cases: Sequence[Case],
    times: Times,
    operations: Callable[[Case], int] | None = None,
) -> list[Row]:
    """
    :param section: of the rows
    :param cases: the first is what the others are compared with
    :param times: seconds of one in each round
    :param operations: floating-point operations of one
    :return: a row for each case and setting
    """
    rows, base = [], cases[0]
    for case in cases:
        for name, of_base, of_case in _settings(case):
            seconds, reference = times[Subject(case.name, of_case)], times[Subject(base.name, of_base)]
            row = Row(section, case.name, name, case.series, NAN if case.x is None else float(case.x), len(seconds))
            row = replace(row, ms=1e3 * float(np.median(seconds)), **_compared(reference, seconds))
            if operations is not None and case.asked is not None:
                product = float(np.median(times[Subject(PRODUCT, of_case)]))
                row = replace(row, floor_ms=1e3 * floor_seconds(operations(case), product))
            rows.append(row)
    return rows


def _compared(reference: np.ndarray, seconds: np.ndarray) -> dict[str, float]:
    value, low, high = speedup(reference, seconds)
    return dict(speedup=value, low=low, high=high)


def _settings(case: Case) -> list[tuple[str, str, str]]:
    """Name of the setting, the baseline's precision and the case's."""
    same = [(precision, precision, precision) for precision in case.precisions]
    if case.algorithm.startswith("SBX"):  # which has no such setting
        return [("stock", "highest", case.precisions[0])]
    return [("stock", "highest", case.precisions[-1]), *same]


def measure_updates(section: str, effort: Effort, clock: Clock = time.process_time) -> list[Row]:
    """
    :param section: one of those whose cases are updates
    :param effort: how much to measure
    :param clock: gives seconds
    :return: its rows
    """
    cases = [baseline(section), *available(SECTIONS[section]())]
    calls, delays = product_calls(), dict[Subject, int]()
    for case in cases:
        for precision in case.precisions:
            model, subject = filled(case.algorithm, case.kwargs, precision), Subject(case.name, precision)
            calls[subject] = at(global_precision(case.algorithm, precision), train_call(model))
            delays[subject] = getattr(model, "policy_delay", 1)
    counts = {subject: calibrated(call, effort.seconds, effort.warm_up, clock) for subject, call in calls.items()}
    for subject, delay in delays.items():  # whole turns of what is not done in every update
        counts[subject] = -(-counts[subject] // delay) * delay
    times = interleaved(calls, effort.rounds, effort.seconds, counts, clock=clock)
    return rows_of(section, cases, times, _update_operations)


def _update_operations(case: Case) -> int:
    shape = Shape(n_critics=case.n_critics)
    return speed_floor.update(shape) + speed_floor.refinement(shape, case.asked)


def measure_predict(section: str, effort: Effort, clock: Clock = time.process_time) -> list[Row]:
    """
    :param section: of the rows
    :param effort: how much to measure
    :param clock: gives seconds
    :return: its rows, for each batch and mode
    """
    cases = [baseline(section), *available(SECTIONS[section]())]
    models = {case.name: make_model(case.algorithm, case.kwargs, "highest") for case in cases}
    rows = []
    for batch in PREDICT_BATCHES:
        for mode, deterministic in MODES.items():
            calls = product_calls()
            calls |= {Subject(name, "highest"): predict_call(model, batch, deterministic) for name, model in models.items()}
            times = interleaved(calls, effort.rounds, effort.seconds, warm_up=effort.warm_up, clock=clock)
            found = rows_of(section, cases, times, partial(_prediction_operations, batch))
            rows += [replace(row, setting=f"batch {batch}, {mode}") for row in found if row.setting == "highest"]
    return rows


def _prediction_operations(batch: int, case: Case) -> int:
    return speed_floor.prediction(Shape(batch=batch), case.asked)


def measure_end_to_end(section: str, effort: Effort, clock: Clock = time.process_time) -> list[Row]:
    """
    :param section: of the rows
    :param effort: how much to measure
    :param clock: gives seconds
    :return: its rows, for each environment that is installed
    """
    cases, rows = [baseline(section), *available(SECTIONS[section]())], []
    for env_id in END_TO_END:
        try:
            gym.make(env_id).close()
        except gym.error.Error as error:
            print(f"left out: {env_id}: {error}", flush=True)
            continue
        calls = {}
        for case in cases:
            for precision in case.precisions:
                settings = dict(buffer_size=100_000) | dict(case.kwargs)
                model = make_model(case.algorithm, settings, precision, gym.make(env_id))
                call = at(global_precision(case.algorithm, precision), learn_call(model))
                call(model.learning_starts + effort.env_steps)
                calls[Subject(case.name, precision)] = call
        counts = dict.fromkeys(calls, effort.env_steps)
        times = interleaved(calls, effort.rounds, effort.seconds, counts, clock=clock)
        rows += [replace(row, setting=f"{env_id}, {row.setting}") for row in rows_of(section, cases, times)]
    return rows


def measure(section: str, effort: Effort) -> list[Row]:
    """
    :param section: a name in :data:`benchmarks.speed_cases.SECTIONS`
    :param effort: how much to measure
    :return: its rows
    """
    th.set_num_threads(1)
    if section in UPDATES:
        return measure_updates(section, effort)
    if section == "predict":
        return measure_predict(section, effort)
    if section == "end_to_end":
        return measure_end_to_end(section, effort)
    cases = [baseline(section), *available(SECTIONS[section]())]
    return memory_rows(section, cases, effort.memory_updates, effort.growth_widths)
