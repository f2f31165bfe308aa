"""The loss of the head that a refiner has beside the energy, and its steps."""

from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_energy.energies import tempered
from sb3_energy.energy_sac.arguments import check_head_training
from sb3_energy.policies.features import first_observations
from sb3_energy.policies.heads import HeadBatch, HeadTraining
from sb3_energy.policies.refined_policy import RefinedPolicy
from sb3_energy.refinement.bases import latent
from sb3_energy.refinement.proposals import is_flow
from sb3_energy.registry import resolve
from sb3_energy.training.guards import Records, guarded_step


class HeadLearner:
    """
    Trains a policy's head from weighted candidates.

    :param training: candidates and batch of the head's loss
    """

    def __init__(self, training: HeadTraining):
        self.training = training

    @classmethod
    def of(cls, policy: RefinedPolicy, head_training_kwargs: dict[str, Any] | None) -> "HeadLearner | None":
        """
        Construct the learner of a policy's head.

        :param policy: the refined policy, whose energy is checked for what the head needs of it
        :param head_training_kwargs: keyword arguments of :class:`sb3_energy.policies.heads.HeadTraining`
        :return: the learner, or ``None`` if there is no head with parameters
        :raises ValueError: if the arguments are given and nothing would read them, or one is out of range
        :raises TypeError: if one has the wrong type
        """
        if policy.head is None:
            if head_training_kwargs is not None:
                raise ValueError(
                    f"head_training_kwargs needs a refiner that learns, such as 'flow', got {head_training_kwargs!r}"
                )
            return None
        training, refiner = resolve({}, HeadTraining, head_training_kwargs, "head_training"), policy.refinement.refiner
        learns = hasattr(policy.head, "optimizer")  # of a single coordinate there is no prefix to learn
        check_head_training(training, refiner, learns)
        if is_flow(refiner) and training.n_refined > 0:
            policy.check_energy(needs_gradient=True)  # refined candidates follow it
        return cls(training) if learns else None

    def step(self, policy: RefinedPolicy, batch: ReplayBufferSamples, records: Records) -> None:
        """
        One step of the head's optimizer.

        :param policy: whose head it is
        :param batch: transitions, of which the first ``n_observations`` are used
        :param records: loss and statistics are appended for the logger
        :raises FloatingPointError: if the loss or its gradient is not finite
        """
        head: Any = policy.head
        n = self.training.n_observations
        obs = first_observations(batch.observations, n)
        with th.no_grad():
            energy = tempered(policy.energy_fn(obs), policy.temperature)
            head_batch = HeadBatch(policy.features(obs), policy.base(obs), energy, latent(batch.actions[:n]))
        loss, found = head.loss(head_batch, self.training)
        for name, value in found.items():
            records[name].append(value)
        guarded_step(head.optimizer, loss, "head_loss", records)
