"""The training loop of offline algorithms: gradient steps, callbacks, log and progress bar, without an environment."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_energy.checks import check_bool, check_integer
from sb3_energy.deferred import NonFiniteError
from sb3_energy.training.guards import require_finite_gradients
from sb3_energy.types import Tick


class Learner(Protocol):
    """
    What the loop and the callbacks of Stable-Baselines3 ask of a model; every ``BaseAlgorithm`` has it.

    ``num_timesteps`` is the number of gradient steps so far, which each update raises by 1.
    """

    @property
    def num_timesteps(self) -> int: ...

    @property
    def logger(self) -> Logger: ...

    def dump_logs(self) -> None:
        """Write a line of the log."""


Update = Callable[[Tick], Mapping[str, th.Tensor | float]]
"""One gradient step; returns scalars to log. ``tick.remaining`` falls from 1 to 0, as learning-rate schedules want it."""


def fit(
    model: Learner,
    update: Update,
    gradient_steps: int,
    callback: MaybeCallback = None,
    log_interval: int | None = 100,
    progress_bar: bool = False,
) -> None:
    """
    Make gradient steps until there are enough, or a callback ends it.

    Callbacks are Stable-Baselines3's, and a gradient step takes the place of an environment step: ``on_step`` is called after
    each one, and a callback that does not return ``True`` stops the training. A plain function is called with
    ``(locals, globals)``, where ``locals`` has ``self``, ``tick`` and ``losses``, and must return ``True`` as well.
    ``on_rollout_start`` and ``on_rollout_end`` are never called. ``CheckpointCallback`` saves every ``save_freq`` gradient
    steps.

    Ctrl-C takes effect between two gradient steps, so a model that is saved afterwards goes on exactly where it stopped.

    :param model: what learns
    :param update: one gradient step
    :param gradient_steps: number of gradient steps
    :param callback: callback, list of callbacks, function, or ``None``
    :param log_interval: gradient steps between two lines of the log (``None``: no lines)
    :param progress_bar: whether to show a progress bar (needs tqdm and rich)
    :raises TypeError: if an argument has the wrong type
    :raises ValueError: if ``gradient_steps`` is negative or ``log_interval`` below 1
    :raises ImportError: if there are no tqdm and rich for the progress bar
    """
    gradient_steps = check_integer("gradient_steps", gradient_steps, minimum=0)
    log_interval = None if log_interval is None else check_integer("log_interval", log_interval, minimum=1)
    called = as_callback(callback, model)
    with show_progress(gradient_steps) if check_bool("progress_bar", progress_bar) else nullcontext() as bar:
        total = model.num_timesteps + gradient_steps  # under SB3's name for it, which callbacks read
        called.on_training_start(dict(self=model, total_timesteps=total, log_interval=log_interval), globals())
        for step in range(gradient_steps):
            tick = Tick(step, gradient_steps)
            with uninterrupted():
                losses = update(tick)
            called.update_locals(dict(tick=tick, losses=losses))
            if not called.on_step():
                break
            if log_interval is not None and (step + 1) % log_interval == 0:
                model.dump_logs()
            if bar is not None:
                bar.update()
    called.on_training_end()


def record_losses(logger: Logger, losses: Mapping[str, th.Tensor | float]) -> None:
    """
    Write the losses of an update to the logger.

    :param logger: Stable-Baselines3's
    :param losses: scalars by name, on any device
    """
    for name, value in losses.items():
        logger.record(f"train/{name}", float(value))


def as_callback(callback: MaybeCallback, model: Any) -> BaseCallback:
    """
    One callback that knows its model, as ``BaseAlgorithm`` makes it. Lists may hold functions, too.

    :param callback: callback, list of callbacks and functions, function, or ``None``
    :param model: what learns
    :return: the callback
    :raises TypeError: if it is none of these
    """
    found = CallbackList([_converted(each) for each in callback]) if isinstance(callback, list) else _converted(callback)
    found.init_callback(model)
    return found


def _converted(callback: Any) -> BaseCallback:
    if isinstance(callback, BaseCallback):
        return callback
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a BaseCallback, a list of them or a function, got {callback!r}")
    return ConvertCallback(callback)


def descend(optimizer: th.optim.Optimizer, loss: th.Tensor, name: str, advice: str) -> None:
    """
    One step of an optimiser, unless the loss or a gradient is NaN or infinity.

    :param optimizer: of the parameters to change
    :param loss: scalar with a graph
    :param name: of the loss, for the error message
    :param advice: what to try if it is NaN or infinity, for the error message
    :raises FloatingPointError: in that case; no parameter is changed
    """
    if not th.isfinite(loss):
        raise NonFiniteError(f"{name} is {loss.item()}: training stops before it changes the networks", advice)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    require_finite_gradients(optimizer, name)
    optimizer.step()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """
    Put Ctrl-C off until the end of this context; a second Ctrl-C interrupts at once. Outside the main thread, and where Ctrl-C
    has a handler other than Python's own, nothing changes.

    :raises KeyboardInterrupt: at the end
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pending: list[int] = []

    def put_off(number: int, frame: Any) -> None:
        pending.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, put_off)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pending:
        raise KeyboardInterrupt


def show_progress(total: int) -> Any:
    """
    A progress bar like Stable-Baselines3's.

    :param total: number of steps
    :return: tqdm's bar, a context manager
    :raises ImportError: if there are no tqdm and rich
    """
    ProgressBarCallback()  # raises SB3's own error where tqdm or rich is missing
    from tqdm.rich import tqdm

    return tqdm(total=total)
