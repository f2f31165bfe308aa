"""What an algorithm with a refined policy adds to its updates: the entropy of what was refined, and what learns beside it."""

import math
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples

from sb3_energy.deferred import NonFiniteError, require
from sb3_energy.energies import log_tanh_jacobian, tempered
from sb3_energy.entropy import BaseEntropy
from sb3_energy.losses import distillation_loss
from sb3_energy.networks import FieldNetwork
from sb3_energy.policies.actor import BackboneActor
from sb3_energy.policies.features import first_observations
from sb3_energy.policies.heads import HeadBatch, HeadTraining
from sb3_energy.policies.refined_policy import RefinedPolicy
from sb3_energy.policies.unread_arguments import check_head_training
from sb3_energy.refinement.bases import Gaussian, latent
from sb3_energy.refinement.estimators import choose_estimator
from sb3_energy.refinement.proposals import draw_proposals, squashed_log_prob
from sb3_energy.refinement.records import refinement_records
from sb3_energy.refinement.starts import is_flow
from sb3_energy.registry import resolve
from sb3_energy.training.guards import Records, guarded_step
from sb3_energy.types import EnergyFn, EntropyContext, EntropyEstimator, RefinerInfo

LOOK_EVERY = 10
"""Of so many updates, what the refinement did in one is kept for the log: looking costs an evaluation of the critics."""


