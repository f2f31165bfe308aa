"""Critics that estimate the distribution of the return on fixed bins."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_energy.checks import check_ends, check_integer
from sb3_energy.losses import categorical_loss, categorical_projection, soft_td_target
from sb3_energy.networks import BoundEnsemble, CategoricalMean, Stack, ValueScale, is_untouched
from sb3_energy.policies.critics import EnsembleCritic

MOST_BINS = 2**16


class CategoricalCritic(EnsembleCritic):
    """
    Each network gives the logits of a distribution of the return on evenly spaced bins, and its Q-value is the mean of that
    (C51, Bellemare, Dabney and Munos 2017). It learns by cross-entropy, whose gradient does not grow with the error, from the
    distribution of the target critic with the lower mean (FlashSAC, arXiv 2604.04539).

    :param observation_space: Observation space
    :param action_space: Action space
    :param net_arch: Network architecture
    :param features_extractor: Network to extract features
        (a CNN when using images, a nn.Flatten() layer otherwise)
    :param features_dim: Number of features
    :param activation_fn: Activation function
    :param normalize_images: Whether to normalize images or not,
         dividing by 255.0 (True by default)
    :param n_bins: number of bins
    :param support: centres of the lowest and the highest bin, in units of the reward, or of the scale, if there is one
    :param n_critics: Number of critic networks to create.
    :param share_features_extractor: Whether the features extractor is shared or not
        between the actor and the critic (this saves computation time)
    :param backbone: a name in :data:`sb3_energy.networks.BACKBONES`
    :param target_aggregate: the distribution of a target: ``"min"``, that with the lowest mean, or ``"mean"``, the mixture
    :param value_scale: ``"auto"``: bins are in units of the scale of the return, and move with it; ``"none"``: of the reward
    :raises ValueError: if there is no critic, fewer than two bins or an empty support,
        or the backbone is unknown or cannot have these widths
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        n_bins: int = 101,
        support: tuple[float, float] = (-5.0, 5.0),
        n_critics: int = 2,
        share_features_extractor: bool = False,
        backbone: str = "plain",
        target_aggregate: str = "min",
        value_scale: str = "none",
    ):
        check_integer("n_bins", n_bins, minimum=2, maximum=MOST_BINS)
        self.support = check_support("support", support)
        self.n_outputs = n_bins  # the parent's constructor builds networks of that size
        super().__init__(
            observation_space,
            action_space,
            net_arch=net_arch,
            features_extractor=features_extractor,
            features_dim=features_dim,
            activation_fn=activation_fn,
            normalize_images=normalize_images,
            n_critics=n_critics,
            share_features_extractor=share_features_extractor,
            backbone=backbone,
            target_aggregate=target_aggregate,
            value_scale=value_scale,
        )
        self.n_bins = n_bins
        self.mean = CategoricalMean(*self.support, n_bins)
        self.value_scale = ValueScale() if value_scale == "auto" else None
        self.preserves_values = False  # the bins are where they are, in units of the scale

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | dict(n_bins=self.n_bins, support=self.support)

    def with_scale(self, network: nn.Sequential) -> nn.Sequential:
        """
        Leave a network as it is: logits have no units. Their mean is scaled.

        :param network: that gives logits
        :return: the same network
        """
        return network

    def _means(self) -> list[nn.Module]:
        """The layers after those that give logits."""
        return [self.mean] if self.value_scale is None else [self.mean, self.value_scale]

    def value_networks(self) -> list[nn.Sequential]:
        """
        The networks up to their Q-values.

        :return: for each critic its network and the mean of what it gives
        """
        return [nn.Sequential(*q_net, *self._means()) for q_net in super().value_networks()]

    def stacks(self) -> list[Stack] | None:
        """
        Layers of each network up to its Q-value, for backpropagation by hand.

        :return: one stack for each network, or ``None`` where that is not wanted or a layer is unknown
        """
        means = self._means()
        stacks = self._logit_stacks() if all(map(is_untouched, means)) else None
        return None if stacks is None else [Stack((*stack.layers, *means)) for stack in stacks]

    def _logit_stacks(self) -> list[Stack] | None:
        return BoundEnsemble.stacks_of(list(self.q_networks)) if self.by_hand else None

    def logits(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        What the networks give.

        :param obs: ``B`` observations
        :param actions: ``(B, A)``
        :return: ``(B, C, n_bins)``
        """
        inputs, stacks = th.cat([self.encode(obs), actions], dim=1), self._logit_stacks()
        if stacks is None:
            return th.stack([q_net(inputs) for q_net in self.q_networks], dim=1)
        if not th.is_grad_enabled():
            return th.stack([stack.forward(inputs, []) for stack in stacks], dim=1)
        return th.stack([stack(inputs) for stack in stacks], dim=1)

    def forward(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        Q-values of all critics, as in SB3.

        :param obs: ``B`` observations
        :param actions: ``(B, A)``
        :return: ``(B, 1)`` for each critic
        """
        return self.scaled(self.mean(self.logits(obs, actions))).unbind(dim=1)

    known_forward: ClassVar[Callable[..., Any]] = forward

    def values_of(self, outputs: th.Tensor) -> th.Tensor:
        """
        The means of the distributions.

        :param outputs: ``(..., n_bins)`` logits
        :return: ``(...)``, in units of the reward
        """
        return self.scaled(self.mean(outputs).squeeze(-1))

    known_values_of: ClassVar[Callable[..., Any]] = values_of

    def target_values(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        A target critic's distribution of next returns: that with the lowest mean, or the mixture of all.

        :param obs: ``B`` observations
        :param actions: ``(B, A)``
        :return: ``(B, n_bins)`` probabilities
        """
        logits = self.logits(obs, actions)
        probabilities = th.softmax(logits, dim=-1)
        if self.target_aggregate == "mean":
            return probabilities.mean(dim=1)
        lowest = self.values_of(logits).argmin(dim=1)
        return probabilities[th.arange(len(lowest), device=lowest.device), lowest]

    def td_targets(
        self,
        rewards: th.Tensor,
        dones: th.Tensor,
        discounts: th.Tensor | float,
        next_values: th.Tensor,
        next_log_prob: th.Tensor,
        ent_coef: th.Tensor,
    ) -> th.Tensor:
        """
        The distribution of ``r + (1 - done) γ (G - α log π(a'|s'))`` where ``G`` has that of next returns, on the bins.

        :param rewards: ``(B, 1)``
        :param dones: ``(B, 1)``
        :param discounts: ``γ``, or ``(B, 1)`` from an n-step buffer
        :param next_values: ``(B, n_bins)`` probabilities, what :meth:`target_values` gave
        :param next_log_prob: ``(B, 1)``
        :param ent_coef: ``(1,)`` or scalar
        :return: ``(B, n_bins)`` probabilities
        """
        next_returns = self.scaled(self.mean.support).unsqueeze(0)
        returns = soft_td_target(rewards, dones, discounts, next_returns, next_log_prob, ent_coef)
        return categorical_projection(self.unscaled(returns), next_values, self.mean.support)

    def td_loss(self, obs: PyTorchObs, actions: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """
        Cross-entropy to the target's distribution.

        :param obs: ``B`` observations
        :param actions: ``(B, A)``
        :param targets: ``(B, n_bins)`` probabilities, held fixed; fewer than observations: of the first of these
        :return: scalar
        """
        return categorical_loss(self.logits(obs, actions)[: len(targets)], targets)

    def target_records(self, targets: th.Tensor) -> dict[str, th.Tensor]:
        """
        What the log says of targets.

        :param targets: ``(B, n_bins)`` probabilities
        :return: ``"outer_bins"``, the mean probability of the lowest and the highest bin together: where it is large, returns
            lie outside of the support
        """
        return {"outer_bins": (targets[:, 0] + targets[:, -1]).mean()}

    def q1_forward(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Q-value of the first critic, without gradients for the features extractor.

        :param obs: ``B`` observations
        :param actions: ``(B, A)``
        :return: ``(B, 1)``
        """
        with th.no_grad():
            features = self.extract_features(obs, self.features_extractor)
        return self.scaled(self.mean(self.q_networks[0](th.cat([features, actions], dim=1))))


def check_support(name: str, value: Any) -> tuple[float, float]:
    """
    Check the ends of a support.

    :param name: of the argument
    :param value: two numbers, a tuple or a list
    :return: as a tuple
    :raises ValueError: if they do not ascend or are not finite
    :raises TypeError: if they are not two numbers
    """
    return check_ends(name, value, "the centres of the lowest and the highest bin")
