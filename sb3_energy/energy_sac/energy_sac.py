"""SAC whose actions are refined by its critic."""

import math
from collections import defaultdict
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, PyTorchObs, ReplayBufferSamples
from stable_baselines3.common.utils import get_parameters_by_name, polyak_update
from stable_baselines3.common.vec_env import VecEnv

from sb3_energy.checks import check_bool, check_choice, check_integer, check_number, check_unit_interval, plain
from sb3_energy.deferred import NonFiniteError, active_checks, require
from sb3_energy.energy_sac.arguments import (
    check_estimator_is_asked,
    check_joint_batch,
    check_refined_updates,
    check_rows,
    check_scaled_ent_coef,
    check_update_particles,
    refuse_policys_own_sde,
    runs_chains,
    target_entropy_of,
)
from sb3_energy.energy_sac.entropy_term import EntropyTerm
from sb3_energy.energy_sac.exploration import Exploration, choose_exploration
from sb3_energy.energy_sac.head_learner import HeadLearner
from sb3_energy.energy_sac.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_energy.energy_sac.refinement_log import LOG_EVERY, RefinementLog
from sb3_energy.fast_updates.capture import CAPTURES, CompiledSample, captured_updates, check_capture
from sb3_energy.fast_updates.captured_updates import CapturedUpdates
from sb3_energy.fast_updates.lean_updates import UPDATES, check_fast_matmul, matmul_precision, set_fused, uses_fast_matmul
from sb3_energy.fast_updates.sac_gradients import choose_updates
from sb3_energy.keywords import plain_arguments
from sb3_energy.losses import distillation_loss
from sb3_energy.networks import running_statistics
from sb3_energy.policies.actor import BackboneActor, Draw
from sb3_energy.policies.arguments import check_action_bounds
from sb3_energy.policies.causes import broken_network
from sb3_energy.policies.critics import EnsembleCritic
from sb3_energy.policies.own_energy import check_energy_at
from sb3_energy.policies.refined_policy import RefinedPolicy
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.estimators import choose_estimator
from sb3_energy.refinement.proposals import is_flow, squashed_log_prob
from sb3_energy.refiners import Identity
from sb3_energy.training.arguments import (
    by_name,
    check_buffer,
    check_experience_arguments,
    check_rate,
    check_training_arguments,
)
from sb3_energy.training.causes import action_error, raise_with_cause
from sb3_energy.training.guards import (
    ENTROPY,
    READ_EVERY,
    Records,
    as_floats,
    check_finite,
    check_transition,
    guarded_step,
    require_gradients,
)
from sb3_energy.training.keyword_places import check_policy_kwargs, check_policy_name, place_beside_algorithm
from sb3_energy.training.persistence import PersistentAlgorithm
from sb3_energy.training.plain_updates import PlainUpdates
from sb3_energy.training.return_tracker import ReturnTracker
from sb3_energy.training.value_units import Valued, ValueUnits
from sb3_energy.types import EntropyEstimator, RefinerInfo

RETURNS = "value_units.returns"
"""Name of parameters that only a model with ``value_scale="auto"`` has."""

SelfEnergySAC = TypeVar("SelfEnergySAC", bound="EnergySAC")


