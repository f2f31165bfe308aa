"""Cheaper updates with SB3's numbers up to rounding, and the choice between them and SB3's own arithmetic."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_energy.matmul import FEWEST_ROWS, MatmulPrecision, fast_matmul_gain, fast_matmul_is_exact
from sb3_energy.training.batch_norm_updates import BatchNormUpdates
from sb3_energy.training.plain_updates import PlainUpdates

UPDATES = ("lean", "reference")

SMALLEST_GAIN = 1.25
"""Speed-up from which oneDNN is used. Below it the choice would depend on the noise of the measurement."""


class LeanUpdates(PlainUpdates):
    """
    Batches are gathered straight into tensors, target networks follow in one call, and the temperature's gradient is written
    out. Where layers are known, the networks take their gradients by hand inside autograd's graph (``by_hand``).
    """

    has_gradient: ClassVar[frozenset[str]] = frozenset({"ent_coef_loss"})

    def sample(self, buffer: Any, batch_size: int, env: Any) -> ReplayBufferSamples:
        """
        ``buffer.sample(batch_size, env)`` with the same random numbers. From SB3's plain buffer each field is copied once,
        where SB3 makes two or three copies.

        :param buffer: replay buffer
        :param batch_size: number of transitions
        :param env: ``VecNormalize`` environment that normalizes them, or ``None``
        :return: transitions
        """
        if env is None and can_gather(buffer):
            return gathered(buffer, batch_size, self.actor.device)
        return buffer.sample(batch_size, env=env)

    def temperature_loss(self, log_ent_coef: th.Tensor, log_prob: th.Tensor, target_entropy: float) -> th.Tensor:
        """
        ``log α (entropy - target entropy)`` with ``entropy = -mean log π``. The gradient is left in ``log_ent_coef.grad``.

        :param log_ent_coef: one number of any shape, learned
        :param log_prob: ``(B, 1)``, without a graph
        :param target_entropy: in nats
        :return: scalar
        """
        gradient = -log_prob.mean() - target_entropy
        log_ent_coef.grad = gradient.reshape(log_ent_coef.shape)
        return (log_ent_coef.detach() * gradient).reshape(())

    def follow(self, parameters: Iterable[th.Tensor], targets: Iterable[th.Tensor], tau: float) -> None:
        """
        Polyak average: ``target + tau (parameter - target)``.

        :param parameters: of the networks
        :param targets: of the target networks, changed in place
        :param tau: in [0, 1]
        """
        with th.no_grad():
            th._foreach_lerp_(list(targets), list(parameters), tau)


class LeanBatchNormUpdates(BatchNormUpdates, LeanUpdates):
    """The same for networks with batch normalisation, which learn by autograd."""


def can_gather(buffer: Any) -> bool:
    """
    Check that a replay buffer's transitions can be gathered by index.

    :param buffer: a replay buffer
    :return: whether it stores transitions one after the other, as SB3's ``ReplayBuffer`` does
    """
    if type(buffer) is not ReplayBuffer or buffer.optimize_memory_usage:
        return False
    fields = (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards, buffer.dones, buffer.timeouts)
    return all([field.flags.c_contiguous for field in fields])


def gathered(buffer: ReplayBuffer, batch_size: int, device: th.device) -> ReplayBufferSamples:
    """
    ``buffer.sample(batch_size)``, with the same random numbers, and one copy of each field.

    :param buffer: one for which :func:`can_gather` holds
    :param batch_size: number of transitions
    :param device: of the tensors
    :return: transitions
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


def set_fused(optimizers: Iterable[th.optim.Optimizer], optimizer_kwargs: dict[str, Any], lean: bool) -> None:
    """
    Fused Adam where the user has not said how Adam is computed. Not for networks that a user has changed: autograd does not
    notice that a fused step has changed a parameter of a graph.

    :param optimizers: of an algorithm
    :param optimizer_kwargs: the user's own
    :param lean: whether updates are lean
    """
    free = not any(optimizer_kwargs.get(name) for name in ("foreach", "capturable", "differentiable"))
    fused = True if lean and free and optimizer_kwargs.get("fused") is None else optimizer_kwargs.get("fused")
    for optimizer in optimizers:
        if type(optimizer) in (th.optim.Adam, th.optim.AdamW):
            for group in optimizer.param_groups:
                group["fused"] = fused
                _place_steps(optimizer, group["params"], on_device=bool(fused or group["capturable"]))


def _place_steps(optimizer: th.optim.Optimizer, parameters: list[th.Tensor], on_device: bool) -> None:
    # Adam that is not fused counts its steps on the CPU; a loaded model may have the one and want the other
    for parameter in parameters:
        step = optimizer.state[parameter].get("step") if parameter in optimizer.state else None
        where = parameter.device if on_device else th.device("cpu")
        if isinstance(step, th.Tensor) and step.device != where:
            optimizer.state[parameter]["step"] = step.to(where)


def check_fast_matmul(fast_matmul: Any, device: th.device) -> None:
    """
    Check the argument ``fast_matmul`` against the device.

    :param fast_matmul: the algorithm's argument
    :param device: of its networks
    :raises TypeError: if it is neither bool nor ``None``
    :raises ValueError: if it is true and the device is no CPU
    """
    if not (fast_matmul is None or isinstance(fast_matmul, bool)):
        raise TypeError(f"fast_matmul must be True, False or None, got {fast_matmul!r}")
    if fast_matmul and device.type != "cpu":
        raise ValueError(f"fast_matmul=True needs device='cpu', got {str(device)!r}; use fast_matmul=None")


def uses_fast_matmul(fast_matmul: bool | None, update: str, device: th.device) -> bool:
    """
    Decide whether updates multiply matrices with oneDNN.

    :param fast_matmul: the algorithm's argument; ``None``: use oneDNN if it is exact and faster here
    :param update: ``"lean"`` or ``"reference"``
    :param device: of its networks
    :return: whether oneDNN multiplies matrices in updates
    """
    if fast_matmul is not None or update == "reference" or device.type != "cpu":
        return bool(fast_matmul)
    n_threads = th.get_num_threads()
    return fast_matmul_is_exact(n_threads) and fast_matmul_gain(n_threads) >= SMALLEST_GAIN


def matmul_precision(use_it: bool, always: bool, batch_size: int) -> AbstractContextManager[None]:
    """
    Context manager that lets oneDNN multiply float32 matrices of large enough batches.

    :param use_it: whether oneDNN multiplies matrices in updates
    :param always: also of batches so small that it is no faster
    :param batch_size: number of rows
    :return: context in which it does
    """
    return MatmulPrecision("medium") if use_it and (always or batch_size >= FEWEST_ROWS) else nullcontext()
