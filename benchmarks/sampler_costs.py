"""What a refined action costs: CPU time and memory of ``policy.predict``."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed_models import Noise
from sb3_energy import EnergySAC
from sb3_energy.refiners import REFINERS

BATCHES = (1, 256)


def models() -> dict[str, EnergySAC]:
    """
    :return: refiner -> untrained model that predicts by torch, on 17 observations, 6 actions and networks of 2 × 256
    """
    return {name: model_of(refiner=name) for name in REFINERS}


def model_of(n_actions: int = 6, **policy_kwargs: Any) -> EnergySAC:
    """
    :param n_actions: numbers of an action
    :param policy_kwargs: of the policy
    :return: an untrained model that predicts by torch
    """
    model = EnergySAC("MlpPolicy", Noise(n_actions), device="cpu", policy_kwargs=policy_kwargs)
    model.policy.fast_predict = False  # some refiners have a fast path for few observations: here they are compared on one
    return model


def observations(batch: int) -> np.ndarray:
    """
    :param batch: how many
    :return: ``(batch, 17)``
    """
    return np.random.default_rng(0).uniform(-1.0, 1.0, (batch, 17)).astype(np.float32)


def relative_times(made: dict[str, EnergySAC], rounds: int) -> dict[str, dict[int, float]]:
    """
    CPU time of ``policy.predict`` over that of ``refiner="none"``.

    :param made: of :func:`models`
    :param rounds: the median over which is taken, each times all refiners in turn
    :return: refiner -> batch -> ratio
    """
    ratios: dict[str, dict[int, float]] = {name: {} for name in made}
    for batch in BATCHES:
        obs = observations(batch)
        seconds: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(rounds):
            for name, model in made.items():
                start = time.process_time()
                model.policy.predict(obs)
                seconds[name].append(time.process_time() - start)
        for name in made:
            ratios[name][batch] = float(np.median(seconds[name]) / np.median(seconds["none"]))
    return ratios


def peak_memory(model: EnergySAC, batch: int = BATCHES[-1]) -> float:
    """
    :param model: whose ``policy.predict`` is looked at
    :param batch: of observations
    :return: the most that torch has allocated at one moment of it beyond what it had before, in MB (10⁶ bytes); the weights
        of the networks are there before
    """
    obs = observations(batch)
    model.policy.predict(obs)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        model.policy.predict(obs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    allocations = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    return float(np.cumsum([size for _, size in allocations]).max(initial=0.0)) / 1e6
