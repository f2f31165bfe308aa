"""Collecting experience: refuses what is no number, and remembers what the critic promised."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_energy.common.critics import EnsembleCritic
from sb3_energy.common.guards import check_finite
from sb3_energy.common.policies import RefinedPolicy
from sb3_energy.common.return_tracker import Comparison, ReturnTracker


class TrackedCollection(OffPolicyAlgorithm):
    """
    Mixin for off-policy algorithms with a refined policy.

    * Observations and rewards that are not finite stop the training before they are stored.
    * Q-values of the actions that are taken are compared with the returns that follow: ``train/overestimation``.
    """

    policy: RefinedPolicy
    critic: EnsembleCritic
    ent_coef_tensor: th.Tensor
    log_ent_coef: th.Tensor | None

    def _setup_model(self) -> None:
        super()._setup_model()
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
        return result

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        action, buffer_action = super()._sample_action(learning_starts, action_noise, n_envs)
        if self._n_updates > 0 and self._last_obs is not None:
            bonus = float(self._current_ent_coef()) * self._entropy
            self._return_tracker.predict(self.policy.q_values(self._last_obs, buffer_action), bonus)
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
        check_finite("reward", reward)
        check_finite("observation", new_obs)
        for info in infos:  # where an episode ended, new_obs is already the next one's
            if info.get("terminal_observation") is not None:
                check_finite("observation", info["terminal_observation"])
        truncated = [bool(info.get("TimeLimit.truncated", False)) for info in infos]
        self._comparisons += self._return_tracker.observe(reward, dones, truncated)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def _record_returns(self) -> None:
        """Log the comparisons of the episodes that ended since the last call, if there are any."""
        if not self._comparisons:
            return
        q_value, discounted_return = np.mean(self._comparisons, axis=0)
        self.logger.record("train/q_value", q_value)
        self.logger.record("train/discounted_return", discounted_return)
        self.logger.record("train/overestimation", q_value - discounted_return)
        self._comparisons = []