class RefinedUpdates(OffPolicyAlgorithm):
    """
    Mixin for off-policy algorithms with a refined policy.

    * The entropy estimator is chosen once the policy is there, and refused where it is not valid for its refiner.
    * The policy's learned head gets a step in each update, from weighted candidates.
    * The reverse drift that ``entropy_estimator="path"`` learns is the algorithm's, since no prediction needs it.
    """

    policy: RefinedPolicy
    actor: BackboneActor
    entropy_estimator: str | type[EntropyEstimator] | None
    entropy_estimator_kwargs: dict[str, Any] | None
    head_training_kwargs: dict[str, Any] | None
    update_particles: int

    def _setup_model(self) -> None:
        super()._setup_model()
        self._looks = True  # whether what the next refinement does is kept
        # The last one that was, and what came out of it
        self._looked_at: tuple[list[RefinerInfo], th.Tensor] | None = None
        refinement = self.policy.refinement
        self._estimator = choose_estimator(self.entropy_estimator, self.entropy_estimator_kwargs, refinement)
        self._head_training = self._make_head_training()
        if self.policy.head is not None:  # a part of what a flow learns from has followed the energy's gradient
            self.policy.check_energy(is_flow(refinement.refiner) and self._head_training.n_refined > 0)
        self.reverse_drift = self._make_reverse_drift()

    def _make_head_training(self) -> HeadTraining:
        if self.head_training_kwargs is not None and self.policy.head is None:
            raise ValueError(
                f"head_training_kwargs needs a refiner that learns, such as 'flow', got {self.head_training_kwargs!r}"
            )
        training = resolve({}, HeadTraining, self.head_training_kwargs, "head_training")
        if self.policy.head is not None:
            needed: Any = self.policy.refinement.refiner
            check_head_training(training, needed, hasattr(self.policy.head, "optimizer"))
        return training

    def _make_reverse_drift(self) -> FieldNetwork | None:
        if not getattr(self._estimator, "learns_reverse", False):
            return None
        actor, n_actions = self.actor, get_action_dim(self.action_space)
        network = FieldNetwork(actor.features_dim, n_actions, n_actions, actor.net_arch, backbone=self.policy.backbone)
        optimizer_class: Any = self.policy.optimizer_class
        network = network.to(self.device)
        optimizer = optimizer_class(network.parameters(), lr=self.lr_schedule(1), **self.policy.optimizer_kwargs)
        network.optimizer = optimizer
        return network

    def _entropy_estimate(
        self,
        obs: PyTorchObs,
        base_log_prob: th.Tensor,
        records: Records,
        base: Gaussian | None = None,
        energy: EnergyFn | None = None,
    ) -> th.Tensor:
        if isinstance(self._estimator, BaseEntropy):  # which asks for nothing
            return base_log_prob
        reverse = None if self.reverse_drift is None else partial(_reverse, self.reverse_drift, self.policy.features(obs))
        context = EntropyContext(
            base_log_prob,
            partial(self._propose, obs, base=base, energy=energy),
            partial(self.policy.simulate, obs, base=base, energy=energy, n_particles=self.update_particles),
            reverse,
        )
        found = self._estimator.estimate(context)
        require(th.isfinite(found.log_prob).all(), partial(_entropy_error, type(self._estimator).__name__))
        for name, values in (found.records or {}).items():
            records[name].append(values.mean())
        if found.loss is not None and self.reverse_drift is not None:
            with th.enable_grad():
                guarded_step(self.reverse_drift.optimizer, found.loss, "reverse_loss", records)  # type: ignore[arg-type]
        return found.log_prob

    def _distillation_loss(self, obs: PyTorchObs, ent_coef: th.Tensor) -> th.Tensor:
        base = self.policy.base(obs)
        latent = self.policy.refine(
            obs, base=Gaussian(base.mean.detach(), base.std.detach()), n_particles=self.update_particles
        )
        log_prob = squashed_log_prob(base, latent)
        return distillation_loss(log_prob, ent_coef)

    def _update_head(self, batch: ReplayBufferSamples, records: Records) -> None:
        head, policy = self.policy.head, self.policy
        if head is None or not hasattr(head, "optimizer"):  # of one coordinate there is no prefix
            return
        n = self._head_training.n_observations
        obs = first_observations(batch.observations, n)
        with th.no_grad():
            energy = tempered(policy.energy_fn(obs), policy.temperature)
            replayed = latent(batch.actions[:n])
            head_batch = HeadBatch(policy.features(obs), policy.base(obs), energy, replayed)
        loss, found = head.loss(head_batch, self._head_training)
        for name, value in found.items():
            records[name].append(value)
        guarded_step(head.optimizer, loss, "head_loss", records)

    def _head_optimizers(self) -> list[th.optim.Optimizer]:
        learned: tuple[Any, ...] = (self.policy.head, self.reverse_drift)
        return [module.optimizer for module in learned if hasattr(module, "optimizer")]

    def _propose(
        self,
        obs: PyTorchObs,
        n: int,
        uniform_fraction: float,
        base: Gaussian | None = None,
        energy: EnergyFn | None = None,
    ) -> tuple[th.Tensor, th.Tensor]:
        base = self.policy.base(obs) if base is None else base
        energy = self.policy.energy_fn(obs) if energy is None else energy
        particles, log_prob = draw_proposals(base, n, uniform_fraction)
        # Entropies and SAC's target entropy are those of actions on the box, not of what is squashed
        return tempered(energy, self.policy.temperature)(th.tanh(particles)), log_prob - log_tanh_jacobian(particles)

    def dump_logs(self) -> None:
        """Write the log, as SB3 does. What the refinement of one of the last updates did is worked out here."""
        if self._looked_at is not None:
            for name, value in refinement_records(*self._looked_at).items():
                if math.isfinite(value.item()):  # there may have been nothing to be said
                    self.logger.record(f"train/{name}", value.item())
        super().dump_logs()

    def _excluded_save_params(self) -> list[str]:
        own = ["_estimator", "_head_training", "_looked_at", "_looks", "reverse_drift"]
        return [*super()._excluded_save_params(), *own]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        if hasattr(self.policy.head, "optimizer"):
            state_dicts.append("policy.head.optimizer")
        if self.reverse_drift is not None:
            state_dicts += ["reverse_drift", "reverse_drift.optimizer"]
        return state_dicts, tensors


def _entropy_error(estimator: str) -> FloatingPointError:
    return NonFiniteError(
        f"the entropy by {estimator} is not finite",
        "a lower learning_rate, entropy_estimator='soft_value', or backbone='layer_norm'",
    )


def _reverse(network: FieldNetwork, features: th.Tensor, x: th.Tensor, remaining: float) -> th.Tensor:
    return network(features, x, x.new_full(x.shape[:2], remaining))
