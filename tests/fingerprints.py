"""What a short training leaves, as one value: parameters, predictions and log."""

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.logger import KVWriter, Logger

STEPS = 50
OBS = np.random.default_rng(0).uniform(-1, 1, size=(4, 3)).astype(np.float32)


class Target(gym.Env):
    """Two actions that should be where a drifting observation is; some episodes end, others are cut off."""

    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.normal(size=3).astype(np.float32)
        return self.place, {}

    def step(self, action):
        reward = -float(np.square(action - self.place[:2]).sum())
        self.place = (0.9 * self.place + 0.3 * self.np_random.normal(size=3)).astype(np.float32)
        self.place[:2] += 0.2 * action
        return self.place, reward, bool(abs(self.place[2]) > 1.2), False, {}


class Pictures(Target):
    """The same as an image, for which the space is all that says so."""

    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)

    def _seen(self):
        return np.clip(128.0 + 60.0 * np.resize(self.place, (36, 36, 1)), 0, 255).astype(np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._seen(), {}

    def step(self, action):
        _, *others = super().step(action)
        return self._seen(), *others


class Lines(KVWriter):
    """Keeps what is logged, but for times."""

    def __init__(self):
        self.lines = []

    def write(self, key_values, key_excluded, step=0):
        self.lines.append(repr({key: value for key, value in key_values.items() if not key.startswith("time/")}))

    def close(self):
        pass


def tensors(module):
    return tuple((name, value.numpy().tobytes()) for name, value in module.state_dict().items())


def fingerprint(algorithm, kwargs, env=Target):
    """
    :param algorithm: its class
    :param kwargs: its arguments
    :param env: a class of an environment
    :return: parameters, predictions with and without noise, and the log of a short training
    """
    settings = dict(learning_starts=36, batch_size=16, buffer_size=200, seed=0, device="cpu") | kwargs
    settings["policy_kwargs"] = dict(net_arch=[8, 8]) | (settings.get("policy_kwargs") or {})
    model = algorithm("MlpPolicy", TimeLimit(env(), 12), **settings)
    lines = Lines()
    model.set_logger(Logger(None, [lines]))
    model.learn(STEPS, log_interval=1)
    assert model._n_updates > 0 and all(th.isfinite(value).all() for value in model.policy.state_dict().values())
    found = [tensors(model.policy), None if model.log_ent_coef is None else model.log_ent_coef.item()]
    obs = OBS if env is Target else np.stack([env.observation_space.sample() * 0 + k for k in range(4)])
    for deterministic in (True, False):
        th.manual_seed(1)
        np.random.seed(1)
        state = None
        for _ in range(2):
            actions, state = model.predict(obs, state=state, deterministic=deterministic)
            found.append(actions.tobytes())
    return tuple(found), tuple(lines.lines)
