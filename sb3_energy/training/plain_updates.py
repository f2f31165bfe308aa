"""The arithmetic of SAC's updates as Stable-Baselines3 does it, which faster ones must reproduce."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples
from stable_baselines3.common.utils import polyak_update

from sb3_energy.losses import actor_loss, temperature_loss
from sb3_energy.policies.actor import BackboneActor, Draw
from sb3_energy.policies.critics import EnsembleCritic


@dataclass
class PlainUpdates:
    """
    Batches, draws, losses and target networks of SAC (Haarnoja et al. 2018b), with gradients by autograd.

    :param actor: the Gaussian actor
    :param critic: the critics
    :param critic_target: the target critics
    """

    actor: BackboneActor
    critic: EnsembleCritic
    critic_target: EnsembleCritic

    has_gradient: ClassVar[frozenset[str]] = frozenset()
    """Names of the losses whose gradients are left in the parameters' ``grad``, so that they need no graph."""

    def sample(self, buffer: Any, batch_size: int, env: Any) -> ReplayBufferSamples:
        """
        Sample a batch from the replay buffer.

        :param buffer: replay buffer
        :param batch_size: number of transitions
        :param env: ``VecNormalize`` environment that normalizes them, or ``None``
        :return: transitions
        """
        return buffer.sample(batch_size, env=env)

    def draw(self, obs: PyTorchObs, next_obs: PyTorchObs) -> tuple[Draw, Draw]:
        """
        Sample the actor's actions for the actor loss and the TD target.

        :param obs: ``B`` observations
        :param next_obs: the ``B`` observations after them
        :return: actions of the Gaussian actor at both, the second ones without a graph
        """
        return self.actor.draw(obs, next_obs)

    def temperature_loss(self, log_ent_coef: th.Tensor, log_prob: th.Tensor, target_entropy: float) -> th.Tensor:
        """
        Loss of the entropy coefficient.

        :param log_ent_coef: ``(1,)``, learned
        :param log_prob: ``(B, 1)``, without a graph
        :param target_entropy: in nats
        :return: scalar
        """
        return temperature_loss(log_ent_coef, log_prob, target_entropy)

    def draw_next(self, next_obs: PyTorchObs) -> Draw:
        """
        Sample the actor's actions for the TD target alone, in an update in which the actor does not learn.

        :param next_obs: the ``B`` observations after those of the transitions
        :return: actions of the Gaussian actor, without a graph
        """
        with th.no_grad():
            return self.actor.draw_at(next_obs)

    def target_values(self, batch: ReplayBufferSamples, next_actions: th.Tensor) -> th.Tensor:
        """
        Evaluate the target critic at the next observations and actions.

        :param batch: ``B`` transitions
        :param next_actions: ``(B, A)``
        :return: ``(B, 1)`` values of the target critic, ``(B, n_quantiles)``, or ``(B, n_bins)`` probabilities
        """
        return self.critic_target.target_values(batch.next_observations, next_actions)

    def critic_loss(self, batch: ReplayBufferSamples, next_actions: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """
        TD loss of the critics.

        :param batch: ``B`` transitions
        :param next_actions: ``(B, A)``, which count where statistics are those of all rows
        :param targets: what :meth:`target_values` become by the reward
        :return: scalar, in units of the critic's scale
        """
        return self.critic.td_loss(batch.observations, batch.actions, targets)

    def actor_loss(self, obs: PyTorchObs, draw: Draw, ent_coef: th.Tensor) -> th.Tensor:
        """
        SAC's loss of the Gaussian actor.

        :param obs: ``B`` observations
        :param draw: actions at them, the first result of :meth:`draw`
        :param ent_coef: ``α``, scalar or ``(1,)``
        :return: scalar, in units of the critic's scale
        """
        return self.critic.unscaled(actor_loss(draw.log_prob, self.critic.policy_values(obs, draw.actions), ent_coef))

    def follow(self, parameters: Iterable[th.Tensor], targets: Iterable[th.Tensor], tau: float) -> None:
        """
        Polyak average: ``target + tau (parameter - target)``.

        :param parameters: of the networks
        :param targets: of the target networks, changed in place
        :param tau: in [0, 1]
        """
        polyak_update(parameters, targets, tau)
