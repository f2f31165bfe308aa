"""Behaviour cloning by explicit policies: regression of actions, or a mixture density."""

from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_energy.checks import check_choice, check_integer
from sb3_energy.keywords import plain_arguments
from sb3_energy.networks import MixtureDensityNetwork, find_backbone, make_backbone
from sb3_energy.offline.offline_algorithm import OfflineAlgorithm
from sb3_energy.offline.offline_dataset import Batch
from sb3_energy.offline.policies import OfflinePolicy

HEADS = ("mse", "mixture")
N_COMPONENTS = 8
MOST_COMPONENTS = 1024


class BCPolicy(OfflinePolicy):
    """
    A policy that says its action, or the density of it, in one pass.

    * ``head="mse"``: one action. Where an expert acts in two ways it learns their mean.
    * ``head="mixture"``: a mixture of Gaussians (Bishop 1994), which is drawn from. ``deterministic=True`` takes the mean of
      the component at which the density is highest.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param head: ``"mse"`` or ``"mixture"``
    :param n_components: number of Gaussians of a mixture (``None``: 8)
    :param backbone: a name in :data:`sb3_energy.networks.BACKBONES`, of one without batch normalisation
    :param kwargs: the arguments of :class:`~sb3_energy.offline.policies.OfflinePolicy`
    :raises ValueError: if a name or a number is not one of those that are accepted
    :raises TypeError: if something has the wrong type
    """

    @plain_arguments
    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        head: str = "mse",
        n_components: int | None = None,
        backbone: str = "plain",
        **kwargs: Any,
    ):
        check_choice("head", head, HEADS)
        if n_components is not None:
            check_integer("n_components", n_components, minimum=1, maximum=MOST_COMPONENTS)
            if head != "mixture":
                raise ValueError(f"n_components needs head='mixture', got {n_components!r} with head={head!r}")
        beside = find_backbone(backbone).beside
        if beside is not None:
            raise ValueError(f"backbone of a clone must not normalise over batches, got {backbone!r}; use {beside!r}")
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self.head, self.n_components, self.backbone = head, n_components, backbone
        self._build(lr_schedule)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = dict(head=self.head, n_components=self.n_components, backbone=self.backbone)
        return super()._get_constructor_parameters() | own

    def make_networks(self) -> None:
        """Make the network of the head."""
        if self.head == "mixture":
            self.network: nn.Module = MixtureDensityNetwork(
                self.features_dim,
                self.action_dim,
                self.net_arch,
                self.activation_fn,
                n_components=self.n_components or N_COMPONENTS,
                backbone=self.backbone,
            )
            return
        trunk, width = make_backbone(self.backbone, self.features_dim, self.net_arch, self.activation_fn)
        self.network = nn.Sequential(*trunk, nn.Linear(width, self.action_dim))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        found = self.network(self.features(observation))
        if self.head == "mse":
            return found
        return found.mode() if deterministic else found.sample(1).squeeze(1)


class BCCnnPolicy(BCPolicy):
    """Image variant of :class:`BCPolicy`: features by SB3's ``NatureCNN``. Same arguments."""

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = NatureCNN


class BCMultiInputPolicy(BCPolicy):
    """Variant of :class:`BCPolicy` for dict observations: features by SB3's ``CombinedExtractor``. Same arguments."""

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = CombinedExtractor


class BC(OfflineAlgorithm):
    """
    Behaviour cloning by an explicit policy: the clone that implicit ones are compared with. With
    ``policy_kwargs=dict(head="mse")`` it minimises the squared error of actions scaled to [-1, 1], with ``head="mixture"`` the
    negative log-likelihood of a mixture density network (Bishop 1994), whose ``loss`` is in nats and may be negative.

    Arguments are those of :class:`~sb3_energy.offline.offline_algorithm.OfflineAlgorithm`; those of the policy are
    :class:`BCPolicy`'s.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": BCPolicy,
        "CnnPolicy": BCCnnPolicy,
        "MultiInputPolicy": BCMultiInputPolicy,
    }
    policy: BCPolicy

    def _losses(self, batch: Batch) -> dict[str, th.Tensor]:
        found = self.policy.network(self.policy.features(batch.observations))
        if self.policy.head == "mse":
            return dict(loss=(found - batch.actions).square().mean())
        loss = -found.log_prob(batch.actions.unsqueeze(1)).mean()
        return dict(loss=loss, squared_error=(found.mode() - batch.actions).square().mean())
