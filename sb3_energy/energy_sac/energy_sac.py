"""SAC whose actions are refined by its critic."""

import math
from collections import defaultdict
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, PyTorchObs, ReplayBufferSamples
from stable_baselines3.common.utils import polyak_update

from sb3_energy.checks import check_bool, check_integer, check_number
from sb3_energy.deferred import NonFiniteError, active_checks, require
from sb3_energy.energy_sac.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_energy.energy_sac.refined_updates import LOOK_EVERY, RefinedUpdates
from sb3_energy.fast_updates.capture import CapturableUpdates
from sb3_energy.fast_updates.lean_updates import LeanUpdates
from sb3_energy.fast_updates.sac_gradients import (
    SACGradients,
    are_autograds_own,
    is_temperature_free,
    temperature_loss_by_hand,
)
from sb3_energy.keywords import plain_arguments
from sb3_energy.losses import actor_loss, soft_td_target, temperature_loss
from sb3_energy.policies.actor import BackboneActor, Draw
from sb3_energy.policies.critics import EnsembleCritic
from sb3_energy.policies.refined_policy import RefinedPolicy
from sb3_energy.policies.unread_arguments import (
    check_estimator_is_asked,
    check_refined_updates,
    check_update_particles,
    refuse_policys_own_sde,
    runs_chains,
)
from sb3_energy.refinement.starts import is_flow
from sb3_energy.training.collection import TrackedCollection
from sb3_energy.training.experience_arguments import by_name, check_experience_arguments
from sb3_energy.training.guards import ENTROPY, READ_EVERY, Records, as_floats, guarded_step, require_gradients
from sb3_energy.training.keyword_places import check_policy_kwargs, check_policy_name, place_beside_algorithm
from sb3_energy.training.persistence import PersistentAlgorithm
from sb3_energy.types import EntropyEstimator, RefinerInfo

SelfEnergySAC = TypeVar("SelfEnergySAC", bound="EnergySAC")


