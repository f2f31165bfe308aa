"""Everything that fast predictions cannot do: they stand for the methods of known, unmodified classes."""

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import Actor
from torch import nn

from sb3_energy.networks import Originals, RunningNorm, calls_are_original, hooks_of, is_untouched
from sb3_energy.policies.actor import BackboneActor, has_sb3_distribution
from sb3_energy.policies.categorical_critic import CategoricalCritic
from sb3_energy.policies.critics import EnsembleCritic
from sb3_energy.policies.fast_predict.numpy_networks import LAYERS
from sb3_energy.policies.quantile_critic import QuantileCritic
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refiners import Langevin, MetropolisAdjustedLangevin, RefinerSequence

_POLICY_METHODS = (
    *("_predict", "_gaussian_actions", "refine", "base", "start_base", "networks", "energy_fn", "bound_head"),
    *("obs_to_tensor", "is_vectorized_observation", "extract_features", "unscale_action"),
)
_CRITIC_METHODS = (
    *("forward", "encode", "evaluate", "outputs", "extract_features", "bind"),
    *("policy_values", "_policy_values", "target_values", "values_of", "value_networks"),
)
CRITICS = (EnsembleCritic, QuantileCritic, CategoricalCritic)
_METHODS: dict[type, Sequence[str]] = {
    **dict.fromkeys((*LAYERS, FlattenExtractor, RunningNorm), ("forward",)),
    **dict.fromkeys(CRITICS, _CRITIC_METHODS),
    BackboneActor: ("forward", "_predict", "get_action_dist_params", "extract_features"),
    Actor: ("get_action_dist_params",),  # which ours calls
    Refinement: ("sample", "best", "thinned"),
    Langevin: ("init", "step", "kernel", "deterministic"),
    MetropolisAdjustedLangevin: ("init", "step", "propose", "deterministic"),
    RefinerSequence: ("init", "step", "turn", "deterministic", "lean"),
}
_REFINEMENTS = (Refinement, Langevin, MetropolisAdjustedLangevin, RefinerSequence)
_ORIGINALS = Originals(_METHODS)
_methods_of = attrgetter(*_POLICY_METHODS)
_KNOWN: list[tuple[Any, ...]] = []

Policy = TypeVar("Policy", bound=type)


def known_policy(cls: Policy) -> Policy:
    """Decorator of a refined policy whose methods fast predictions stand for. Subclasses that override one use torch."""
    _KNOWN.append(_methods_of(cls))
    return cls


def is_known(policy: Any) -> bool:
    """Whether the parts of a refined policy, but for the layers of its networks and its energy, are known and unchanged."""
    parts, space = (policy.actor, policy.critic), policy.observation_space
    return (
        _methods_of(type(policy)) in _KNOWN
        and type(policy.actor) is BackboneActor
        and type(policy.critic) in CRITICS
        and isinstance(space, spaces.Box)
        and np.issubdtype(space.dtype, np.floating)
        and not policy.actor.use_sde
        and all(type(part.features_extractor) is FlattenExtractor for part in parts)
        and all(type(part.normalizer) in (nn.Identity, RunningNorm) for part in parts)
        and all(is_untouched(module) for part in parts for module in part.modules())
        and not any(name in part.__dict__ for part in parts for name in _METHODS[type(part)])
        and not any(name in policy.__dict__ for name in _POLICY_METHODS)
    )


class Watch:
    """
    Notices when modules of a policy have other children, parameters in other memory, hooks, replaced methods, another class or
    another setting of a layer such as ``eps``. Numbers may change. Views keep memory alive: no other gets its address.

    :param policy: which :func:`is_known`
    """

    def __init__(self, policy: Any):
        parts = [part for name, part in policy._modules.items() if name != "critic_target" and part is not None]
        self._modules: list[nn.Module] = [policy, *(module for part in parts for module in part.modules())]
        self._hooks = hooks_of(self._modules)
        self._instances = [module.__dict__ for module in self._modules]  # a method put onto an instance makes it longer
        self._parents = [module._modules for module in self._modules if module._modules]
        self._owners = [module._parameters for module in self._modules if module._parameters]
        leaves = [module for module in self._modules if not module._modules and type(module) is not nn.Linear]
        self._settings = [(leaf.__dict__, name) for leaf in leaves for name in leaf.__dict__ if name in ("eps", "inplace")]
        self._originals = _ORIGINALS.of({*map(type, self._modules), *_REFINEMENTS, Actor})
        self._energy, self._space, self._state = policy.energy, policy.observation_space, self._current(policy)

    def is_unchanged(self, policy: Any) -> bool:
        """Whether the policy is as it was, and no method that a prediction stands for has been replaced."""
        return (
            policy.energy is self._energy
            and policy.observation_space is self._space
            and self._state == self._current(policy)
            and not any(self._hooks)
            and policy._squash_output
            and has_sb3_distribution(policy.actor)
            and _methods_of(type(policy)) in _KNOWN
            and self._originals.are_in_place()
            and calls_are_original()
        )

    def _current(self, policy: Any) -> tuple[Any, ...]:
        return (
            policy.critic.q_networks[:],
            [0 if p is None else p.data_ptr() for owner in self._owners for p in owner.values()],
            [*chain.from_iterable(map(dict.values, self._parents))],  # modules compare by identity
            [*map(type, self._modules)],
            [*map(len, self._instances)],
            [own.get(name) for own, name in self._settings],
        )
