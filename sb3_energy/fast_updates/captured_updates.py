"""Updates that are recorded once as a CUDA graph and then replayed. Experimental: this has never run on a GPU."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_energy.deferred import Checks, deferred
from sb3_energy.training.guards import Records

WARM_UP = 3
"""Updates on a side stream before one is recorded, as in PyTorch's notes on CUDA graphs: everything that is allocated or tuned
when it is first used must exist before."""

UpdateFn = Callable[[ReplayBufferSamples, Records], None]


class Outcome(NamedTuple):
    """
    Results of a recorded update.

    :param report: flags of its checks, then its records, as 64-bit numbers
    :param checks: make the errors of flags that are false
    :param names: names of the records
    """

    report: th.Tensor
    checks: Checks
    names: list[str]


class Recorder(Protocol):
    """Runs work so that it can be replayed."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run it on the stream on which it will be recorded."""
        ...

    def record(self, work: Callable[[], Outcome]) -> tuple[Outcome, Callable[[], None]]:
        """Return its result's place, and a function that computes it there. The work itself is not done."""
        ...


class CudaGraphs:
    """
    CUDA graphs, all of them warmed up and recorded on one side stream.

    :param device: of all tensors
    """

    def __init__(self, device: th.device) -> None:
        self._device, self._stream = device, th.cuda.Stream(device)

    def warm_up(self, work: Callable[[], None]) -> None:
        """
        Run work on the capture stream, to warm up before its capture.

        :param work: is recorded later, and done now
        """
        current = th.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with th.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], Outcome]) -> tuple[Outcome, Callable[[], None]]:
        """
        Capture work as a CUDA graph.

        :param work: must not wait for the device; noise from its default generator is new in each replay
        :return: the place of its result, and a function that replays it
        """
        graph = th.cuda.CUDAGraph()
        with th.cuda.device(self._device), th.cuda.graph(graph, stream=self._stream):
            outcome = work()
        return outcome, graph.replay


class _Recording(NamedTuple):
    batch: ReplayBufferSamples  # what is replayed reads its transitions there
    outcome: Outcome
    replay: Callable[[], None]


