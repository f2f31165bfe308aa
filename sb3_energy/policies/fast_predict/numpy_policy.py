"""The networks of a refined policy on numpy, and everything that fast predictions cannot do."""

import math
from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import nn

from sb3_energy.networks import Originals, RunningNorm, calls_are_original, hooks_of, is_untouched
from sb3_energy.policies.actor import BackboneActor
from sb3_energy.policies.critics import EnsembleCritic
from sb3_energy.policies.fast_predict.numpy_energies import FAST_ENERGIES, BoundEnergy, numpy_energy
from sb3_energy.policies.fast_predict.numpy_networks import LAYERS, Array, NumpyNetwork
from sb3_energy.policies.quantile_critic import QuantileCritic
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refiners import Langevin

_POLICY_METHODS = (
    *("_predict", "refine", "base", "start_base", "networks", "energy_fn", "bound_head"),
    *("obs_to_tensor", "is_vectorized_observation", "extract_features", "unscale_action"),
)
_ACTOR_METHODS = ("forward", "_predict", "get_action_dist_params", "extract_features")
_CRITIC_METHODS = (
    *("forward", "encode", "evaluate", "outputs", "extract_features", "bind"),
    *("policy_values", "_policy_values", "target_values"),
)
_DISTRIBUTION_METHODS = ("actions_from_params", "proba_distribution", "get_actions", "sample", "mode")

_METHODS: dict[type, Sequence[str]] = {
    **dict.fromkeys((*LAYERS, FlattenExtractor, RunningNorm), ("forward",)),
    **{BackboneActor: _ACTOR_METHODS, EnsembleCritic: _CRITIC_METHODS, QuantileCritic: _CRITIC_METHODS},
    SquashedDiagGaussianDistribution: _DISTRIBUTION_METHODS,
    Refinement: ("sample", "best", "thinned"),
    Langevin: ("init", "step", "kernel", "deterministic"),
}
_ORIGINALS = Originals(_METHODS)
_LOG_STD_MIN, _LOG_STD_MAX = np.float32(LOG_STD_MIN), np.float32(LOG_STD_MAX)
_methods_of = attrgetter(*_POLICY_METHODS)
_KNOWN: list[tuple[Any, ...]] = []

Policy = TypeVar("Policy", bound=type)


def known_policy(cls: Policy) -> Policy:
    """
    Decorator: a fast prediction stands for the methods of this class. A subclass that overrides one is predicted by torch.

    :param cls: a refined policy
    :return: the same
    """
    _KNOWN.append(_methods_of(cls))
    return cls


