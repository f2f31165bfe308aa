"""Ensembles of critics on a backbone of choice: encode once, evaluate many actions."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_energy.autodiff import with_gradient
from sb3_energy.checks import check_choice, check_integer
from sb3_energy.energies import weighed_q_values
from sb3_energy.losses import critic_loss, soft_td_target
from sb3_energy.networks import (
    BatchNorm,
    BoundEnsemble,
    ScaledValues,
    Stack,
    ValueScale,
    WeighFn,
    batch_norms,
    evaluate_particles,
    find_backbone,
    initialize_head,
    make_backbone,
    make_normalizer,
    project_to_unit_norms,
    running_statistics,
)
from sb3_energy.policies.features import NormalizedFeatures
from sb3_energy.types import BoundCritic

TARGET_AGGREGATES = ("min", "mean")
"""How a target joins the values of an ensemble."""

VALUE_SCALES = ("auto", "none")

SB3S_FORWARD = ContinuousCritic.forward
"""What layers by hand stand for: another one that a user has put there is called."""


class EnsembleCritic(ScaledValues, NormalizedFeatures, ContinuousCritic):
    """
    SB3's ensemble of Q-networks, which also evaluates many actions on features it has encoded once.
    With ``backbone="plain"`` it is SB3's, parameter by parameter and random number by random number.

    :param observation_space: Observation space
    :param action_space: Action space
    :param net_arch: Network architecture
    :param features_extractor: Network to extract features
        (a CNN when using images, a nn.Flatten() layer otherwise)
    :param features_dim: Number of features
    :param activation_fn: Activation function
    :param normalize_images: Whether to normalize images or not,
         dividing by 255.0 (True by default)
    :param n_critics: Number of critic networks to create.
    :param share_features_extractor: Whether the features extractor is shared or not
        between the actor and the critic (this saves computation time)
    :param backbone: a name in :data:`sb3_energy.networks.BACKBONES`
    :param target_aggregate: how the members' values are joined in the target: ``"min"`` (clipped double Q) or ``"mean"``
    :param value_scale: ``"auto"``: the networks end with :class:`sb3_energy.networks.ScaledLinear`; ``"none"``: as in SB3
    :raises ValueError: if there is no critic, or a name is unknown or the backbone cannot have these widths
    :raises TypeError: if a subclass makes networks that cannot have a scale
    """

    n_outputs: int = 1
    """Number of outputs of each network for one action."""

    policy_aggregate: ClassVar[str] = "min"
    """How the members' values are joined for the actor's loss."""

    warned_of_hooks: bool = False
    """Whether the warning has been shown that energies do not call hooks of the critic itself."""

    by_hand: bool = True
    """Whether derivatives are taken by hand where the layers are known, or all of them by autograd."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        n_critics: int = 2,
        share_features_extractor: bool = True,
        backbone: str = "plain",
        target_aggregate: str = "min",
        value_scale: str = "none",
    ):
        check_integer("n_critics", n_critics, minimum=1)
        check_choice("value_scale", value_scale, VALUE_SCALES)
        self.target_aggregate = check_choice("target_aggregate", target_aggregate, TARGET_AGGREGATES)
        super().__init__(
            observation_space,
            action_space,
            net_arch=net_arch,
            features_extractor=features_extractor,
            features_dim=features_dim,
            activation_fn=activation_fn,
            normalize_images=normalize_images,
            n_critics=0,  # they are made below
            share_features_extractor=share_features_extractor,
        )
        self.net_arch = net_arch
        self.features_dim = features_dim
        self.activation_fn = activation_fn
        self.n_critics = n_critics
        self.backbone = backbone
        self.has_unit_norms = find_backbone(backbone).has_unit_norms
        self.normalizer = make_normalizer(backbone, features_extractor, features_dim)
        self.value_scale = ValueScale() if value_scale == "auto" else None
        self.preserves_values = not self.has_unit_norms  # a head of fixed length cannot be multiplied
        for idx in range(n_critics):
            q_net = self.with_scale(self._make_q_net())
            self.add_module(f"qf{idx}", q_net)
            self.q_networks.append(q_net)
        self.has_batch_norm = any(isinstance(layer, BatchNorm) for layer in batch_norms(*self.q_networks))

    def _make_q_net(self) -> nn.Sequential:
        input_dim = self.features_dim + get_action_dim(self.action_space)
        trunk, trunk_dim = make_backbone(self.backbone, input_dim, self.net_arch, self.activation_fn)
        head = nn.Linear(trunk_dim, self.n_outputs)
        initialize_head(self.backbone, head)
        return nn.Sequential(*trunk, head)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | dict(
            net_arch=self.net_arch,
            features_extractor=self.features_extractor,
            features_dim=self.features_dim,
            activation_fn=self.activation_fn,
            n_critics=self.n_critics,
            share_features_extractor=self.share_features_extractor,
            backbone=self.backbone,
            target_aggregate=self.target_aggregate,
            value_scale="none" if self.value_scale is None else "auto",
        )

    def project(self) -> None:
        """Give the parameters of the Q-networks their lengths back, where the backbone has unit norms: after each step."""
        for q_net in self.q_networks if self.has_unit_norms else ():
            project_to_unit_norms(q_net)

    def encode(self, obs: PyTorchObs) -> th.Tensor:
        """
        Features of the observations. As in SB3, a shared features extractor learns from the actor's loss only.

        :param obs: ``B`` observations
        :return: ``(B, F)``
        """
        with th.set_grad_enabled(th.is_grad_enabled() and not self.share_features_extractor):
            return self.extract_features(obs, self.features_extractor)

    def stacks(self) -> list[Stack] | None:
        """
        Layers of each Q-network for backpropagation by hand.

        :return: one stack for each network, or ``None`` where that is not wanted or a layer is unknown
        """
        return BoundEnsemble.stacks_of(list(self.q_networks)) if self.by_hand else None

    def is_own(self, *methods: str) -> bool:
        """
        Check that methods have not been overridden.

        :param methods: names of methods
        :return: whether they are this class's, neither overridden nor replaced on the instance
        """
        return all(getattr(getattr(self, name), "__func__", None) is getattr(EnsembleCritic, name) for name in methods)

    def forward(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        Q-values of all critics, as in SB3.

        :param obs: ``B`` observations
        :param actions: ``(B, A)``
        :return: ``(B, 1)`` for each critic
        """
        stacks = self.stacks()
        if stacks is None or ContinuousCritic.forward is not SB3S_FORWARD:
            return super().forward(obs, actions)  # type: ignore[arg-type]
        inputs = th.cat([self.encode(obs), actions], dim=1)
        if not th.is_grad_enabled():
            return tuple(stack.forward(inputs, []) for stack in stacks)
        return tuple(stack(inputs) for stack in stacks)

    known_forward: ClassVar[Callable[..., Any]] = forward
    """The ``forward`` that agrees with :meth:`evaluate`."""

    def bind(self, features: th.Tensor) -> BoundCritic:
        """
        The critics at these features, for many actions and with gradients for the actions alone. Bind again after an update.

        :param features: ``(B, F)`` what :meth:`encode` returned, without a graph
        :return: ``(B, N, A) -> (C, B, N)``
        :raises TypeError: if only :meth:`forward` is overridden or replaced, which energies do not call
        """
        self._check_forward()
        own = self.is_own("evaluate", "outputs") and getattr(self.values_of, "__func__", None) is type(self).known_values_of
        with self.running_statistics():
            stacks = self.stacks() if own else None
        return partial(self.evaluate, features) if stacks is None else _BoundCritic(self, features, stacks)

    def _check_forward(self) -> None:
        if not self.is_own("evaluate", "outputs"):
            return
        if getattr(self.forward, "__func__", None) is not type(self).known_forward:
            raise TypeError(
                f"forward of {type(self).__name__} is overridden or replaced, and energies ask evaluate(features, actions), "
                "which does not go through it: override evaluate as well"
            )
        if (self._forward_hooks or self._forward_pre_hooks) and not self.warned_of_hooks:
            self.warned_of_hooks = True  # most hooks change nothing
            warnings.warn(
                f"hooks of {type(self).__name__} are called when it learns, and not by energies, which ask evaluate(features, "
                "actions): hook critic.q_networks to change what actions are refined by"
            )

    def evaluate(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Q-values of many actions for each observation: the means of each network's outputs.

        :param features: ``(B, F)`` what :meth:`encode` returned
        :param actions: ``(B, N, A)``
        :return: ``(C, B, N)``, one Q-value for each critic
        """
        return self.values_of(self.outputs(features, actions))

    def values_of(self, outputs: th.Tensor) -> th.Tensor:
        """
        Q-values of what networks give.

        :param outputs: ``(..., O)``
        :return: ``(...)``, the means
        """
        return outputs.mean(dim=-1)

    known_values_of: ClassVar[Callable[..., Any]] = values_of
    """The ``values_of`` that agrees with :meth:`stacks`."""

    td_targets = staticmethod(soft_td_target)
    """What a target critic's :meth:`target_values` become by a reward."""

    target_records: Callable[[th.Tensor], dict[str, th.Tensor]] | None = None
    """What the log says of targets, by name."""

    def value_networks(self) -> list[nn.Sequential]:
        """
        The networks up to their Q-values.

        :return: one for each critic
        """
        networks: Any = self.q_networks
        return list(networks)

    def outputs(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        The networks' outputs at many actions for each observation.

        :param features: ``(B, F)`` what :meth:`encode` returned
        :param actions: ``(B, N, A)``
        :return: ``(C, B, N, O)``, ``O`` outputs of each critic
        :raises ValueError: if the shapes do not fit together
        """
        check_shapes(features, actions)
        with self.running_statistics():
            if actions.shape[1] == 1:
                inputs = th.cat([features, actions.squeeze(1)], dim=1)
                return th.stack([q_net(inputs) for q_net in self.q_networks]).unsqueeze(2)
            return th.stack([evaluate_particles(q_net, features, actions) for q_net in self.q_networks])

    def running_statistics(self) -> AbstractContextManager[None]:
        """
        Within this context an energy evaluates actions by running statistics, in training mode too, where a backbone has them.

        :return: the context
        """
        return running_statistics(*self.q_networks) if self.has_batch_norm else nullcontext()

    def target_values(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        A target critic's values of next actions: the lowest Q-value (clipped double Q, Fujimoto et al. 2018) or the mean.

        :param obs: ``B`` observations
        :param actions: ``(B, A)``
        :return: ``(B, 1)``
        """
        q_values = th.cat(self(obs, actions), dim=1)
        if self.target_aggregate == "mean":
            return q_values.mean(dim=1, keepdim=True)
        return q_values.min(dim=1, keepdim=True).values

    def policy_values(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        The values that the actor maximises: the lowest Q-value, as in SAC. Where the layers are known, only derivatives with
        respect to the actions are computed.

        :param obs: ``B`` observations
        :param actions: ``(B, A)``
        :return: ``(B, 1)``
        """
        stacks = self.stacks() if actions.requires_grad else None
        if stacks is None:
            return self._policy_values(obs, actions)
        with th.no_grad():
            features = self.encode(obs)
        return with_gradient(*self.policy_value_and_gradient(stacks, features, actions.detach()), actions)

    def policy_value_and_gradient(
        self, stacks: list[Stack], features: th.Tensor, actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Q-values of the policy objective and their action gradients.

        :param stacks: what :meth:`stacks` returned
        :param features: ``(B, F)`` what :meth:`encode` returned
        :param actions: ``(B, A)``
        :return: ``(B, 1)``, the :meth:`policy_values`, and their derivatives ``(B, A)`` with respect to the actions, both
            without a graph
        """
        weigh = partial(weighed_q_values, aggregate=self.policy_aggregate)
        ensemble, sparse = BoundEnsemble(stacks, features), self.policy_aggregate == "min"
        values, gradients = ensemble.value_and_gradient(actions.unsqueeze(1), weigh, sparse)
        return values, gradients.squeeze(1)

    def _policy_values(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        return th.cat(self(obs, actions), dim=1).min(dim=1, keepdim=True).values

    def td_loss(self, obs: PyTorchObs, actions: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """
        Distance of the critics from their target.

        :param obs: ``B`` observations
        :param actions: ``(B, A)``
        :param targets: ``(B, 1)``, held fixed; fewer than observations: of the first of these, and the others count in
            statistics of the batch alone
        :return: scalar, in units of the scale
        """
        q_values = self(obs, actions)
        if len(targets) < len(actions):
            q_values = tuple(part[: len(targets)] for part in q_values)
        return critic_loss([self.unscaled(part) for part in q_values], self.unscaled(targets))

    def q1_forward(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Q-value of the first critic, without gradients for the features extractor.

        :param obs: ``B`` observations
        :param actions: ``(B, A)``
        :return: ``(B, 1)``
        """
        return super().q1_forward(obs, actions).mean(dim=1, keepdim=True)


class _BoundCritic:
    """
    Critics bound to features by :meth:`EnsembleCritic.bind`, where the layers are known.

    :param critic: whose networks these are
    :param features: ``(B, F)``
    :param stacks: the networks
    """

    def __init__(self, critic: EnsembleCritic, features: th.Tensor, stacks: list[Stack]):
        self.critic, self.features = critic, features
        self.ensemble = BoundEnsemble(stacks, features)

    def __call__(self, actions: th.Tensor) -> th.Tensor:
        if th.is_grad_enabled():  # the caller wants a graph
            return self.critic.evaluate(self.features, actions)
        check_shapes(self.features, actions)
        return self.ensemble.values(actions).mean(dim=-1)

    def value_and_gradient(self, actions: th.Tensor, weigh: WeighFn, sparse: bool) -> tuple[th.Tensor, th.Tensor]:
        check_shapes(self.features, actions)
        return self.ensemble.value_and_gradient(actions, weigh, sparse)


def check_shapes(features: th.Tensor, actions: th.Tensor) -> None:
    """
    Check the shapes of a batch of features and candidate actions.

    :param features: of observations
    :param actions: many for each of them
    :raises ValueError: if the shapes do not fit together
    """
    if actions.ndim != 3 or features.ndim != 2 or len(features) != len(actions):
        raise ValueError(
            "features and actions must have shapes (B, F) and (B, N, A), "
            f"got {tuple(features.shape)} and {tuple(actions.shape)}"
        )