class CapturedUpdates:
    """
    Updates that are recorded once for each shape of their batch, after a few eager ones, and then replayed.

    A replay repeats the recorded operations at the same addresses. So everything that an update depends on is compared in
    :meth:`begin`, and after a change all is recorded anew. Learning rates may change: they are tensors in a recording.

    :param update: one update; it depends on tensors and on what ``dependencies`` returns
    :param optimizers: of the update, all of them fused Adam
    :param dependencies: everything else that the update depends on, in values that can be compared
    :param recorder: records updates
    """

    def __init__(
        self,
        update: UpdateFn,
        optimizers: Callable[[], list[th.optim.Optimizer]],
        dependencies: Callable[[], Any],
        recorder: Recorder,
    ):
        self._update, self._optimizers, self._dependencies, self._recorder = update, optimizers, dependencies, recorder
        self._recordings: dict[Any, _Recording] = {}
        self._n_warm = 0
        self._known: Any = None
        self._rates: list[th.Tensor] = []

    def begin(self) -> None:
        """Forget the recordings if an update does something else by now. To be called once for each ``train()``."""
        if self._known is not None and self._dependencies() != self._known:
            self._forget()

    def __call__(self, batch: ReplayBufferSamples, records: Records) -> None:
        """
        One update.

        :param batch: of any size
        :param records: statistics are appended for the logger, as numbers
        :raises FloatingPointError: if a loss or an energy is not finite; no parameter has changed then
        """
        groups = [group for optimizer in self._optimizers() for group in optimizer.param_groups]
        self._fill_rates(groups)
        if self._n_warm < WARM_UP:
            self._warm_up(groups, batch, records)
            return
        key = _shapes(batch)
        if key not in self._recordings:
            self._recordings[key] = self._record(groups, batch)
        recording = self._recordings[key]
        for static, part in zip(_tensors(recording.batch), _tensors(batch), strict=True):
            static.copy_(part)
        recording.replay()
        report, checks, names = recording.outcome
        numbers = report.tolist()  # here the host waits
        n_checks = len(numbers) - len(names)
        checks.raise_first([number == 1.0 for number in numbers[:n_checks]])
        for name, number in zip(names, numbers[n_checks:], strict=True):
            records[name].append(number)

    def _forget(self) -> None:
        self._recordings, self._n_warm, self._known = {}, 0, None

    def _warm_up(self, groups: list[dict[str, Any]], batch: ReplayBufferSamples, records: Records) -> None:
        def work() -> None:
            with deferred() as checks, capturable(groups, self._rates):
                self._update(batch, records)
            checks.raise_first()

        self._recorder.warm_up(work)
        self._n_warm += 1
        self._known = self._dependencies()

    def _record(self, groups: list[dict[str, Any]], batch: ReplayBufferSamples) -> _Recording:
        static = _map_tensors(batch, th.clone)
        for optimizer in self._optimizers():  # gradients are then made in the graph's own memory
            optimizer.zero_grad(set_to_none=True)

        def work() -> Outcome:
            records: Records = defaultdict(list)
            with deferred() as checks, capturable(groups, self._rates):
                self._update(static, records)
            flat = [(name, _scalar(value)) for name, values in records.items() for value in values]
            numbers = [*checks.flags().double().unbind(), *(number for _, number in flat)]
            return Outcome(th.stack(numbers), checks, [name for name, _ in flat])

        try:
            outcome, replay = self._recorder.record(work)
        except RuntimeError as error:
            raise RuntimeError(
                f"capture='cuda_graph' could not record this update, and capture=None is slower but will do: {error}"
            ) from error
        return _Recording(static, outcome, replay)

    def _fill_rates(self, groups: list[dict[str, Any]]) -> None:
        if len(self._rates) != len(groups):
            self._forget()
            # 32 bits are what fused Adam reads
            self._rates = [th.full((), float("nan"), device=group["params"][0].device) for group in groups]
            self._filled: list[float] = [float("nan")] * len(groups)
        for i, group in enumerate(groups):
            if group["lr"] != self._filled[i]:
                self._rates[i].fill_(group["lr"])
                self._filled[i] = group["lr"]


@contextmanager
def capturable(groups: list[dict[str, Any]], rates: list[th.Tensor]) -> Iterator[None]:
    """
    Within this context a step of Adam can be recorded, with learning rates that are tensors. Afterwards the groups are as
    before, so that no tensor is saved with a model.

    :param groups: parameter groups
    :param rates: a scalar for each of them
    """
    before = [(group["lr"], group["capturable"]) for group in groups]
    for group, rate in zip(groups, rates, strict=True):
        group.update(lr=rate, capturable=True)
    try:
        yield
    finally:
        for group, (rate, was_capturable) in zip(groups, before, strict=True):
            group.update(lr=rate, capturable=was_capturable)


def _scalar(value: float | th.Tensor) -> th.Tensor:
    if not isinstance(value, th.Tensor):
        raise RuntimeError(f"an update recorded the number {value!r}, which would be the same in each replay")
    return value.reshape(()).double()


def _tensors(batch: ReplayBufferSamples) -> list[th.Tensor]:
    found: list[th.Tensor] = []
    _map_tensors(batch, lambda part: found.append(part) or part)  # type: ignore[func-returns-value]
    return found


def _map_tensors(batch: Any, fn: Callable[[th.Tensor], th.Tensor]) -> Any:
    """Apply a function to each tensor of a batch, whose observations may be dictionaries."""
    if isinstance(batch, th.Tensor):
        return fn(batch)
    if isinstance(batch, dict):
        return {key: _map_tensors(part, fn) for key, part in batch.items()}
    return type(batch)(*(_map_tensors(part, fn) for part in batch)) if isinstance(batch, tuple) else batch


def _shapes(batch: ReplayBufferSamples) -> tuple[Any, ...]:
    return tuple((part.shape, part.dtype) for part in _tensors(batch))
