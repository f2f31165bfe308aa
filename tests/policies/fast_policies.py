"""Policies whose fast ``predict`` is compared with the slow one."""

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_energy.policies.refined_policy import RefinedPolicy

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (7,))
ACTIONS = spaces.Box(np.array([-2.0, -1.0, 0.0], np.float32), np.array([1.0, 1.0, 3.0], np.float32))
OBS = np.random.default_rng(0).normal(size=(9, 7)).astype(np.float32)


def make_policy(observation_space=OBSERVATIONS, action_space=ACTIONS, cls=RefinedPolicy, **kwargs):
    th.manual_seed(0)
    policy = cls(observation_space, action_space, lambda _: 1e-3, **(dict(net_arch=[32, 32]) | kwargs))
    with th.no_grad():
        for q_net in policy.critic.q_networks:
            q_net[-1].weight.mul_(4.0)  # so that refining does something
        policy.temperature.fill_(0.3)
        policy.update_normalization(th.randn(100, *observation_space.shape) * 2.0 + 1.0)
    return policy


def predictions(policy, obs, deterministic, fast):
    """Two in a row, and the state of the generator after them."""
    policy.fast_predict = fast
    th.manual_seed(1)
    return [policy.predict(obs, deterministic=deterministic)[0] for _ in range(2)], th.get_rng_state()


def is_fast(policy):
    """Whether the last prediction was."""
    return policy._fast.networks is not None


def check_equal(policy, obs, deterministic):
    actions, state = predictions(policy, obs, deterministic, fast=True)
    assert is_fast(policy)
    expected, expected_state = predictions(policy, obs, deterministic, fast=False)
    assert th.equal(state, expected_state)
    for ours, theirs in zip(actions, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    return actions


REFINERS = {
    "none": dict(refiner="none"),
    "mala of one": dict(n_particles=1),
    "mala": dict(n_particles=8, refiner_steps=5),
    "langevin of one": dict(refiner="langevin", n_particles=1),
    "langevin": dict(refiner="langevin", n_particles=8),
    "mppi": dict(refiner="mppi", n_particles=16, refiner_steps=2),
}
