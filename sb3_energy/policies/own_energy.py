"""A look at a policy's energy before anything is stored or learned: once, and at no cost afterwards."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_energy.energies import FINITE, PAGE, check_energy, energy_name, trial_actions
from sb3_energy.refinement.proposals import Gaussian
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refiners.loop import is_lost
from sb3_energy.types import Energy, EnergyFn, Networks

N_DRAWN = 8
"""Observations that are drawn from the space to look at an energy."""

MODERATE = 10.0
"""Beyond it an observation is not drawn: spaces are often wider than what an environment returns."""


class OwnEnergy(BasePolicy):
    """Part of a refined policy: its energy is looked at when it is first bound, unless it is one of the package's."""

    energy: Energy
    refinement: Refinement
    networks: Callable[[], Networks]
    temperature: th.Tensor
    _energy_is_checked: bool = False

    def check_energy(self, needs_gradient: bool | None = None) -> None:
        """
        See whether the energy gives one number for each action, a tensor of floats on the actions' device, with a gradient
        where one is needed, at observations that are drawn from their space. No global random number is used up.

        :param needs_gradient: whether a gradient is needed (``None``: if the refiner asks for it)
        :raises ValueError: if a shape or a device is another one, there is no gradient, or no number is finite
        :raises TypeError: if what comes out is no tensor of floats
        """
        self._energy_is_checked = True
        if type(self.energy) in FINITE:
            return
        try:
            with self._undisturbed():
                drawn = drawn_observations(self.observation_space, N_DRAWN, self.device)
                self._check(drawn, asks_for_gradient(self) if needs_gradient is None else needs_gradient)
        except BaseException:
            self._energy_is_checked = False
            raise

    def check_energy_at(self, obs: PyTorchObs) -> None:
        """
        See whether an energy of the user's own is finite at observations of the environment.

        :param obs: ``B`` observations
        :raises ValueError: if it is NaN or minus infinity at an action, or plus infinity at all of an observation
        """
        if type(self.energy) in FINITE or self.refinement.is_identity:
            return
        with self._undisturbed(), th.no_grad():
            like = self.temperature
            n_obs = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
            actions = trial_actions(n_obs, 8, get_action_dim(self.action_space), like)
            energies = self.energy.bind(self.networks(), obs)(actions)
        lost = is_lost(energies)
        if bool(lost.any()):
            index = int(lost.nonzero()[0])
            raise ValueError(
                f"energy={energy_name(self.energy)} must be finite, got {energies[index].amin().item()} at the environment's "
                f"first observation; nothing was stored ({PAGE})"
            )

    def _check(self, drawn: PyTorchObs, needs_gradient: bool) -> None:
        name, networks, dim = energy_name(self.energy), self.networks(), get_action_dim(self.action_space)
        like = self.temperature

        def bind(n: int) -> EnergyFn:
            part = {key: value[:n] for key, value in drawn.items()} if isinstance(drawn, dict) else drawn[:n]
            return self.energy.bind(networks, part)

        check_energy(bind, name, dim, like, needs_gradient)
        with th.no_grad():
            values = bind(N_DRAWN)(trial_actions(N_DRAWN, 4, dim, like))
        if not bool(th.isfinite(values).any()):
            raise ValueError(
                f"energy={name} must be finite, got {values.flatten()[0].item()} for all actions at {N_DRAWN} observations "
                f"drawn from their space ({PAGE})"
            )

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Within this context nothing is drawn that anybody would miss, and networks predict."""
        states, was_training = (random.getstate(), np.random.get_state()), self.training
        devices = [] if self.device.type == "cpu" else [self.device]
        try:
            with th.random.fork_rng(devices=devices, device_type="cuda" if self.device.type == "cpu" else self.device.type):
                self.set_training_mode(False)
                yield
        finally:
            self.set_training_mode(was_training)
            random.setstate(states[0])
            np.random.set_state(states[1])


class _Probe:
    """An energy that remembers whether its gradient was asked for."""

    was_asked = False

    def __call__(self, x: th.Tensor) -> th.Tensor:
        self.was_asked |= x.requires_grad
        return x.square().flatten(2).sum(-1)

    def energy_and_grad(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        self.was_asked = True
        return x.square().flatten(2).sum(-1), 2.0 * x


def asks_for_gradient(policy: OwnEnergy) -> bool:
    """
    :param policy: a refined policy
    :return: whether its refiner follows the energy's gradient when it samples
    """
    if policy.refinement.is_identity or getattr(policy.refinement.refiner, "head", None) is not None:
        return False  # what a head learns from is the algorithm's to know
    probe, like = _Probe(), policy.temperature
    zeros = like.new_zeros(1, get_action_dim(policy.action_space))
    with th.no_grad():
        policy.refinement.sample(Gaussian(zeros, th.ones_like(zeros)), probe, th.ones_like(like))
    return probe.was_asked


def drawn_observations(space: spaces.Space, n: int, device: th.device) -> PyTorchObs:
    """
    :param space: of observations
    :param n: how many
    :param device: where to put them
    :return: ``n`` draws of moderate size, by a random number generator of their own
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