class NumpyPolicy:
    """
    Actor, critics and energy on numpy. Made by :meth:`of`.

    :param policy: of which every part is known
    :param networks: trunk and heads of the actor, and the critics
    """

    def __init__(self, policy: Any, networks: tuple[NumpyNetwork, NumpyNetwork, NumpyNetwork]):
        self._trunk, self._heads, self._critics = networks
        self._actor, self._critic, self._q_networks = policy.actor, policy.critic, list(policy.critic.q_networks)
        self._energy = numpy_energy(policy.energy, policy, self._critics)
        self._values = policy.energy, policy.observation_space
        parts = [part for name, part in policy._modules.items() if name != "critic_target" and part is not None]
        modules = [policy, *(module for part in parts for module in part.modules())]
        self._watched = _Watched(modules)
        self._originals = _ORIGINALS.of({*map(type, modules), SquashedDiagGaussianDistribution, Refinement, Langevin})

    @classmethod
    def of(cls, policy: Any) -> "NumpyPolicy | None":
        """
        :param policy: a refined policy
        :return: its networks, or ``None`` where a part of it is unknown or a user has changed one
        """
        actor, critic, space = policy.actor, policy.critic, policy.observation_space
        known = (
            _methods_of(type(policy)) in _KNOWN
            and type(actor) is BackboneActor
            and type(critic) in (EnsembleCritic, QuantileCritic)
            and isinstance(space, spaces.Box)
            and np.issubdtype(space.dtype, np.floating)
            and not actor.use_sde
            and all(_has_known_features(network) for network in (actor, critic))
            and all(map(is_untouched, (*actor.modules(), *critic.modules())))
            and _has_no_own(policy, _POLICY_METHODS)
            and _has_no_own(actor, _ACTOR_METHODS)
            and _has_no_own(critic, _CRITIC_METHODS)
            and calls_are_original()
        )
        if not known:
            return None
        parts = [
            NumpyNetwork.of(actor.latent_pi),
            NumpyNetwork.of(actor.mu, actor.log_std),
            NumpyNetwork.of(*critic.q_networks, n_actions=get_action_dim(policy.action_space)),
        ]
        found = None if None in parts else cls(policy, tuple(parts))  # type: ignore[arg-type]
        return found if found is not None and found.is_current(policy) else None

    def is_current(self, policy: Any) -> bool:
        """
        :param policy: whose networks these were
        :return: whether they still are, and no method that they stand for has been replaced
        """
        distribution = policy.actor.action_dist
        return (
            policy._squash_output
            and policy.energy is self._values[0]
            and policy.observation_space is self._values[1]
            and policy.critic.q_networks == self._q_networks  # modules compare by identity
            and type(distribution) is SquashedDiagGaussianDistribution
            and _has_no_own(distribution, _DISTRIBUTION_METHODS)
            and _methods_of(type(policy)) in _KNOWN
            and self._originals.are_in_place()
            and self._watched.is_unchanged()
        )

    def base(self, obs: Array) -> tuple[Array, Array] | None:
        """
        :param obs: ``(B, F)``, flat
        :return: means and standard deviations of the actor, ``(B, A)``, or ``None`` if one is not finite
        """
        hidden = self._trunk(_normalized(self._actor.normalizer, obs))[0]
        parameters = self._heads(hidden)
        if not math.isfinite(np.add.reduce(parameters, None)):
            return None
        mean, log_std = parameters
        std = np.exp(np.minimum(np.maximum(log_std, _LOG_STD_MIN), _LOG_STD_MAX))
        return mean, std

    def has_energy(self) -> bool:
        """
        :return: whether the energy is known, and the methods that it stands for have not been replaced
        """
        return self._energy is not None and all([known.originals.are_in_place() for known in FAST_ENERGIES.values()])

    def bound_energy(self, obs: Array) -> BoundEnergy:
        """
        :param obs: ``(B, F)``, flat
        :return: the energy there, which must be known
        """
        assert self._energy is not None
        return self._energy(_normalized(self._critic.normalizer, obs))

    def q_values(self, obs: Array, actions: Array) -> Array:
        """
        :param obs: ``(B, F)``, flat
        :param actions: ``(B, A)``, scaled to [-1, 1]
        :return: ``(B,)``, the lowest value, or the mean of all quantiles
        """
        outputs, _ = self._critics.bind(_normalized(self._critic.normalizer, obs))(actions[:, None])
        return outputs[:, :, 0].min(axis=0) if type(self._critic) is EnsembleCritic else outputs.mean(axis=(0, 2))


def _has_no_own(instance: Any, methods: Sequence[str]) -> bool:
    own = instance.__dict__
    return not any([name in own for name in methods])


def _has_known_features(network: Any) -> bool:
    return type(network.features_extractor) is FlattenExtractor and type(network.normalizer) in (nn.Identity, RunningNorm)


def _normalized(normalizer: Any, features: Array) -> Array:
    if type(normalizer) is nn.Identity:
        return features
    return (features - normalizer.running_mean.numpy()) / np.sqrt(normalizer.running_var.numpy() + np.float32(normalizer.eps))


class _Watched:
    """
    Notices when modules have other children, parameters in other memory, hooks, replaced methods, another class, or another
    setting of a layer such as ``eps``. Numbers may change. Views keep memory alive, so that no other gets its address.
    """

    def __init__(self, modules: list[nn.Module]):
        self._modules, self._hooks = modules, hooks_of(modules)
        self._instances = [module.__dict__ for module in modules]  # a method put onto an instance makes it longer
        self._parents = [module._modules for module in modules if module._modules]
        self._owners = [module._parameters for module in modules if module._parameters]
        self._settings = [
            (module.__dict__, name) for module in modules if not module._modules for name in _settings_of(module)
        ]
        self._state = self._current_state()

    def is_unchanged(self) -> bool:
        return not any(self._hooks) and self._state == self._current_state() and calls_are_original()

    def _current_state(self) -> tuple[list[Any], ...]:
        return (
            [0 if p is None else p.data_ptr() for owner in self._owners for p in owner.values()],
            [*chain.from_iterable(map(dict.values, self._parents))],  # modules compare by identity
            [*map(type, self._modules)],
            [*map(len, self._instances)],
            [own.get(name) for own, name in self._settings],
        )


def _settings_of(layer: nn.Module) -> list[str]:
    kept = [name for name in layer.__dict__ if not name.startswith("_") and name != "training"]
    return [] if type(layer) is nn.Linear else [name for name in kept if name != "normalized_shape"]
