"""Critics that estimate quantiles of the return."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from sb3_contrib.common.utils import quantile_huber_loss
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_energy.checks import check_integer
from sb3_energy.policies.critics import EnsembleCritic


class QuantileCritic(EnsembleCritic):
    """
    Each network gives quantiles of the return instead of its mean.
    The critics of TQC (Kuznetsov et al. 2020, section 3.1), network for network those of sb3-contrib.

    :param observation_space: Observation space
    :param action_space: Action space
    :param net_arch: Network architecture
    :param features_extractor: Network to extract features
        (a CNN when using images, a nn.Flatten() layer otherwise)
    :param features_dim: Number of features
    :param activation_fn: Activation function
    :param normalize_images: Whether to normalize images or not,
         dividing by 255.0 (True by default)
    :param n_quantiles: Number of quantiles of each critic.
    :param top_quantiles_to_drop_per_net: Largest quantiles of each critic which a target leaves out
        against overestimation.
    :param n_critics: Number of critic networks to create.
    :param share_features_extractor: Whether the features extractor is shared or not
        between the actor and the critic (this saves computation time)
    :param backbone: a name in :data:`sb3_energy.networks.BACKBONES`
    :param value_scale: ``"auto"``: the networks end with :class:`sb3_energy.networks.ScaledLinear`; ``"none"``: as in TQC
    :raises ValueError: if there is no critic or no quantile, all of them are dropped,
        a name is unknown or the backbone cannot have these widths
    :raises TypeError: if a subclass makes networks that cannot have a scale
    """

    policy_aggregate = "mean"

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        n_quantiles: int = 25,
        top_quantiles_to_drop_per_net: int = 2,
        n_critics: int = 2,
        share_features_extractor: bool = False,
        backbone: str = "plain",
        value_scale: str = "none",
    ):
        check_integer("n_quantiles", n_quantiles, minimum=1)
        if not 0 <= top_quantiles_to_drop_per_net < n_quantiles:
            raise ValueError(
                f"top_quantiles_to_drop_per_net must lie in [0, n_quantiles={n_quantiles}), "
                f"got {top_quantiles_to_drop_per_net!r}"
            )
        self.n_outputs = n_quantiles  # the parent's constructor builds networks of that size
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
            value_scale=value_scale,
        )
        self.n_quantiles = n_quantiles
        self.quantiles_total = n_quantiles * n_critics
        self.top_quantiles_to_drop_per_net = top_quantiles_to_drop_per_net

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters() | dict(
            n_quantiles=self.n_quantiles, top_quantiles_to_drop_per_net=self.top_quantiles_to_drop_per_net
        )
        del data["target_aggregate"]  # its targets join quantiles
        return data

    def forward(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:  # type: ignore[override]
        """
        Quantiles of the returns.

        :param obs: ``B`` observations
        :param actions: ``(B, A)``
        :return: ``(B, C, n_quantiles)``
        """
        return th.stack(super().forward(obs, actions), dim=1)

    known_forward: ClassVar[Callable[..., Any]] = forward

    def target_values(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        The quantiles of all critics together, without the largest ones (Kuznetsov et al. 2020, equation 12).

        :param obs: ``B`` observations
        :param actions: ``(B, A)``
        :return: ``(B, n)``, in ascending order
        """
        n_kept = self.quantiles_total - self.top_quantiles_to_drop_per_net * self.n_critics
        return self(obs, actions).flatten(1).sort(dim=1).values[:, :n_kept]

    def _policy_values(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        return self(obs, actions).mean(dim=2).mean(dim=1, keepdim=True)  # of all quantiles, as in TQC

    def td_loss(self, obs: PyTorchObs, actions: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """
        The quantile Huber loss, summed over nothing as in TQC.

        :param obs: ``B`` observations
        :param actions: ``(B, A)``
        :param targets: ``(B, n)``, held fixed; fewer than observations: of the first of these
        :return: scalar, in units of the scale
        """
        quantiles, targets = self.unscaled(self(obs, actions)[: len(targets)]), self.unscaled(targets)
        return quantile_huber_loss(quantiles, targets.unsqueeze(1), sum_over_quantiles=False)
