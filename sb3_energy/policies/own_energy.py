"""Checks of a policy's energy before anything is stored or learned: once, so that later calls cost nothing."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_energy.energies import PAGE, check_energy, is_finite_energy, parts_of, trial_actions
from sb3_energy.policies.features import first_observations
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refiners.loop import is_lost
from sb3_energy.types import Energy, EnergyFn

N_DRAWN = 8
"""Number of observations drawn from the space to try an energy."""

MODERATE = 10.0
"""Largest coordinate of these: spaces are often wider than what an environment returns."""


def check_policy_energy(policy: Any, needs_gradient: bool | None = None) -> None:
    """
    Check that an energy of the user's own gives one float for each action, on the actions' device, with a gradient where one
    is needed, at observations drawn from their space. Global random number generators keep their state.

    :param policy: a refined policy
    :param needs_gradient: whether a gradient is needed (``None``: if the refiner follows it)
    :raises ValueError: if a shape or a device is wrong, there is no gradient, or no value is finite
    :raises TypeError: if the energy is no tensor of floats
    """
    if is_finite_energy(policy.energy):
        return
    with _undisturbed(policy):
        needs_gradient = asks_for_gradient(policy) if needs_gradient is None else needs_gradient
        drawn = drawn_observations(policy.observation_space, N_DRAWN, policy.device)
        for name, energy in parts_of(policy.energy).items():
            if not is_finite_energy(energy):
                _check(policy, name, energy, drawn, needs_gradient)


def _check(policy: Any, name: str, energy: Energy, drawn: PyTorchObs, needs_gradient: bool) -> None:
    networks, dim, like = policy.networks(), get_action_dim(policy.action_space), policy.temperature

    def bind(n: int) -> EnergyFn:
        return energy.bind(networks, first_observations(drawn, n))

    check_energy(bind, name, dim, like, needs_gradient)
    with th.no_grad():
        values = bind(N_DRAWN)(trial_actions(N_DRAWN, 4, dim, like))
    if not bool(th.isfinite(values).any()):
        raise ValueError(
            f"energy={name} must be finite, got {values.flatten()[0].item()} for all actions at {N_DRAWN} observations "
            f"drawn from their space ({PAGE})"
        )


def check_energy_at(policy: Any, obs: PyTorchObs) -> None:
    """
    Check that an energy of the user's own is finite at observations of the environment.

    :param policy: a refined policy
    :param obs: ``B`` observations
    :raises ValueError: if it is NaN or minus infinity at an action, or plus infinity at all actions of an observation
    """
    if is_finite_energy(policy.energy) or policy.refinement.is_identity:
        return
    with _undisturbed(policy), th.no_grad():
        n_obs = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
        actions = trial_actions(n_obs, 8, get_action_dim(policy.action_space), policy.temperature)
        for name, energy in parts_of(policy.energy).items():
            energies = energy.bind(policy.networks(), obs)(actions)
            lost = is_lost(energies)
            if bool(lost.any()):
                raise ValueError(
                    f"energy={name} must be finite, got {energies[int(lost.nonzero()[0])].amin().item()} at the environment's "
                    f"first observation; nothing was stored ({PAGE})"
                )


@contextmanager
def _undisturbed(policy: Any) -> Iterator[None]:
    """Within this context the policy is in evaluation mode; random number generators get their states back."""
    states, was_training = (random.getstate(), np.random.get_state()), policy.training
    on_cpu = policy.device.type == "cpu"
    devices = [] if on_cpu else [policy.device]
    try:
        with th.random.fork_rng(devices=devices, device_type="cuda" if on_cpu else policy.device.type):
            policy.set_training_mode(False)
            yield
    finally:
        policy.set_training_mode(was_training)
        random.setstate(states[0])
        np.random.set_state(states[1])


class _Probe:
    """An energy that records whether its gradient is used."""

    was_asked = False

    def __call__(self, x: th.Tensor) -> th.Tensor:
        self.was_asked |= x.requires_grad
        return x.square().flatten(2).sum(-1)

    def energy_and_grad(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        self.was_asked = True
        return x.square().flatten(2).sum(-1), 2.0 * x


def asks_for_gradient(policy: Any) -> bool:
    """
    Check by a probe energy whether sampling needs energy gradients.

    :param policy: a refined policy
    :return: whether its refiner follows the energy's gradient when it samples
    """
    probe, like = _Probe(), policy.temperature
    zeros = like.new_zeros(1, get_action_dim(policy.action_space))
    for refinement in policy.refinement.parts():
        refiner = refinement.refiner
        if not refinement.is_identity and getattr(refiner, "head", None) is None and getattr(refiner, "needs_gradient", True):
            with th.no_grad():  # the algorithm knows what a head learns from
                refinement.sample(Gaussian(zeros, th.ones_like(zeros)), probe, th.ones_like(like))
    return probe.was_asked


def drawn_observations(space: spaces.Space, n: int, device: th.device) -> PyTorchObs:
    """
    Draw random observations to test a custom energy on.

    :param space: of observations
    :param n: how many
    :param device: where to put them
    :return: ``n`` draws of moderate size, from a random number generator of their own
    """
    if isinstance(space, spaces.Dict):
        return {key: _drawn(part, n, device) for key, part in space.spaces.items()}
    return _drawn(space, n, device)


def _drawn(space: spaces.Space, n: int, device: th.device) -> th.Tensor:
    own = copy.deepcopy(space)
    own.seed(0)
    found = np.stack([np.asarray(own.sample()) for _ in range(n)])
    if isinstance(space, spaces.Box) and found.dtype.kind == "f":
        found = np.clip(np.nan_to_num(found), -MODERATE, MODERATE).astype(found.dtype)
        found = np.clip(found, space.low, space.high)
    return obs_as_tensor(found, device)  # type: ignore[return-value]
