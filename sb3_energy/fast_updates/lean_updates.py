"""What makes updates cheap and leaves their numbers as they are, up to rounding."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import polyak_update

from sb3_energy.checks import check_choice, plain
from sb3_energy.fast_updates.sac_gradients import SACGradients
from sb3_energy.matmul import FEWEST_ROWS, MatmulPrecision, fast_matmul_gain, fast_matmul_is_exact
from sb3_energy.policies.refined_policy import RefinedPolicy

UPDATES = ("lean", "reference")

SMALLEST_GAIN = 1.25
"""Of oneDNN, for it to be used. Below, it would be chosen by chance, and one seed would give two trainings."""


class LeanUpdates(OffPolicyAlgorithm):
    """
    Mixin for off-policy algorithms with a refined policy: how the arithmetic of updates is done.

    With ``update="lean"`` derivatives are taken by hand where layers are known and only where they are needed, Adam is
    fused, target networks follow in one call and batches are gathered straight into tensors. With ``update="reference"``
    all of that is as in SB3, bit by bit.
    """

    policy: RefinedPolicy
    update: str
    fast_matmul: bool | None
    tau: float

    def _setup_model(self) -> None:
        self._check_update()
        super()._setup_model()
        self._is_lean = self.update == "lean"
        for module in (self.policy.actor, self.policy.critic, self.policy.critic_target):
            module.by_hand = self._is_lean
        self._uses_fast_matmul = self._choose_matmul()
        # Of the networks as they are in the current call of train()
        self._by_hand: SACGradients | None = None
        self._temperature_by_hand = False

    def _check_update(self) -> None:
        check_choice("update", self.update, UPDATES)
        self.fast_matmul = plain(self.fast_matmul)
        if not (self.fast_matmul is None or isinstance(self.fast_matmul, bool)):
            raise TypeError(f"fast_matmul must be True, False or None, got {self.fast_matmul!r}")
        if self.fast_matmul and self.device.type != "cpu":
            raise ValueError(f"fast_matmul=True needs device='cpu', got {str(self.device)!r}; use fast_matmul=None")

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        # Whose updates are SB3's, bit by bit, learns from what SB3 would have done
        with nullcontext() if self._is_lean else self.policy.torch_predict():
            return super()._sample_action(learning_starts, action_noise, n_envs)

    def _choose_matmul(self) -> bool:
        if self.fast_matmul is not None or self.update == "reference" or self.device.type != "cpu":
            return bool(self.fast_matmul)
        n_threads = th.get_num_threads()
        return fast_matmul_is_exact(n_threads) and fast_matmul_gain(n_threads) >= SMALLEST_GAIN

    def _matmul(self, batch_size: int) -> AbstractContextManager[None]:
        use_it = self._uses_fast_matmul and (batch_size >= FEWEST_ROWS or self.fast_matmul is True)
        return MatmulPrecision("medium") if use_it else nullcontext()

    def _sample(self, batch_size: int) -> ReplayBufferSamples:
        buffer: Any = self.replay_buffer
        if self._is_lean and self._vec_normalize_env is None and can_gather(buffer):
            return gathered(buffer, batch_size, self.device)
        return buffer.sample(batch_size, env=self._vec_normalize_env)

    def _fuse(self, optimizers: Iterable[th.optim.Optimizer]) -> None:
        """Fused Adam for the optimisers, unless the user has said how Adam is to be computed, or has changed the networks:
        a graph does not notice that fused steps have changed its parameters."""
        said = self.policy.optimizer_kwargs
        free = not any(said.get(name) for name in ("foreach", "capturable", "differentiable"))
        fused = True if self.policy.actor.by_hand and free and said.get("fused") is None else said.get("fused")
        for optimizer in optimizers:
            if type(optimizer) in (th.optim.Adam, th.optim.AdamW):
                for group in optimizer.param_groups:
                    group["fused"] = fused
                    _place_steps(optimizer, group["params"], on_device=bool(fused or group["capturable"]))

    def _follow(self, parameters: Iterable[th.Tensor], targets: Iterable[th.Tensor]) -> None:
        """Target networks: ``target + tau (parameter - target)``."""
        if not self._is_lean:
            return polyak_update(parameters, targets, self.tau)
        with th.no_grad():
            return th._foreach_lerp_(list(targets), list(parameters), self.tau)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_by_hand", "_temperature_by_hand", "_is_lean", "_uses_fast_matmul"]


def _place_steps(optimizer: th.optim.Optimizer, parameters: list[th.Tensor], on_device: bool) -> None:
    # Adam that is not fused counts its steps on the CPU; a model may have been saved by such a one, or become one
    for parameter in parameters:
        step = optimizer.state[parameter].get("step") if parameter in optimizer.state else None
        where = parameter.device if on_device else th.device("cpu")
        if isinstance(step, th.Tensor) and step.device != where:
            optimizer.state[parameter]["step"] = step.to(where)


def can_gather(buffer: Any) -> bool:
    """
    :param buffer: a replay buffer
    :return: whether it keeps its transitions as SB3's plain one does, one after the other
    """
    if type(buffer) is not ReplayBuffer or buffer.optimize_memory_usage:
        return False
    fields = (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards, buffer.dones, buffer.timeouts)
    return all(field.flags.c_contiguous for field in fields)


def gathered(buffer: ReplayBuffer, batch_size: int, device: th.device) -> ReplayBufferSamples:
    """
    ``buffer.sample(batch_size)``, with the same random numbers, and one copy for each field where SB3 makes two or three.

    :param buffer: SB3's own
    :param batch_size: how many transitions
    :param device: where they go
    :return: the transitions
    """
    steps = np.random.randint(0, buffer.buffer_size if buffer.full else buffer.pos, size=batch_size)
    envs = np.random.randint(0, high=buffer.n_envs, size=(batch_size,))
    index = steps * buffer.n_envs + envs
    dones = _rows(buffer.dones, index, 1)
    if buffer.handle_timeout_termination:  # only dones that are not due to timeouts
        dones = dones * (1.0 - _rows(buffer.timeouts, index, 1))
    parts = [_rows(buffer.observations, index), _rows(buffer.actions, index), _rows(buffer.next_observations, index)]
    parts += [dones, _rows(buffer.rewards, index, 1)]
    return ReplayBufferSamples(*(parts if device.type == "cpu" else [part.to(device) for part in parts]))


def _rows(array: np.ndarray, index: np.ndarray, *shape: int) -> th.Tensor:
    flat = array.reshape(-1, *(shape or array.shape[2:]))
    return th.from_numpy(flat.take(index, axis=0))
