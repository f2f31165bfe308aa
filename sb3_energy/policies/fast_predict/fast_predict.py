"""SB3's ``predict`` for a few observations at once: the same actions, up to rounding, from numpy in place of torch."""

import math
from typing import Any

import numpy as np
import torch as th

from sb3_energy.policies.fast_predict import numpy_langevin
from sb3_energy.policies.fast_predict.numpy_energies import BoundEnergy
from sb3_energy.policies.fast_predict.numpy_langevin import is_plain_langevin
from sb3_energy.policies.fast_predict.numpy_networks import Array
from sb3_energy.policies.fast_predict.numpy_policy import NumpyPolicy
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refinement.warm_start import Plans
from sb3_energy.refiners import MPPI, Langevin, SelfNormalizedImportanceSampling

MAX_ROWS = 256
"""For more observations times particles torch is about as fast."""

RETRY = 1000
"""After a policy was found unsupported, it is looked at again after this many predictions: a hook may be gone."""

REFINERS_OF_TORCH = (Langevin, MPPI, SelfNormalizedImportanceSampling)
"""Refiners that move particles in torch and may follow an energy on numpy: they ask for gradients by ``energy_and_grad``."""


class FastPredict:
    """
    Held by a policy. Actions are ``None`` where torch has to compute them, and then no random number has been drawn: where a
    part of the policy is unknown to :class:`~sb3_energy.policies.fast_predict.numpy_policy.NumpyPolicy` or has been changed by
    a user, and where the observation is not one array of a few. With the same seed, torch's and numpy's actions are the same
    up to rounding, and so is the state of the generator after them.
    """

    def __init__(self) -> None:
        self.networks: NumpyPolicy | None = None
        self.retry = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return FastPredict, ()  # a copy of a policy has parameters of its own

    @np.errstate(all="ignore")  # NaN and infinity are looked for
    def actions(self, policy: Any, observation: Any, deterministic: bool, plans: Plans | None) -> Array | None:
        """
        :param policy: which holds this
        :param observation: as for ``predict``
        :param deterministic: whether nothing is drawn
        :param plans: where to start from and where to write the plans, if the refiner has some
        :return: as of ``predict``, or ``None``
        :raises FloatingPointError: if an energy is not finite
        """
        refinement, refines = policy.refinement, policy._refines and not policy.refinement.is_identity
        n_particles = refinement.n_starts if deterministic else refinement.n_particles
        obs = _flat(policy, observation, n_particles if refines else 1)
        if obs is None or (policy.compiled_sample is not None and not deterministic):
            return None
        networks = self._current(policy)
        if networks is None or (refines and not (networks.has_energy() and _has_known_refiner(policy))):
            return None
        base = networks.base(obs)
        if base is None:
            return None
        policy.set_training_mode(False)
        if refines:
            energy = networks.bound_energy(obs)
            found = _refined(policy, obs, Gaussian(*map(th.from_numpy, base)), energy, deterministic, plans)
            if found is None:
                return None
            latent = found.numpy()
        else:
            mean, std = base
            latent = mean if deterministic else mean + std * th.randn(mean.shape).numpy()
        actions = policy.unscale_action(np.tanh(latent).reshape(-1, *policy.action_space.shape))
        return actions[0] if observation.shape == policy.observation_space.shape else actions

    @np.errstate(all="ignore")
    def q_values(self, policy: Any, observation: Any, actions: Array) -> Array | None:
        """
        :param policy: which holds this
        :param observation: ``B`` observations, as for ``predict``
        :param actions: ``(B, A)``, scaled to [-1, 1]
        :return: ``(B,)``, the value that the actor climbs, or ``None``
        """
        obs = _flat(policy, observation, 1)
        if obs is None or len(obs) != len(actions):
            return None
        networks = self._current(policy)
        return None if networks is None else networks.q_values(obs, actions)

    def _current(self, policy: Any) -> NumpyPolicy | None:
        if self.retry > 0:
            self.retry -= 1
        elif self.networks is None or not self.networks.is_current(policy):
            self.networks = NumpyPolicy.of(policy)
            self.retry = RETRY if self.networks is None else 0
        return self.networks


def _flat(policy: Any, observation: Any, rows_each: int) -> Array | None:
    """The observation as ``(B, F)``, or ``None`` if it is not one or a few finite arrays of floats."""
    if type(observation) is not np.ndarray or not policy.fast_predict or th.is_autocast_enabled("cpu"):
        return None
    shape, expected = observation.shape, policy.observation_space.shape
    if shape != expected and shape[1:] != expected:
        return None
    if observation.dtype.char not in "fd" or observation.size == 0:
        return None
    flat = observation.reshape(-1).astype(np.float32, copy=False)  # as networks see it: what is too large is infinite
    if not (math.isfinite(flat.dot(flat)) or np.isfinite(flat).all()):
        return None
    n = 1 if shape == expected else shape[0]
    return flat.reshape(n, -1) if n * rows_each <= MAX_ROWS else None


def _has_known_refiner(policy: Any) -> bool:
    refinement = policy.refinement
    is_known = type(refinement.refiner) in REFINERS_OF_TORCH and refinement.tolerance is None
    return is_known and policy._buffers["temperature"].item() > 0.0


def _refined(
    policy: Any, obs: Array, base: Gaussian, energy: BoundEnergy, deterministic: bool, plans: Plans | None
) -> th.Tensor | None:
    """``(B, A)``, pre-tanh, or ``None``: Langevin by numpy, other refiners by torch, with an energy on numpy."""
    refinement: Refinement = policy.refinement
    if not is_plain_langevin(refinement):
        return policy.refine(th.from_numpy(obs), deterministic, base, energy, plans=plans)
    with th.no_grad():
        base = policy.start_base(obs, base)
        if deterministic:
            return numpy_langevin.best(refinement, base, energy)
        state = th.get_rng_state()
        latent = numpy_langevin.sample(refinement, base, energy, policy.temperature)
    if latent is None:  # torch draws the same numbers, and says what is not finite
        th.set_rng_state(state)
    return latent
