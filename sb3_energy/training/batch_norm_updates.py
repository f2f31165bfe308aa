"""The arithmetic of SAC's updates for networks with batch normalisation: whose batches its statistics are of."""

from dataclasses import dataclass

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_energy.networks import batch_statistics
from sb3_energy.policies.actor import Draw
from sb3_energy.training.plain_updates import PlainUpdates


@dataclass
class BatchNormUpdates(PlainUpdates):
    """
    Layers of batch normalisation use the statistics of the batch where a network learns, as CrossQ's do (Bhatt et al. 2024,
    section 3), and running averages of them everywhere else: for actions in the target and their values, for the actor's loss
    of the critics, for energies and for whatever is learned beside.

    To be used within :func:`sb3_energy.networks.running_statistics` of actor and critics.
    """

    def draw(self, obs: PyTorchObs, next_obs: PyTorchObs) -> tuple[Draw, Draw]:
        """
        Sample the actor's actions: those that it learns from by the statistics of their batch, next ones by running ones.

        :param obs: ``B`` observations
        :param next_obs: the ``B`` observations after them
        :return: actions of the Gaussian actor at both, the second ones without a graph
        """
        with batch_statistics(self.actor):
            first = self.actor.draw_at(obs)
        with th.no_grad():
            return first, self.actor.draw_at(next_obs)

    def critic_loss(self, obs: PyTorchObs, actions: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """
        TD loss of the critics by the statistics of the batch.

        :param obs: ``B`` observations
        :param actions: ``(B, A)``
        :param targets: like :meth:`target_values`
        :return: scalar
        """
        with batch_statistics(self.critic):
            return super().critic_loss(obs, actions, targets)
