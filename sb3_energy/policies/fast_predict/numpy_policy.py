"""The networks of a refined policy as functions of numpy arrays, for as long as nothing but their numbers changes."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import nn

from sb3_energy.energies import GuidedPotential, PotentialEnergy, QEnergy
from sb3_energy.networks import (
    ArrayNetwork,
    Originals,
    PotentialNetwork,
    RunningNorm,
    Watched,
    calls_are_original,
    is_untouched,
)
from sb3_energy.networks.by_hand.layer_rules import RULES
from sb3_energy.policies.actor import BackboneActor
from sb3_energy.policies.critics import EnsembleCritic
from sb3_energy.policies.fast_predict.numpy_energy import Array, ArrayEnergy, ArrayGaussian
from sb3_energy.policies.fast_predict.numpy_potential import ArrayPotential
from sb3_energy.policies.fast_predict.numpy_refinement import ArrayRefinement
from sb3_energy.policies.q_scale import QScale
from sb3_energy.policies.quantile_critic import QuantileCritic
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refinement.warm_start import Plans
from sb3_energy.refiners import MPPI, Langevin

if TYPE_CHECKING:
    from sb3_energy.policies.refined_policy import RefinedPolicy

_LEARNED = "potential", "q_scale"
"""What some policies have beside actor and critic, and the energy is made of."""

_CRITIC_METHODS = ("forward", "encode", "evaluate", "outputs", "extract_features", "policy_values", "_policy_values", "bind")
_DISTRIBUTION_METHODS = ("actions_from_params", "proba_distribution", "get_actions", "sample", "mode")

_ORIGINALS = Originals(
    {layer: ["forward"] for layer in (*RULES, FlattenExtractor, RunningNorm) if issubclass(layer, nn.Module)}
    | {
        BackboneActor: ["forward", "_predict", "get_action_dist_params", "extract_features"],
        EnsembleCritic: _CRITIC_METHODS,
        QuantileCritic: _CRITIC_METHODS,
        PotentialNetwork: ["forward", "bind"],
        QEnergy: ["bind", "bind_features"],
        PotentialEnergy: ["bind"],
        GuidedPotential: ["bind"],
        Refinement: ["sample", "best", "thinned"],
        Langevin: ["init", "step", "kernel", "deterministic"],
        MPPI: ["init", "step", "deterministic"],
        SquashedDiagGaussianDistribution: _DISTRIBUTION_METHODS,
    }
)
"""What arrays stand for: somebody may replace one of these on its class."""

_LOG_STD_MIN, _LOG_STD_MAX = np.full((), LOG_STD_MIN, np.float32), np.full((), LOG_STD_MAX, np.float32)
_ONE, _HALF = np.full((), 1.0, np.float32), np.full((), 0.5, np.float32)


class ArrayPolicy:
    """
    Actor, critic and refinement of a policy on arrays. Made by :meth:`of`. Not for two threads at once.

    :param policy: a policy of which every part is known
    :param networks: trunk and heads of the actor, and the critics
    """

    def __init__(self, policy: "RefinedPolicy", networks: tuple[ArrayNetwork, ArrayNetwork, ArrayNetwork]):
        self._trunk, self._heads, self._critic = networks
        self._actor_norm, self._critic_norm = policy.actor.normalizer, policy.critic.normalizer
        self._energy = _energy_of(policy, self._critic)
        supported = self._energy is not None and policy.head is None and not policy.refinement.is_identity
        supported = supported and ArrayRefinement.supports(policy.refinement)
        self._refinement = ArrayRefinement(policy.refinement) if supported else None
        self._starts_normal = policy.starts_normal
        space: Any = policy.action_space
        self._space = space
        self._values = policy.refinement, policy.energy, policy.observation_space, policy.action_space
        self._actor, self._q_networks_of, self._q_networks = policy.actor, policy.critic, [*policy.critic.q_networks]
        self._learned = [policy._modules.get(name) for name in _LEARNED]
        self._watched = Watched(_modules_of(policy))
        self._originals = _ORIGINALS.of(_classes_of(policy))
        self._takes_minimum = type(policy.critic) is EnsembleCritic

    @classmethod
    def of(cls, policy: "RefinedPolicy") -> "ArrayPolicy | None":
        """
        :param policy: any
        :return: its arrays, or ``None`` where a part of it is none of those that are known
        """
        actor, critic, space = policy.actor, policy.critic, policy.observation_space
        known = (
            isinstance(space, spaces.Box)
            and np.issubdtype(space.dtype, np.floating)
            and type(actor) is BackboneActor
            and type(critic) in (EnsembleCritic, QuantileCritic)
            and not actor.use_sde
            and all(_is_known_features(network) for network in (actor, critic))
            and policy.squash_output
            and _is_known_distribution(actor.action_dist)
            and all(map(is_untouched, _modules_of(policy)))
            and calls_are_original()
            and _ORIGINALS.are_in_place()
        )
        if not known:
            return None
        trunk = ArrayNetwork.of(actor.latent_pi)
        heads = ArrayNetwork.of(actor.mu, actor.log_std)  # type: ignore[arg-type]
        q_networks = ArrayNetwork.of(*critic.q_networks, n_actions=get_action_dim(policy.action_space))
        if trunk is None or heads is None or q_networks is None:
            return None
        return cls(policy, (trunk, heads, q_networks))

    def is_current(self, policy: "RefinedPolicy") -> bool:
        """
        :param policy: whose arrays these were
        :return: whether they still are
        """
        modules = policy._modules
        return (
            modules["actor"] is self._actor
            and [modules.get(name) for name in _LEARNED] == self._learned  # modules compare by identity
            and modules["critic"] is self._q_networks_of
            and self._q_networks_of.q_networks == self._q_networks
            and policy.starts_normal == self._starts_normal
            and policy.refinement is self._values[0]
            and policy.energy is self._values[1]
            and policy.observation_space is self._values[2]
            and policy.action_space is self._values[3]
            and policy._squash_output
            and _is_known_distribution(self._actor.action_dist)
            and self._originals.are_in_place()
            and self._watched.is_unchanged()
        )

    @property
    def refines(self) -> bool:
        """Whether refined actions can be had, beside those of the Gaussian actor."""
        return self._refinement is not None

    def act(self, obs: Array, deterministic: bool, temperature: float | None, plans: Plans | None = None) -> Array | None:
        """
        :param obs: ``(B, F)``, flat
        :param deterministic: whether nothing is drawn
        :param temperature: of the energy; ``None`` for the Gaussian actor's own actions
        :param plans: where to start from and where to write the plans, if the refiner has some
        :return: ``(B, A)`` actions scaled to [-1, 1]; ``None``, and nothing is drawn, if the Gaussian is not finite
        :raises FloatingPointError: if an energy is not finite
        """
        base = self._base(obs)
        if base is None:
            return None
        if temperature is None:
            if deterministic:
                return np.tanh(base.mean[:, 0])
            noise = self._normal((len(obs), base.mean.shape[2]))
            return np.tanh(base.mean[:, 0] + base.std[:, 0] * noise)
        assert self._refinement is not None and self._energy is not None
        if self._starts_normal:
            base = ArrayGaussian(np.zeros_like(base.mean), np.ones_like(base.std))
        self._energy.bind(_normalized(self._critic_norm, obs))
        if deterministic:
            return np.tanh(self._refinement.best(base, self._energy, plans))
        return np.tanh(self._refinement.sample(base, self._energy, temperature, plans))

    def unscaled(self, actions: Array) -> Array:
        """
        :param actions: ``(B, A)``, scaled to [-1, 1]
        :return: ``(B, *A)`` in the action space, rounded as SB3 does
        """
        low, high = self._space.low, self._space.high  # of now: somebody may change their numbers
        return low + _HALF * (actions.reshape(-1, *low.shape) + _ONE) * (high - low)

    def q_values(self, obs: Array, actions: Array) -> Array:
        """
        :param obs: ``(B, F)``, flat
        :param actions: ``(B, A)``, scaled to [-1, 1]
        :return: ``(B,)``, what the actor climbs: the lowest value, or the mean of all quantiles
        """
        program = self._critic.program(len(obs))
        program.bind(self._critic.encode(_normalized(self._critic_norm, obs)))
        outputs = program.outputs(actions)
        return outputs[:, :, 0].min(axis=0) if self._takes_minimum else outputs.mean(axis=(0, 2))

    def _base(self, obs: Array) -> ArrayGaussian | None:
        hidden = self._trunk(_normalized(self._actor_norm, obs))[0]
        mean, log_std = self._heads.encode(hidden)
        total = mean.reshape(-1).dot(log_std.reshape(-1))
        if not math.isfinite(total):
            return None
        std = np.exp(np.minimum(np.maximum(log_std, _LOG_STD_MIN), _LOG_STD_MAX))
        return ArrayGaussian(mean[:, None], std[:, None])

    def _normal(self, shape: tuple[int, int]) -> Array:
        return th.randn(shape, dtype=th.float32, device="cpu").numpy()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of a policy has parameters of its own and makes its own arrays
        return type(None), ()


def _modules_of(policy: "RefinedPolicy") -> list[nn.Module]:
    """All that an action depends on."""
    parts = [policy._modules.get(name) for name in ("actor", "critic", *_LEARNED)]
    return [module for part in parts if part is not None for module in part.modules()]


def _classes_of(policy: Any) -> list[type]:
    parts = [*_modules_of(policy), policy.energy, policy.refinement, policy.refinement.refiner, policy.actor.action_dist]
    return [QEnergy, *map(type, parts)]  # of which a guided potential is made


def _energy_of(policy: Any, critic: ArrayNetwork) -> ArrayEnergy | ArrayPotential | None:
    """``None`` where the energy, or a network that it is made of, is none of those that are known."""
    if type(policy.energy) is QEnergy:
        return ArrayEnergy(policy.energy, critic)
    if type(policy.energy) not in (PotentialEnergy, GuidedPotential) or type(policy.q_scale) is not QScale:
        return None
    potential = ArrayPotential.network_of(policy, get_action_dim(policy.action_space))
    return None if potential is None else ArrayPotential(policy.energy, potential, critic, policy.q_scale)


def _is_known_distribution(distribution: Any) -> bool:
    own = distribution.__dict__
    return type(distribution) is SquashedDiagGaussianDistribution and not any(name in own for name in _DISTRIBUTION_METHODS)


def _is_known_features(network: Any) -> bool:
    return type(network.features_extractor) is FlattenExtractor and type(network.normalizer) in (nn.Identity, RunningNorm)


def _normalized(normalizer: nn.Module, features: Array) -> Array:
    if type(normalizer) is nn.Identity:
        return features
    assert isinstance(normalizer, RunningNorm)
    mean, variance = normalizer.running_mean.numpy(), normalizer.running_var.numpy()
    return (features - mean) / np.sqrt(variance + np.float32(normalizer.eps))