class EnergySAC(CapturableUpdates, LeanUpdates, RefinedUpdates, TrackedCollection, PersistentAlgorithm, SAC):
    """
    Soft Actor-Critic with actions refined toward the Gibbs distribution ``exp(Q / α)`` of its own critic.

    The Gaussian actor, trained as in SAC (Haarnoja et al. 2018b), gives the first guess; the policy's refiner samples
    from there. With ``policy_kwargs=dict(refiner="none", backbone="plain")`` every update is SB3's SAC's, up to rounding, and
    with ``update="reference"`` bit by bit.

    How actions are refined is a matter of the policy (``policy_kwargs``, see
    :class:`sb3_energy.policies.refined_policy.RefinedPolicy`), because ``predict`` needs it; what follows matters in training.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param args: SAC's other arguments in SAC's order
    :param refine_exploration: whether the actions that collect experience are refined
    :param refine_target: whether the next actions in the critic's target are refined
    :param entropy_estimator: what stands for ``log π(a|s)`` of refined actions, in the temperature's update and, with
        ``refine_target``, in the critic's target: ``"base"``, ``"soft_value"``, ``"trace"``, ``"mixture"``, ``"path"``,
        ``"divergence"``, or a class; the refiner says which are valid for it and which it has by default (``None``)
    :param entropy_estimator_kwargs: Keyword arguments of the estimator
    :param update_particles: the most proposals that a chain or a draw of ``snis`` is chosen from in updates (refined targets,
        distillation, ``"mixture"``), where a batch of observations pays for them; refiners that compare particles keep theirs
    :param distillation_coef: weight of the loss that pulls the Gaussian toward its own refined actions, in units of
        the entropy coefficient; 0 switches it off
    :param head_training_kwargs: Keyword arguments of :class:`sb3_energy.policies.heads.HeadTraining`, for a refiner that
        learns
    :param update: ``"lean"``, or ``"reference"``: the arithmetic of SB3's own update, which takes up to twice as long
    :param fast_matmul: whether 32-bit matrices are multiplied by oneDNN in updates on a CPU; ``None``: if it is found to be as
        exact and faster when the model is made, and the update is lean
    :param capture: ``"cuda_graph"``: on a GPU, each update is recorded once for each batch size and then replayed;
        ``"compile"``: refinements go through ``torch.compile``, on any device; ``None``: neither
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param kwargs: all of SAC's keyword arguments
    :raises ValueError: if a name or a number is not one of those that are accepted
    :raises TypeError: if something has the wrong type
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    learns_potential: ClassVar[bool] = False
    default_update_particles: ClassVar[int] = 16
    policy: RefinedPolicy
    actor: BackboneActor
    critic: EnsembleCritic
    critic_target: EnsembleCritic

    @plain_arguments
    def __init__(
        self,
        policy: str | type[RefinedPolicy],
        env: GymEnv | str,
        *args: Any,
        refine_exploration: bool = True,
        refine_target: bool = False,
        entropy_estimator: str | type[EntropyEstimator] | None = None,
        entropy_estimator_kwargs: dict[str, Any] | None = None,
        update_particles: int = 16,
        distillation_coef: float = 0.0,
        head_training_kwargs: dict[str, Any] | None = None,
        update: str = "lean",
        fast_matmul: bool | None = None,
        capture: str | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        self.refine_exploration = refine_exploration
        self.refine_target = refine_target
        self.entropy_estimator = entropy_estimator
        self.entropy_estimator_kwargs = entropy_estimator_kwargs
        self.update_particles = update_particles
        self.distillation_coef = distillation_coef
        self.head_training_kwargs = head_training_kwargs
        self.update = update
        self.fast_matmul = fast_matmul
        self.capture = capture
        check_policy_name(self.policy_aliases, policy)
        if isinstance(policy, type) and not issubclass(policy, RefinedPolicy):
            raise TypeError(f"policy must be one of {list(self.policy_aliases)} or a RefinedPolicy, got {policy.__name__}")
        if isinstance(policy, type) and policy.has_potential and not self.learns_potential:
            raise TypeError(f"policy must be without a potential, which PGAC teaches, got {policy.__name__}")
        given = by_name(args, kwargs)
        check_experience_arguments(given)
        refuse_policys_own_sde(given.get("policy_kwargs"), given.get("use_sde", False))
        check_policy_kwargs(type(self), EnergySAC.__subclasses__(), policy, given.get("policy_kwargs"))
        super().__init__(policy, env, *args, **kwargs, _init_setup_model=False)  # type: ignore[misc]
        if _init_setup_model:
            self._setup_model()

    @classmethod
    def place_of(cls, name: str, arguments: dict[str, Any]) -> str | None:
        """
        :param name: of an argument that is not known
        :param arguments: all keyword arguments that were given
        :return: an error message that says where it belongs, if anywhere
        """
        return place_beside_algorithm(cls, EnergySAC.__subclasses__(), name, arguments)

    def _setup_model(self) -> None:
        super()._setup_model()
        self._check_settings()
        self._sync_temperature()

    def _check_settings(self) -> None:
        for name in ("refine_exploration", "refine_target"):
            setattr(self, name, check_bool(name, getattr(self, name)))
        self.update_particles = check_integer("update_particles", self.update_particles, minimum=1)
        self.distillation_coef = coef = check_number("distillation_coef", self.distillation_coef)
        refines = not self.policy.refinement.is_identity
        if coef > 0.0 and not refines:
            raise ValueError(f"distillation_coef={coef!r} needs refined actions to learn from, and refiner='none' makes none")
        if self.ent_coef_optimizer is None and refines:
            self._check_ent_coef(self.ent_coef_tensor.item())
        check_refined_updates(self.policy.refinement, self.refine_target)
        uses_estimate = self.ent_coef_optimizer is not None or self.refine_target
        check_estimator_is_asked(self._estimator, self.entropy_estimator, self.entropy_estimator_kwargs, uses_estimate)
        chooses = not is_flow(self.policy.refinement.refiner) and self._chooses_proposals(uses_estimate)
        check_update_particles(self.update_particles, self.default_update_particles, chooses)

    def _chooses_proposals(self, uses_estimate: bool) -> bool:
        """Whether anything in an update starts chains, and so asks for the most proposals of one."""
        return self.refine_target or self.distillation_coef > 0.0 or (uses_estimate and runs_chains(self._estimator))

    def _check_ent_coef(self, ent_coef: float) -> None:
        if not ent_coef > 0.0:
            raise ValueError(f"ent_coef is the temperature of the energy and must be above 0, got {self.ent_coef!r}")

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.refine_exploration:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        with self.policy.unrefined():
            return super()._sample_action(learning_starts, action_noise, n_envs)

    def _train(self, gradient_steps: int, batch_size: int) -> None:
        """Temperature, critic, actor, target networks."""
        self.policy.set_training_mode(True)
        self._begin_updates()
        records: Records = defaultdict(list)
        with self._matmul(batch_size):
            for gradient_step in range(gradient_steps):
                # What is recorded once has to look whenever it is replayed
                self._looks = self._captured is not None or (self._n_updates + gradient_step) % LOOK_EVERY == 0
                self._run_update(self._sample(batch_size), records)
                if gradient_step % self.target_update_interval == 0:
                    self._update_target()
                if gradient_step % READ_EVERY == READ_EVERY - 1:
                    records.update(as_floats(records))
        self._by_hand = None
        self._n_updates += gradient_steps
        self._sync_temperature()
        found = as_floats(records)
        self._entropy = found.pop(ENTROPY, [self._entropy])[-1]
        self._record(found)

    def _begin_updates(self) -> None:
        require_gradients()
        # Speed beside the plain path: what a user has changed, autograd has to see
        own = self._is_lean and are_autograds_own(self.actor, self.critic)
        self.actor.by_hand = self.critic.by_hand = own
        optimizers = self._optimizers()
        self._fuse(optimizers)
        self._update_learning_rate(optimizers)
        self._by_hand = SACGradients.of(self.actor, self.critic) if own and self.distillation_coef == 0.0 else None
        optimizer, log_ent_coef = self.ent_coef_optimizer, self.log_ent_coef
        learned = self._is_lean and optimizer is not None and log_ent_coef is not None
        self._temperature_by_hand = learned and is_temperature_free(log_ent_coef, optimizer)  # type: ignore[arg-type]

    def _update(self, batch: ReplayBufferSamples, records: Records) -> None:
        # Where it is captured, nothing in here may make the host wait for the device
        self.policy.update_normalization(batch.observations)
        if self.use_sde:
            self.actor.reset_noise()
        if not self.policy.refinement.is_identity:
            self._sync_temperature()
        draw, next_draw = (self._by_hand or self.actor).draw(batch.observations, batch.next_observations)
        ent_coef = self._update_temperature(batch.observations, draw.log_prob, records)
        self._update_critic(batch, next_draw, ent_coef, records)
        self._update_actor(batch.observations, draw, ent_coef, records)
        self._update_head(batch, records)

    def _optimizers(self) -> list[th.optim.Optimizer]:
        found = [self.actor.optimizer, self.critic.optimizer, *self._head_optimizers()]
        return found if self.ent_coef_optimizer is None else [*found, self.ent_coef_optimizer]

    def _update_temperature(self, obs: PyTorchObs, log_prob: th.Tensor, records: Records) -> th.Tensor:
        if self.ent_coef_optimizer is None or self.log_ent_coef is None:
            records[ENTROPY].append(-log_prob.detach().mean())
            records["ent_coef"].append(self.ent_coef_tensor)
            return self.ent_coef_tensor
        # Detached, so that no other loss changes it, see https://github.com/rail-berkeley/softlearning/issues/60
        ent_coef = th.exp(self.log_ent_coef.detach())
        with th.no_grad():
            estimate = self._entropy_estimate(obs, log_prob.detach(), records)
        records[ENTROPY].append(entropy := -estimate.mean())
        assert isinstance(self.target_entropy, float)
        if self._temperature_by_hand:
            loss = temperature_loss_by_hand(self.log_ent_coef, entropy, self.target_entropy)
        else:
            loss = temperature_loss(self.log_ent_coef, estimate, self.target_entropy)
        guarded_step(self.ent_coef_optimizer, loss, "ent_coef_loss", records, self._temperature_by_hand)
        records["ent_coef"].append(ent_coef)
        return ent_coef

    def _update_critic(self, batch: ReplayBufferSamples, next_draw: Draw, ent_coef: th.Tensor, records: Records) -> None:
        # For n-step replay, discount factor is gamma**n_steps (when no early termination)
        discounts = batch.discounts if batch.discounts is not None else self.gamma
        with th.no_grad():
            next_actions, next_log_prob = self._next_actions(batch.next_observations, next_draw, records)
            next_values = self.critic_target.target_values(batch.next_observations, next_actions)
            targets = soft_td_target(batch.rewards, batch.dones, discounts, next_values, next_log_prob, ent_coef)
        loss = (self._by_hand.critic_loss if self._by_hand else self.critic.td_loss)(
            batch.observations, batch.actions, targets
        )
        guarded_step(self.critic.optimizer, loss, "critic_loss", records, self._by_hand is not None)

    def _next_actions(self, next_obs: PyTorchObs, next_draw: Draw, records: Records) -> tuple[th.Tensor, th.Tensor]:
        if not self.refine_target or self.policy.refinement.is_identity:
            return next_draw.actions, next_draw.log_prob
        infos: list[RefinerInfo] | None = [] if self._looks else None
        base, energy = next_draw.base, self.policy.energy_fn(next_obs)
        next_actions = th.tanh(
            self.policy.refine(next_obs, base=base, energy=energy, infos=infos, n_particles=self.update_particles)
        )
        next_log_prob = self._entropy_estimate(next_obs, next_draw.log_prob, records, base=base, energy=energy)
        if infos is not None:
            self._looked_at = (infos, next_actions)
        return next_actions, next_log_prob

    def _update_actor(self, obs: PyTorchObs, draw: Draw, ent_coef: th.Tensor, records: Records) -> None:
        if self._by_hand:
            loss = self._by_hand.actor_loss(obs, draw, ent_coef)
        else:
            loss = actor_loss(draw.log_prob, self.critic.policy_values(obs, draw.actions), ent_coef)
        if self.distillation_coef > 0.0:
            distillation = self._distillation_loss(obs, ent_coef)
            records["distillation_loss"].append(distillation.detach())
            loss = loss + self.distillation_coef * distillation
        guarded_step(self.actor.optimizer, loss, "actor_loss", records, self._by_hand is not None)

    def _update_target(self) -> None:
        self._follow(self.critic.parameters(), self.critic_target.parameters())
        # Copy running stats, see GH issue #996
        polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)

    def _sync_temperature(self) -> None:
        value, kept = self._current_ent_coef().reshape(()), self.policy.temperature
        ok = th.isfinite(value) if self.policy.refinement.is_identity else th.isfinite(value) & (value > 0.0)
        require(ok, partial(_temperature_error, value))
        kept.copy_(value if active_checks() is None else th.where(ok, value, kept))

    def _record(self, records: dict[str, list[float]]) -> None:
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/fast_matmul", float(self._uses_fast_matmul), exclude="tensorboard")
        for name, values in records.items():
            known = [value for value in values if not math.isnan(value)]  # an update in which there was nothing to be said
            if known:
                self.logger.record(f"train/{name}", np.mean(known))
        self._record_returns()

    def learn(
        self: SelfEnergySAC,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "EnergySAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfEnergySAC:
        """
        Train, as SB3's SAC does.

        :param total_timesteps: The total number of samples (env steps) to train on
        :param callback: callback(s) called at every step with state of the algorithm.
        :param log_interval: for on-policy algos (e.g., PPO, A2C, ...) this is the number of
            training iterations before logging; for off-policy ones the number of episodes.
        :param tb_log_name: the name of the run for TensorBoard logging
        :param reset_num_timesteps: whether or not to reset the current timestep number (used in logging)
        :param progress_bar: Display a progress bar using tqdm and rich.
        :return: the trained model
        """
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)


def _temperature_error(value: th.Tensor) -> FloatingPointError:
    return NonFiniteError(f"the policy's temperature would become {value.item()}: training stops", "a fixed ent_coef")