class EnergySAC(PersistentAlgorithm, SAC):
    """
    Soft Actor-Critic with actions refined toward the Gibbs distribution ``exp(Q / α)`` of its own critic.

    The Gaussian actor, trained as in SAC (Haarnoja et al. 2018b), is the initial distribution of the policy's refiner. With
    ``policy_kwargs=dict(refiner="none", backbone="plain")`` every update is that of SB3's SAC up to rounding, and with
    ``update="reference"`` bit by bit.

    The refinement itself is configured by ``policy_kwargs`` (see :class:`sb3_energy.policies.refined_policy.RefinedPolicy`),
    since ``predict`` needs it. The arguments below concern training.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param args: SAC's other arguments in SAC's order
    :param refine_exploration: whether the actions that collect experience are refined
    :param exploration: what actions that collect experience are beside the policy's own: ``"held_actions"``,
        ``"held_noise"``, ``"none"``, or a class (``None``: ``"held_actions"``, and ``"none"`` with ``action_noise`` or
        ``use_sde`` and in SB3's SAC, which is ``policy_kwargs=dict(refiner="none", backbone="plain")``)
    :param exploration_kwargs: Keyword arguments of the exploration
    :param refine_target: whether the next actions in the critic's target are refined
    :param entropy_estimator: estimator of ``log π(a|s)`` of refined actions, in the temperature's loss and, with
        ``refine_target``, in the critic's target: ``"base"``, ``"soft_value"``, ``"trace"``, ``"mixture"``, ``"path"``,
        ``"divergence"``, ``"smc"``, or a class (``None``: the refiner's default). Each refiner has its own valid ones
    :param entropy_estimator_kwargs: Keyword arguments of the estimator
    :param update_particles: in updates (refined targets, distillation, ``"mixture"``), the most proposals from which the start
        of a chain or a draw of ``snis`` is chosen; refiners that compare particles keep their own number
    :param actor_delay: the actor and the entropy coefficient are updated in one of so many updates, as TD3's ``policy_delay``
    :param joint_batch: whether critics, target critics and actor see both ends of transitions in one batch, whose statistics
        layers of batch normalisation use, as in CrossQ; needs such layers, which ``backbone="flash"`` has
    :param distillation_coef: weight of the forward KL divergence from the refined policy to the Gaussian, in units of the
        entropy coefficient; 0 switches it off
    :param head_training_kwargs: Keyword arguments of :class:`sb3_energy.policies.heads.HeadTraining`, for a refiner that
        learns
    :param update: ``"lean"``, or ``"reference"``: the arithmetic of SB3's own update, which takes up to twice as long
    :param fast_matmul: whether oneDNN multiplies 32-bit matrices in updates on a CPU (``None``: if the update is lean and a
        test at construction finds oneDNN as exact and faster)
    :param capture: experimental. ``"cuda_graph"``: on a GPU, each update is recorded once for each batch size and then
        replayed; ``"compile"``: refinements go through ``torch.compile``, on any device; ``None``: neither
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param kwargs: all of SAC's keyword arguments
    :raises ValueError: if a name or a number is not accepted
    :raises TypeError: if an argument has the wrong type
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
        exploration: str | type[Exploration] | None = None,
        exploration_kwargs: dict[str, Any] | None = None,
        refine_target: bool = False,
        entropy_estimator: str | type[EntropyEstimator] | None = None,
        entropy_estimator_kwargs: dict[str, Any] | None = None,
        update_particles: int = 16,
        actor_delay: int = 1,
        joint_batch: bool = False,
        distillation_coef: float = 0.0,
        head_training_kwargs: dict[str, Any] | None = None,
        update: str = "lean",
        fast_matmul: bool | None = None,
        capture: str | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        self.refine_exploration = refine_exploration
        self.exploration = exploration
        self.exploration_kwargs = exploration_kwargs
        self.refine_target = refine_target
        self.entropy_estimator = entropy_estimator
        self.entropy_estimator_kwargs = entropy_estimator_kwargs
        self.update_particles = update_particles
        self.actor_delay = actor_delay
        self.joint_batch = joint_batch
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
        Suggest where a misplaced keyword argument belongs.

        :param name: name of an unknown argument
        :param arguments: all keyword arguments
        :return: an error message with the place where the argument belongs, or ``None``
        """
        return place_beside_algorithm(cls, EnergySAC.__subclasses__(), name, arguments)

    def _setup_model(self) -> None:
        check_choice("capture", self.capture, (*CAPTURES, None))
        check_choice("update", self.update, UPDATES)
        self.fast_matmul = plain(self.fast_matmul)
        check_fast_matmul(self.fast_matmul, self.device)
        check_training_arguments(self)
        self.target_entropy = target_entropy_of(self.target_entropy, get_action_dim(self.action_space))
        check_buffer(self)
        super()._setup_model()
        policy = self.policy
        policy.check_energy()
        self._entropy = 0.0  # of the policy in the last update, in nats
        self.return_tracker = ReturnTracker(self.n_envs, self.gamma)
        self._explorer = choose_exploration(self._exploration_of(policy), self.exploration_kwargs)
        self.value_units = None if self.critic.value_scale is None else ValueUnits(self)
        estimator = choose_estimator(self.entropy_estimator, self.entropy_estimator_kwargs, policy.refinement)
        self.head_learner = HeadLearner.of(policy, self.head_training_kwargs)
        self.entropy_term = EntropyTerm(estimator, policy, self.lr_schedule)
        self.refinement_log = RefinementLog()
        self._setup_updates()
        self._check_settings()
        self._sync_temperature()

    def _exploration_of(self, policy: RefinedPolicy) -> str | type[Exploration]:
        """The argument, or what stands for ``None``."""
        if self.exploration is not None:
            return self.exploration
        return "none" if policy.arguments.is_sb3s or self.action_noise is not None or self.use_sde else "held_actions"

    @property
    def _refines(self) -> bool:
        return not isinstance(self.policy.refinement.refiner, Identity)  # a user may have replaced the refinement

    def _setup_updates(self) -> None:
        self._actor_is_due = True
        self.joint_batch = check_bool("joint_batch", self.joint_batch)
        self.actor_delay = check_integer("actor_delay", self.actor_delay, minimum=1)
        if self.joint_batch:
            check_joint_batch(self.actor, self.critic, self.policy.backbone)
            # Target critics have statistics of their own; those of observations are the critics'
            stats = [get_parameters_by_name(critic, ["normalizer.running_"]) for critic in (self.critic, self.critic_target)]
            self.batch_norm_stats, self.batch_norm_stats_target = stats
        for network in (self.actor, self.critic, self.critic_target):
            network.by_hand = self.update == "lean"
        self._updates = PlainUpdates(self.actor, self.critic, self.critic_target)
        self._uses_fast_matmul = uses_fast_matmul(self.fast_matmul, self.update, self.device)
        self._captured: CapturedUpdates | None = None
        if self.capture is not None:
            check_capture(self, self.entropy_term.estimator)
        if self.capture == "compile":
            self.policy.compiled_sample = CompiledSample()
        if self.capture == "cuda_graph":
            self._captured = captured_updates(self)

    def _check_settings(self) -> None:
        for name in ("refine_exploration", "refine_target"):
            setattr(self, name, check_bool(name, getattr(self, name)))
        self.update_particles = check_integer("update_particles", self.update_particles, minimum=1)
        self.distillation_coef = coef = check_number("distillation_coef", self.distillation_coef)
        if coef > 0.0 and not self._refines:
            raise ValueError(f"distillation_coef={coef!r} needs refined actions to learn from, and refiner='none' makes none")
        check_scaled_ent_coef(self.ent_coef, self.policy.arguments.scale_of_values)
        if self.ent_coef_optimizer is None and self._refines:
            self._check_ent_coef(self.ent_coef_tensor.item())
        check_refined_updates(self.policy.refinement, self.refine_target)
        uses_estimate, estimator = self.ent_coef_optimizer is not None or self.refine_target, self.entropy_term.estimator
        check_estimator_is_asked(estimator, self.entropy_estimator, self.entropy_estimator_kwargs, uses_estimate)
        chooses = not is_flow(self.policy.refinement.refiner) and self._chooses_proposals(uses_estimate)
        check_update_particles(self.update_particles, self.default_update_particles, chooses)
        self._explorer.check(self.policy, self.refine_exploration)
        check_rows(self.batch_size, self.policy.has_batch_norm and not self.joint_batch)

    def _chooses_proposals(self, uses_estimate: bool) -> bool:
        """Whether anything in an update starts chains, so that ``update_particles`` has an effect."""
        runs = uses_estimate and runs_chains(self.entropy_term.estimator)
        return self.refine_target or self.distillation_coef > 0.0 or runs

    def _check_ent_coef(self, ent_coef: float) -> None:
        if not ent_coef > 0.0:
            raise ValueError(f"ent_coef is the temperature of the energy and must be above 0, got {self.ent_coef!r}")

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Sample the replay buffer and do the updates.

        :param gradient_steps: number of updates
        :param batch_size: transitions in each of them
        :raises ValueError: if a hyperparameter is out of range by now
        :raises FloatingPointError: if a loss, its gradient or an energy is not finite; the error names its cause
        """
        for name in ("tau", "gamma"):  # no loss would show that they are out of range
            if not 0.0 <= getattr(self, name) <= 1.0:
                check_unit_interval(name, getattr(self, name))
        try:
            self._train(gradient_steps, batch_size)
        except (NonFiniteError, ValueError) as error:  # torch's distributions raise the second one for a mean that is NaN
            raise_with_cause(self, error)
            raise

    def _train(self, gradient_steps: int, batch_size: int) -> None:
        self.policy.set_training_mode(True)
        units = self.value_units
        if units is not None:
            units.begin(self)
        self._begin_updates()
        # What a user has changed is not recorded: a graph would repeat what a hook did once
        captured = self._captured if self.actor.by_hand else None
        update, records = self._update if captured is None else captured, defaultdict[str, list[Any]](list)
        precision = matmul_precision(self._uses_fast_matmul, self.fast_matmul is True, batch_size)
        normalizes = self.policy.has_batch_norm or self.joint_batch
        with precision, running_statistics(self.actor, self.critic) if normalizes else nullcontext():
            for gradient_step in range(gradient_steps):
                self._actor_is_due = (self._n_updates + gradient_step + 1) % self.actor_delay == 0
                self.refinement_log.is_due = captured is not None or (self._n_updates + gradient_step) % LOG_EVERY == 0
                self.refinement_log.batch = batch = self._sample(batch_size)
                if units is not None:
                    units.note(batch.rewards)
                update(batch, records)
                if gradient_step % self.target_update_interval == 0:
                    self._update_target()
                self._update_others(batch, records)
                if gradient_step % READ_EVERY == READ_EVERY - 1:
                    records.update(as_floats(records))
        self._updates = PlainUpdates(self.actor, self.critic, self.critic_target)
        self._n_updates += gradient_steps
        self._sync_temperature()
        self._record(as_floats(records))

    def _begin_updates(self) -> None:
        """Choose the arithmetic of the updates, once for each call of ``train()``."""
        optimizers, temperature = self._optimizers(), (self.log_ent_coef, self.ent_coef_optimizer)
        require_gradients()
        self._updates = choose_updates(
            self.policy, temperature, self.update == "lean", self.distillation_coef > 0.0, self.joint_batch
        )
        set_fused(optimizers, self.policy.optimizer_kwargs, self.actor.by_hand)
        if self._captured is not None:
            self._captured.begin()
        self._update_learning_rate(optimizers)

    def _update(self, batch: ReplayBufferSamples, records: Records) -> None:
        """One update but for the target networks. It may be captured: nothing in it makes the host wait for the device."""
        draw, next_draw = self._draw(batch)
        if draw is None:
            self._update_critic(batch, next_draw, self._current_ent_coef(), records)
            return
        ent_coef = self._update_temperature(batch.observations, draw.log_prob, records)
        self._update_critic(batch, next_draw, ent_coef, records)
        self._update_actor(batch.observations, draw, ent_coef, records)

    def _sample(self, batch_size: int) -> ReplayBufferSamples:
        return self._updates.sample(self.replay_buffer, batch_size, self._vec_normalize_env)

    def _draw(self, batch: ReplayBufferSamples) -> tuple[Draw | None, Draw]:
        """Actions of the Gaussian actor at both observations of the transitions, or at the next ones alone."""
        self.policy.update_normalization(batch.observations)
        if self.use_sde:
            self.actor.reset_noise()
        if self._refines:
            self._sync_temperature()
        if not self._actor_is_due:
            return None, self._updates.draw_next(batch.next_observations)
        return self._updates.draw(batch.observations, batch.next_observations)

    def _update_temperature(self, obs: PyTorchObs, log_prob: th.Tensor, records: Records) -> th.Tensor:
        if self.ent_coef_optimizer is None or self.log_ent_coef is None:
            records[ENTROPY].append(-log_prob.detach().mean())
            records["ent_coef"].append(self.ent_coef_tensor)
            return self.ent_coef_tensor
        # Detached, so that no other loss changes it, see https://github.com/rail-berkeley/softlearning/issues/60
        ent_coef = self._current_ent_coef()
        with th.no_grad():
            estimate = self._estimated_log_prob(obs, log_prob.detach(), records)
        records[ENTROPY].append(-estimate.mean())
        assert isinstance(self.target_entropy, float)
        loss = self._updates.temperature_loss(self.log_ent_coef, estimate, self.target_entropy)
        self._step(self.ent_coef_optimizer, loss, "ent_coef_loss", records)
        records["ent_coef"].append(ent_coef)
        return ent_coef

    def _update_critic(self, batch: ReplayBufferSamples, next_draw: Draw, ent_coef: th.Tensor, records: Records) -> None:
        # For n-step replay, discount factor is gamma**n_steps (when no early termination)
        discounts = batch.discounts if batch.discounts is not None else self.gamma
        with th.no_grad():
            next_actions, next_log_prob = self._next_actions(batch.next_observations, next_draw, records)
            next_values = self._updates.target_values(batch, next_actions)
            targets = self.critic.td_targets(batch.rewards, batch.dones, discounts, next_values, next_log_prob, ent_coef)
        if self.critic.target_records is not None:
            for name, value in self.critic.target_records(targets).items():
                records[name].append(value)
        loss = self._updates.critic_loss(batch, next_actions, targets)
        self._step(self.critic.optimizer, loss, "critic_loss", records)
        if self.critic.has_unit_norms:
            self.critic.project()

    def _update_actor(self, obs: PyTorchObs, draw: Draw, ent_coef: th.Tensor, records: Records) -> None:
        loss = self._updates.actor_loss(obs, draw, ent_coef)
        if self.distillation_coef > 0.0:
            distillation = self.critic.unscaled(self._distillation_loss(obs, ent_coef))
            records["distillation_loss"].append(distillation.detach())
            loss = loss + self.distillation_coef * distillation
        self._step(self.actor.optimizer, loss, "actor_loss", records)
        if self.actor.has_unit_norms:
            self.actor.project()

    def _update_target(self) -> None:
        self._updates.follow(self.critic.parameters(), self.critic_target.parameters(), self.tau)
        # Copy running stats, see GH issue #996
        polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)

    def _update_others(self, batch: ReplayBufferSamples, records: Records) -> None:
        """Update what is learned beside actor and critics: the refiner's head, if it has one."""
        if self.head_learner is not None:
            self.head_learner.step(self.policy, batch, records)

    def _next_actions(self, next_obs: PyTorchObs, next_draw: Draw, records: Records) -> tuple[th.Tensor, th.Tensor]:
        """Actions of the critic's target and their log-probability."""
        if not (self.refine_target and self._refines):
            return next_draw.actions, next_draw.log_prob
        infos: list[RefinerInfo] | None = [] if self.refinement_log.is_due else None
        base, energy = next_draw.base, self.policy.energy_fn(next_obs)
        next_actions = th.tanh(
            self.policy.refine(next_obs, base=base, energy=energy, infos=infos, n_particles=self.update_particles)
        )
        if infos is not None:
            self.refinement_log.keep(infos, next_actions)
        return next_actions, self._estimated_log_prob(next_obs, next_draw.log_prob, records, base=base, energy=energy)

    def _estimated_log_prob(self, obs: PyTorchObs, base_log_prob: th.Tensor, records: Records, **known: Any) -> th.Tensor:
        if self.entropy_term.is_base:  # SAC's own
            return base_log_prob
        return self.entropy_term.estimate(
            self.policy, obs, base_log_prob, n_particles=self.update_particles, records=records, **known
        )

    def _distillation_loss(self, obs: PyTorchObs, ent_coef: th.Tensor) -> th.Tensor:
        base = self.policy.base(obs)
        fixed = Gaussian(base.mean.detach(), base.std.detach())
        refined = self.policy.refine(obs, base=fixed, n_particles=self.update_particles)
        return distillation_loss(squashed_log_prob(base, refined), ent_coef)

    def _step(self, optimizer: th.optim.Optimizer, loss: th.Tensor, name: str, records: Records) -> None:
        guarded_step(optimizer, loss, name, records, name in self._updates.has_gradient)

    def _optimizers(self) -> list[th.optim.Optimizer]:
        found = [self.actor.optimizer, self.critic.optimizer]
        learned: tuple[Any, ...] = (self.policy.head, self.entropy_term.reverse_drift)
        found += [module.optimizer for module in learned if hasattr(module, "optimizer")]
        return found if self.ent_coef_optimizer is None else [*found, self.ent_coef_optimizer]

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        remaining = self._current_progress_remaining
        if not 0.0 <= self.lr_schedule(remaining) < math.inf:  # before an optimizer has it
            check_rate(self.lr_schedule(remaining), remaining)
        super()._update_learning_rate(optimizers)

    def _current_ent_coef(self) -> th.Tensor:
        """``α`` in the units of the reward, without a graph."""
        if self.log_ent_coef is None:
            return self.ent_coef_tensor
        ent_coef = self.log_ent_coef.detach().exp()
        return ent_coef if self.value_units is None else self.critic.scaled(ent_coef)

    def valued(self) -> Valued:
        """
        List what is in units of values.

        :return: critics, optimizers and numbers
        """
        return Valued([self.critic, self.critic_target], [self.actor.optimizer])

    def _sync_temperature(self) -> None:
        """Give the policy ``α`` as its temperature."""
        value, kept = self._current_ent_coef().reshape(()), self.policy.temperature
        ok = th.isfinite(value) & (value > 0.0) if self._refines else th.isfinite(value)
        require(ok, partial(_temperature_error, value))
        kept.copy_(value if active_checks() is None else th.where(ok, value, kept))

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        wrapped = SAC._wrap_env(env, verbose, monitor_wrapper)
        check_action_bounds(wrapped.action_space)  # before SB3 looks at them, and in load and set_env, too
        return wrapped

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:  # the environments will be reset
            self.return_tracker.reset(self.gamma)
            self._explorer.begin(self.n_envs, get_action_dim(self.action_space))
            if self.value_units is not None:
                self.value_units.returns.reset(self.n_envs)
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        assert self._last_obs is not None
        check_finite("observation", self._last_obs)
        if self._last_original_obs is not None:
            check_finite("observation", self._last_original_obs)
        check_energy_at(self.policy, self.policy.obs_to_tensor(self._last_obs)[0])
        return result

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        # With update="reference" the actions are SB3's, too, bit by bit
        predicting = self.policy.torch_predict() if self.update == "reference" else nullcontext()
        unrefined = nullcontext() if self.refine_exploration else self.policy.unrefined()
        with unrefined, predicting, self._explorer.acting(self.policy):
            try:
                action, buffer_action = super()._sample_action(learning_starts, action_noise, n_envs)
                explored = self._explorer.actions(buffer_action)
            except ValueError as error:  # raised by torch's distributions for a mean that is NaN
                if broken_network(self.policy) is None:
                    raise
                raise action_error(self.policy, noisy=False) from error
            if explored is not buffer_action:
                action, buffer_action = self.policy.unscale_action(explored), explored
            if not math.isfinite(buffer_action.sum()):
                raise action_error(self.policy, noisy=action_noise is not None)
            if self._n_updates > 0 and self._last_obs is not None:
                bonus = float(self._current_ent_coef()) * self._entropy
                self.return_tracker.predict(self.policy.q_values(self._last_obs, buffer_action), bonus)
        return action, buffer_action

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        check_transition(reward, new_obs, infos, self._vec_normalize_env)
        self.return_tracker.observe(reward, dones, [bool(info.get("TimeLimit.truncated", False)) for info in infos])
        self._explorer.observe(dones)
        if self.value_units is not None:
            self.value_units.returns.observe(reward, dones, self.gamma)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def _record(self, records: dict[str, list[float]]) -> None:
        self._entropy = records.pop(ENTROPY, [self._entropy])[-1]
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/fast_matmul", float(self._uses_fast_matmul), exclude="tensorboard")
        if self.value_units is not None:
            self.logger.record("train/value_scale", self.value_units.sigma)
        for name, values in records.items():
            known = [value for value in values if not math.isnan(value)]  # NaN: there was nothing to report
            if known:
                self.logger.record(f"train/{name}", np.mean(known))
        if self.return_tracker.comparisons:
            self.return_tracker.record(self.logger)

    def dump_logs(self) -> None:
        """Write the log, as SB3 does, with statistics of one of the last refinements and of the terms of a sum of energies."""
        self.refinement_log.record(self.logger, self.policy)
        super().dump_logs()

    def _excluded_save_params(self) -> list[str]:
        held = ["return_tracker", "value_units", "_explorer", "entropy_term", "head_learner", "refinement_log"]
        return [*super()._excluded_save_params(), *held, "_updates", "_captured", "_uses_fast_matmul", "_actor_is_due"]

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto") -> None:
        """
        As in SB3. Parameters of a model with ``value_scale="none"`` are taken by one with ``"auto"``, in the units of the
        reward until its next update; the statistics of returns, which they lack, stay as they are here.

        :param load_path_or_dict: Location of the saved data or a nested dictionary of parameters
        :param exact_match: Whether all of the other parts must be there
        :param device: Device on which the code should run.
        """
        found = load_path_or_dict  # a path comes again, as a dictionary
        if isinstance(found, dict) and self.value_units is not None and RETURNS not in found:
            found = found | {RETURNS: self.value_units.returns.state_dict()}
        super().set_parameters(found, exact_match, device)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        if hasattr(self.policy.head, "optimizer"):
            state_dicts.append("policy.head.optimizer")
        if self.value_units is not None:
            state_dicts.append(RETURNS)
        if self.entropy_term.reverse_drift is not None:
            state_dicts += ["entropy_term.reverse_drift", "entropy_term.reverse_drift.optimizer"]
        return state_dicts, tensors

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
