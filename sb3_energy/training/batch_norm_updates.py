"""The arithmetic of SAC's updates for networks with batch normalisation: whose batches its statistics are of."""

from dataclasses import dataclass

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples

from sb3_energy.networks import batch_statistics
from sb3_energy.policies.actor import Draw
from sb3_energy.policies.features import joined_observations
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.training.plain_updates import PlainUpdates


@dataclass
class BatchNormUpdates(PlainUpdates):
    """
    Layers of batch normalisation use the statistics of the batch where a network learns, and running averages of them
    everywhere else: for next actions, for the actor's loss of the critics, for energies and for whatever is learned beside.

    With ``joint_batch`` one batch has both ends of the transitions, ``(s, a)`` and ``(s', a')``, as CrossQ's (Bhatt et al.
    2024, section 3): critics see next actions, which are not in the replay buffer, by statistics that they are a part of. The
    target critics' are those of this batch, too (FlashSAC, arXiv 2604.04539), and else the critics' running ones.

    To be used within :func:`sb3_energy.networks.running_statistics` of actor and critics.

    :param joint_batch: whether statistics are those of both ends of the transitions
    """

    joint_batch: bool = False

    def draw(self, obs: PyTorchObs, next_obs: PyTorchObs) -> tuple[Draw, Draw]:
        """
        Sample the actor's actions: those that it learns from by the statistics of their batch, next ones by running ones.

        :param obs: ``B`` observations
        :param next_obs: the ``B`` observations after them
        :return: actions of the Gaussian actor at both, the second ones without a graph
        """
        with batch_statistics(self.actor):
            first = self.actor.draw_at(joined_observations(obs, next_obs) if self.joint_batch else obs)
        if self.joint_batch:
            n = len(first.actions) // 2
            first = Draw(first.actions[:n], first.log_prob[:n], Gaussian(first.base.mean[:n], first.base.std[:n]))
        return first, self.draw_next(next_obs)

    def target_values(self, batch: ReplayBufferSamples, next_actions: th.Tensor) -> th.Tensor:
        """
        Evaluate the target critic at the next observations and actions.

        :param batch: ``B`` transitions
        :param next_actions: ``(B, A)``
        :return: like those of :class:`PlainUpdates`
        """
        if not self.joint_batch:
            return super().target_values(batch, next_actions)
        with batch_statistics(self.critic_target):
            return self.critic_target.target_values(*_both_ends(batch, next_actions))[len(next_actions) :]

    def critic_loss(self, batch: ReplayBufferSamples, next_actions: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """
        TD loss of the critics by the statistics of the batch.

        :param batch: ``B`` transitions
        :param next_actions: ``(B, A)``
        :param targets: what :meth:`target_values` become by the reward
        :return: scalar, in units of the critic's scale
        """
        with batch_statistics(self.critic):
            if not self.joint_batch:
                return super().critic_loss(batch, next_actions, targets)
            return self.critic.td_loss(*_both_ends(batch, next_actions), targets)


def _both_ends(batch: ReplayBufferSamples, next_actions: th.Tensor) -> tuple[PyTorchObs, th.Tensor]:
    obs = joined_observations(batch.observations, batch.next_observations)
    return obs, th.cat([batch.actions, next_actions])
