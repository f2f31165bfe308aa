"""Collecting experience and learning from it: refuses what is NaN or infinite, and remembers what the critic promised."""

import math
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_energy.checks import check_unit_interval
from sb3_energy.deferred import NonFiniteError
from sb3_energy.policies.arguments import check_action_bounds
from sb3_energy.policies.causes import broken_network
from sb3_energy.policies.critics import EnsembleCritic
from sb3_energy.policies.own_energy import check_energy_at
from sb3_energy.policies.refined_policy import RefinedPolicy
from sb3_energy.training.causes import training_cause
from sb3_energy.training.experience_arguments import check_buffer
from sb3_energy.training.guards import check_finite
from sb3_energy.training.return_tracker import Comparison, ReturnTracker
from sb3_energy.training.training_arguments import check_rate, check_training_arguments

ADVICE = "a checkpoint from before, and a lower learning_rate"


class TrackedCollection(OffPolicyAlgorithm):
    """
    Mixin for off-policy algorithms with a refined policy.

    * SAC's arguments and the bounds of the actions are checked before a network is made.
    * Observations, actions and rewards that are not finite stop the training before they are stored, and so does a learning
      rate before it is used.
    * Where an update meets NaN or infinity, the error names what made it.
    * Q-values of the actions that are taken are compared with the returns that follow: ``train/overestimation``.
    """

    policy: RefinedPolicy
    critic: EnsembleCritic
    ent_coef_tensor: th.Tensor
    log_ent_coef: th.Tensor | None

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        wrapped = OffPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        check_action_bounds(wrapped.action_space)  # before SB3 looks at them, and in load and set_env, too
        return wrapped

    def _setup_model(self) -> None:
        check_training_arguments(self)
        check_buffer(self)
        super()._setup_model()
        self.policy.check_energy()
        self._return_tracker = ReturnTracker(self.n_envs, self.gamma)
        self._comparisons: list[Comparison] = []
        self._entropy = 0.0  # of the policy in the last update, in nats

    def _current_ent_coef(self) -> th.Tensor:
        """``α``, without a graph."""
        return self.ent_coef_tensor if self.log_ent_coef is None else self.log_ent_coef.detach().exp()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_return_tracker", "_comparisons"]

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:  # the environment will be reset: no episode goes on
            self._return_tracker = ReturnTracker(self.n_envs, self.gamma)
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
        try:
            action, buffer_action = super()._sample_action(learning_starts, action_noise, n_envs)
        except ValueError as error:  # torch's own of a mean that is NaN
            if broken_network(self.policy) is None:
                raise
            raise self._action_error(None) from error
        if not math.isfinite(buffer_action.sum()):
            raise self._action_error(action_noise)
        if self._n_updates > 0 and self._last_obs is not None:
            bonus = float(self._current_ent_coef()) * self._entropy
            self._return_tracker.predict(self.policy.q_values(self._last_obs, buffer_action), bonus)
        return action, buffer_action

    def _action_error(self, action_noise: ActionNoise | None) -> FloatingPointError:
        made = broken_network(self.policy) or ("it is NaN" if action_noise is None else "action_noise returned NaN")
        return FloatingPointError(f"the action must be finite and was neither taken nor stored: {made}")

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        check_finite("reward", reward)
        check_finite("observation", new_obs)
        for info in infos:  # where an episode ended, new_obs is already the next one's
            if info.get("terminal_observation") is not None:
                check_finite("observation", info["terminal_observation"])
        if self._vec_normalize_env is not None:  # what is stored is not what was normalised
            check_finite("reward", self._vec_normalize_env.get_original_reward())
            check_finite("observation", self._vec_normalize_env.get_original_obs())
        truncated = [bool(info.get("TimeLimit.truncated", False)) for info in infos]
        self._comparisons += self._return_tracker.observe(reward, dones, truncated)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        remaining = self._current_progress_remaining
        check_rate(self.lr_schedule(remaining), remaining)  # before an optimiser has it
        super()._update_learning_rate(optimizers)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Sample the replay buffer and do the updates.

        :param gradient_steps: how many updates
        :param batch_size: transitions in each of them
        :raises ValueError: if a hyperparameter has become one that is refused at construction
        :raises FloatingPointError: if a loss, its gradient or an energy is not finite; the error names what made it
        """
        check_unit_interval("tau", self.tau)  # which no loss would notice
        check_unit_interval("gamma", self.gamma)
        try:
            self._train(gradient_steps, batch_size)
        except (NonFiniteError, ValueError) as error:  # torch's distributions raise the second one for a mean that is NaN
            met = error if isinstance(error, NonFiniteError) else NonFiniteError("an update met NaN or infinity", ADVICE)
            cause = training_cause(self, "energy" in met.what)
            if cause is None:
                raise
            raise met.because(*cause) from error

    def _train(self, gradient_steps: int, batch_size: int) -> None:
        raise NotImplementedError

    def _record_returns(self) -> None:
        """Log the comparisons of the episodes that ended since the last call, if there are any."""
        if not self._comparisons:
            return
        q_value, discounted_return = np.mean(self._comparisons, axis=0)
        self.logger.record("train/q_value", q_value)
        self.logger.record("train/discounted_return", discounted_return)
        self.logger.record("train/overestimation", q_value - discounted_return)
        self._comparisons = []
