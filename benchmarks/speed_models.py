"""The models whose speed is measured, and the setting of matrix products they run under."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import SAC
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_energy import PGAC, EnergySAC

N_TRANSITIONS = 500
BATCH = 256
PRECISIONS = ("highest", "medium")
OURS = ("EnergySAC", "PGAC")


class Noise(gym.Env):
    """
    Random observations: what is learned does not matter here.

    :param n_actions: numbers of an action
    """

    observation_space = spaces.Box(-1.0, 1.0, (17,))

    def __init__(self, n_actions: int = 6):
        self.action_space = spaces.Box(-1.0, 1.0, (n_actions,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs = self.observation_space.sample()
        return obs, float(obs[0]), False, False, {}


@cache
def algorithms() -> dict[str, type[OffPolicyAlgorithm]]:
    """
    :return: what can be measured here, by name; SBX's where it is installed
    """
    found: dict[str, type[OffPolicyAlgorithm]] = {"SAC": SAC, "TQC": TQC, "CrossQ": CrossQ, "EnergySAC": EnergySAC}
    found["PGAC"] = PGAC
    try:
        import sbx
    except ImportError:
        return found
    return found | {"SBX SAC": sbx.SAC, "SBX CrossQ": sbx.CrossQ}


def make_model(
    algorithm: str, kwargs: Mapping[str, Any], precision: str, env: gym.Env | str | None = None
) -> OffPolicyAlgorithm:
    """
    :param algorithm: a name in :func:`algorithms`
    :param kwargs: its keyword arguments
    :param precision: ``"highest"`` or ``"medium"``; ours have a switch of their own, ``fast_matmul``
    :param env: the environment, or its id (``None``: random numbers)
    :return: an untrained model on the CPU
    """
    settings = dict(device="cpu", seed=0) | dict(kwargs)
    if algorithm in OURS:
        settings["fast_matmul"] = precision == "medium"
    return algorithms()[algorithm]("MlpPolicy", Noise() if env is None else env, **settings)


def filled(algorithm: str, kwargs: Mapping[str, Any], precision: str = "highest") -> OffPolicyAlgorithm:
    """
    :param algorithm: a name in :func:`algorithms`
    :param kwargs: its keyword arguments
    :param precision: ``"highest"`` or ``"medium"``
    :return: a model that has collected transitions and not learned from them
    """
    buffer = dict(learning_starts=2 * N_TRANSITIONS, buffer_size=2 * N_TRANSITIONS)
    model = make_model(algorithm, buffer | dict(kwargs), precision)
    return model.learn(N_TRANSITIONS)


def global_precision(algorithm: str, precision: str) -> str:
    """
    :param algorithm: a name in :func:`algorithms`
    :param precision: that the algorithm is to be measured at
    :return: that the process has to be at: ours switch by themselves, inside ``train()``
    """
    return "highest" if algorithm in OURS else precision
