"""Value of the best behaviour in the replay buffer, by expectile regression."""

import copy
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_energy.losses import expectile_loss, soft_td_target
from sb3_energy.networks import ScaledValues, ValueScale, default_activation, make_backbone


class BehaviourCritic(ScaledValues):
    """
    ``Q^{β*}(s, a)`` and ``V^{β*}(s)`` of the best policy within the data's actions: implicit Q-learning (Kostrikov et al.
    2022, equations 5 and 6), which never evaluates other actions. Rewards count alone, without entropy.

    :param features_dim: ``F``
    :param action_dim: ``A``
    :param net_arch: width of each layer of both networks
    :param activation_fn: activation function (``None``: the backbone's own)
    :param backbone: a name in :data:`sb3_energy.networks.BACKBONES`
    :param expectile: in [0.5, 1); 0.5 is the value of the data's average behaviour
    :param tau: of the target network's Polyak average
    :param value_scale: of the policy's critic, in units of which this one learns, too; ``None``: in the units of the reward
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        net_arch: list[int],
        activation_fn: type[nn.Module] | None = None,
        backbone: str = "plain",
        expectile: float = 0.9,
        tau: float = 0.005,
        value_scale: ValueScale | None = None,
    ):
        super().__init__()
        self.value_scale = value_scale
        activation_fn = default_activation(backbone, of_critic=True) if activation_fn is None else activation_fn
        trunk, width = make_backbone(backbone, features_dim + action_dim, net_arch, activation_fn)
        self.q_net = self.with_scale(nn.Sequential(*trunk, nn.Linear(width, 1)))
        trunk, width = make_backbone(backbone, features_dim, net_arch, activation_fn)
        self.v_net = self.with_scale(nn.Sequential(*trunk, nn.Linear(width, 1)))
        # the scale is the critic's: it is not copied
        self.q_net_target = copy.deepcopy(self.q_net, {id(value_scale): value_scale}).requires_grad_(False)
        self.expectile, self.tau = expectile, tau

    def make_optimizer(self, optimizer_class: Any, lr_schedule: Schedule, **kwargs: Any) -> None:
        """
        Construct the optimizer of the Q- and V-networks.

        :param optimizer_class: the policy's
        :param lr_schedule: its learning rate
        :param kwargs: its other arguments
        """
        learned = [*self.q_net.parameters(), *self.v_net.parameters()]
        self.optimizer = optimizer_class(learned, lr=lr_schedule(1), **kwargs)

    def loss(
        self,
        features: th.Tensor,
        actions: th.Tensor,
        rewards: th.Tensor,
        dones: th.Tensor,
        discounts: th.Tensor | float,
        next_features: th.Tensor,
    ) -> th.Tensor:
        """
        TD loss of the Q-network plus expectile loss of the V-network, as in IQL.

        :param features: ``(B, F)``, without a graph
        :param actions: ``(B, A)`` that were taken there
        :param rewards: ``(B, 1)``
        :param dones: ``(B, 1)``
        :param discounts: a number or ``(B, 1)``
        :param next_features: ``(B, F)``, without a graph
        :return: scalar, of both networks, in units of the scale
        """
        inputs = th.cat([features, actions], dim=1)
        with th.no_grad():
            next_values = self.v_net(next_features)
            targets = soft_td_target(rewards, dones, discounts, next_values, th.zeros_like(rewards), th.zeros(()))
            data_values = self.q_net_target(inputs)
        q_errors, v_errors = self.q_net(inputs) - targets, data_values - self.v_net(features)
        if self.value_scale is not None:
            q_errors, v_errors = self.unscaled(q_errors), self.unscaled(v_errors)
        return 0.5 * q_errors.square().mean() + expectile_loss(v_errors, self.expectile).mean()

    def follow(self) -> None:
        """Update the target network by a Polyak average."""
        with th.no_grad():
            th._foreach_lerp_(list(self.q_net_target.parameters()), list(self.q_net.parameters()), self.tau)

    def advantages(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        How much better an action is than the best behaviour in the data. Both values are of rewards alone and learn together,
        so what they have in common, how good the state is, is not in it.

        :param features: ``(B, F)``
        :param actions: ``(B, A)``
        :return: ``(B,)``, ``Q^{β*}(s, a) - V^{β*}(s)``, without a graph
        """
        with th.no_grad():
            return (self.q_net(th.cat([features, actions], dim=1)) - self.v_net(features)).squeeze(1)
