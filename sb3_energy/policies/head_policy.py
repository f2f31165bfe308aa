"""The part of a refined policy that learns beside the energy."""

from typing import Any

import torch as th
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from sb3_energy.checks import check_keywords, did_you_mean, plain
from sb3_energy.keywords import accepted_keywords
from sb3_energy.networks import find_activation
from sb3_energy.policies.actor import BackboneActor
from sb3_energy.policies.heads import HEAD_ARGUMENTS, HEADS, LearnedHead
from sb3_energy.policies.network_arguments import check_activation, check_net_arch
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.types import Head, Refiner


class HeadPolicy(SACPolicy):
    """Part of a refined policy: builds the head that its refiner names, with an optimiser of its own, and binds it."""

    actor: BackboneActor
    backbone: str
    refinement: Refinement
    head: LearnedHead | None
    _head_kwargs: dict[str, Any] | None

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.head = None
        if self._head_kwargs is None:
            return
        kwargs: dict[str, Any] = dict(backbone=self.backbone, net_arch=self.actor.net_arch, activation_fn=nn.SiLU)
        kwargs |= {name: value for name, value in self._head_kwargs.items() if value is not None}
        head_class: Any = HEADS[self.refinement.refiner.head]  # type: ignore[index]
        head = head_class(self.actor.features_dim, get_action_dim(self.action_space), **kwargs).to(self.device)
        optimizer_class: Any = self.optimizer_class
        if any(True for _ in head.parameters()):  # a single coordinate has no prefix
            head.optimizer = optimizer_class(head.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)
        elif self._head_kwargs:
            raise ValueError(
                f"head_kwargs={self._head_kwargs!r} needs actions of more than one coordinate, got one, without prefix"
            )
        self.head = head

    def features(self, obs: PyTorchObs) -> th.Tensor:
        """
        The actor's features, which learned heads see too. They learn from the actor's loss only.

        :param obs: ``B`` observations
        :return: ``(B, F)``, without a graph
        """
        with th.no_grad():
            return self.actor.extract_features(obs, self.actor.features_extractor)

    def bound_head(self, obs: PyTorchObs) -> Head:
        """
        :param obs: ``B`` observations
        :return: what the learned head says there; nothing where the refiner needs none
        """
        return Head() if self.head is None else self.head.bind(self.features(obs))


def checked_head_kwargs(name: Any, refiner: Refiner, head_kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
    """
    :param name: of the refiner, as it was given
    :param refiner: which may need a head
    :param head_kwargs: the head's arguments
    :return: a copy of them, or ``None`` where the refiner needs no head
    :raises ValueError: if the refiner learns nothing, or wants a head that is not in ``HEADS``
    :raises TypeError: if they are no dict or hold others than the head takes
    """
    head = getattr(refiner, "head", None)
    if head is None:
        if head_kwargs is not None:
            raise ValueError(f"head_kwargs needs a refiner that learns, such as 'flow', got {head_kwargs!r} with {name!r}")
        return None
    if head not in HEADS:
        near = did_you_mean(head, HEADS)
        raise ValueError(f"the head of {type(refiner).__name__} must be one of {sorted(HEADS)}, got {head!r}{near}")
    if head_kwargs is not None and not isinstance(head_kwargs, dict):
        raise TypeError(f"head_kwargs must be a dict, got {head_kwargs!r}")
    found = plain(dict(head_kwargs or {}))
    check_keywords(f"head_kwargs of refiner={name!r}", found, sorted(_head_arguments(head)))
    if found.get("activation_fn") is not None:
        found["activation_fn"] = find_activation(found["activation_fn"])
    check_net_arch("net_arch of head_kwargs", found.get("net_arch"), of_two=False)
    check_activation("activation_fn of head_kwargs", found.get("activation_fn"))
    return found


def _head_arguments(head: str) -> list[str]:
    """Of one of the user's own, what its constructor takes beside the sizes."""
    known = HEAD_ARGUMENTS.get(head)
    return list(known) if known else sorted(set(accepted_keywords(HEADS[head]) or ()) - {"features_dim", "action_dim"})
