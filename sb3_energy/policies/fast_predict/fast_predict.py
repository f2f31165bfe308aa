"""SB3's ``predict`` for a few observations at once: the same actions, up to rounding, from numpy in place of torch."""

import math
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import nn

from sb3_energy.policies.fast_predict import numpy_langevin
from sb3_energy.policies.fast_predict.conditions import Watch, is_known
from sb3_energy.policies.fast_predict.numpy_energies import FAST_ENERGIES, BoundEnergy, NumpyEnergy, numpy_energy
from sb3_energy.policies.fast_predict.numpy_networks import Array, NumpyNetwork
from sb3_energy.policies.quantile_critic import QuantileCritic
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refinement.warm_start import Plans
from sb3_energy.refiners import MPPI, Langevin, MetropolisAdjustedLangevin, SelfNormalizedImportanceSampling

MAX_ROWS = 256
"""For more observations times particles torch is about as fast."""

RETRY = 1000
"""After a policy was found unsupported, it is looked at again after this many predictions: a hook may be gone."""

REFINERS_OF_TORCH = (Langevin, MetropolisAdjustedLangevin, MPPI, SelfNormalizedImportanceSampling)
"""Refiners that move particles in torch and may follow an energy on numpy: they ask for gradients by ``energy_and_grad``."""

_LOG_STD_MIN, _LOG_STD_MAX = np.float32(LOG_STD_MIN), np.float32(LOG_STD_MAX)


class FastPredict:
    """
    Held by a policy. Results are ``None`` where torch has to compute them, and no random number has been drawn then: where a
    part of the policy is unknown or has been changed by a user, and where the observation is not one array of a few. With
    the same seed, actions are torch's up to rounding, and so is the state of the generator after them.
    """

    def __init__(self) -> None:
        self.networks: tuple[NumpyNetwork, NumpyNetwork, NumpyNetwork] | None = None
        self._energy: NumpyEnergy | None = None
        self._watch: Watch | None = None
        self.retry = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return FastPredict, ()  # a copy of a policy has parameters of its own

    @np.errstate(all="ignore")  # NaN and infinity are looked for
    def actions(self, policy: Any, observation: Any, deterministic: bool, plans: Plans | None) -> Array | None:
        """
        Predict actions with numpy.

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
        torchs = policy.compiled_sample is not None or policy.noise is not None
        if obs is None or (torchs and not deterministic) or not self._is_ready(policy):
            return None
        bind = self._energy
        if refines and (bind is None or not _is_known_refinement(policy)):
            return None
        policy.set_training_mode(False)
        mean, std = self._base(policy.actor, obs)
        if not math.isfinite(np.add.reduce(mean, None) + np.add.reduce(std, None)):
            return None
        if refines and bind is not None:
            gaussian, energy = Gaussian(th.from_numpy(mean), th.from_numpy(std)), bind(_normalized(policy.critic, obs))
            latent = _refined(policy, obs, gaussian, energy, deterministic, plans)
        else:
            latent = mean if deterministic else mean + std * th.randn(mean.shape).numpy()
        if latent is None:
            return None
        actions = policy.unscale_action(np.tanh(latent).reshape(-1, *policy.action_space.shape))
        return actions[0] if observation.shape == policy.observation_space.shape else actions

    @np.errstate(all="ignore")
    def q_values(self, policy: Any, observation: Any, actions: Array) -> Array | None:
        """
        Q-values of the policy objective, computed with numpy.

        :param policy: which holds this
        :param observation: ``B`` observations, as for ``predict``
        :param actions: ``(B, A)``, scaled to [-1, 1]
        :return: ``(B,)``, the value that the actor climbs: the lowest one, or the mean of all quantiles; or ``None``
        """
        obs = _flat(policy, observation, 1)
        if obs is None or len(obs) != len(actions) or not self._is_ready(policy) or self.networks is None:
            return None
        outputs, _ = self.networks[2].bind(_normalized(policy.critic, obs))(actions[:, None])
        return outputs[:, :, 0].min(axis=0) if type(policy.critic) is not QuantileCritic else outputs.mean(axis=(0, 2))

    def _is_ready(self, policy: Any) -> bool:
        if self.retry > 0:
            self.retry -= 1
        elif self.networks is None or self._watch is None or not self._watch.is_unchanged(policy):
            self.networks, self._watch = None, Watch(policy)
            if is_known(policy) and self._watch.is_unchanged(policy):
                self._make(policy)
            self.retry = RETRY if self.networks is None else 0
        return self.networks is not None

    def _make(self, policy: Any) -> None:
        actor, n_actions = policy.actor, get_action_dim(policy.action_space)
        trunk, heads = NumpyNetwork.of(actor.latent_pi), NumpyNetwork.of(actor.mu, actor.log_std)
        critics = NumpyNetwork.of(*policy.critic.value_networks(), n_actions=n_actions)
        if trunk is not None and heads is not None and critics is not None:
            self.networks, self._energy = (trunk, heads, critics), numpy_energy(policy.energy, policy, critics)

    def _base(self, actor: Any, obs: Array) -> tuple[Array, Array]:
        """Means and standard deviations of the actor, ``(B, A)``."""
        assert self.networks is not None
        trunk, heads, _ = self.networks
        mean, log_std = heads(trunk(_normalized(actor, obs))[0])
        if actor.log_std_range is not None:
            low, high = actor.log_std_range
            return mean, np.exp(np.float32(low) + np.float32(0.5 * (high - low)) * (np.tanh(log_std) + np.float32(1.0)))
        return mean, np.exp(np.minimum(np.maximum(log_std, _LOG_STD_MIN), _LOG_STD_MAX))


def _normalized(network: Any, features: Array) -> Array:
    norm = network.normalizer
    if type(norm) is nn.Identity:
        return features
    return (features - norm.running_mean.numpy()) / np.sqrt(norm.running_var.numpy() + np.float32(norm.eps))


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


def _is_known_refinement(policy: Any) -> bool:
    refinement = policy.refinement
    known = numpy_langevin.is_plain(refinement) or type(refinement.refiner) in REFINERS_OF_TORCH
    known = known and refinement.tolerance is None and policy._buffers["temperature"].item() > 0.0
    return known and all([energy.originals.are_in_place() for energy in FAST_ENERGIES.values()])


def _refined(
    policy: Any, obs: Array, base: Gaussian, energy: BoundEnergy, deterministic: bool, plans: Plans | None
) -> Array | None:
    """``(B, A)``, pre-tanh, or ``None``: Langevin and MALA by numpy, other refiners by torch, with an energy on numpy."""
    refinement: Refinement = policy.refinement
    if not numpy_langevin.is_plain(refinement):
        return policy.refine(th.from_numpy(obs), deterministic, base, energy, plans=plans).numpy()
    base = policy.start_base(obs, base)
    if deterministic:
        return numpy_langevin.best(refinement, base, energy)
    state = th.get_rng_state()
    latent = numpy_langevin.sample(refinement, base, energy, policy.temperature.item())
    if latent is None:  # torch draws the same numbers, and says what is not finite
        th.set_rng_state(state)
    return latent
