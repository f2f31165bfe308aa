"""Errors that a tensor decides: raised where they are found, or later, where the host must not wait for the device.

To ask a tensor on a GPU for its value makes the host wait, and inside a CUDA graph or a compiled function it cannot be asked
at all. There a check keeps its flag and what it would have raised, and the caller asks once, at the end.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch as th

HOSTS = {"cpu"}
"""Types of the devices whose tensors are read without waiting."""


class NonFiniteError(FloatingPointError):
    """
    NaN or infinity where a number should be. A caller that knows the cause names it with :meth:`because`.

    :param what: where it appeared, and what stops
    :param advice: what to try, as long as the cause is not known
    """

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what, advice)
        self.what, self.advice = what, advice

    def __str__(self) -> str:
        return f"{self.what}; try {self.advice}"

    def because(self, cause: str, advised: bool) -> FloatingPointError:
        """
        Build the final error once its cause is known.

        :param cause: what made it, a clause
        :param advised: whether the advice still holds
        :return: the same error with its cause
        """
        return FloatingPointError(f"{self.what}: {cause}" + (f"; try {self.advice}" if advised else ""))


class Checks:
    """Checks that have been put off, in their order."""

    def __init__(self) -> None:
        self._found: list[tuple[th.Tensor, Callable[[], Exception]]] = []

    def append(self, ok: th.Tensor, error: Callable[[], Exception]) -> None:
        """
        Add a check, to be evaluated later.

        :param ok: bool scalar
        :param error: makes what is raised if it is false
        """
        self._found.append((ok, error))

    def flags(self) -> th.Tensor:
        """
        Stack the results of all checks, without synchronising with the device.

        :return: ``(n,)`` bools, one for each check
        """
        return th.stack([ok for ok, _ in self._found]) if self._found else th.ones(0, dtype=th.bool)

    def failed(self) -> th.Tensor | None:
        """
        Reduce the checks to a single flag on the device.

        :return: 1 if a check has failed so far, else 0, a 32-bit scalar where the flags are; ``None`` without checks
        """
        return (~self.flags()).any().float() if self._found else None

    def raise_first(self, flags: list[bool] | None = None) -> None:
        """
        Wait for the flags, and raise the first error of those that are false.

        :param flags: what :meth:`flags` holds by now, if it has been read already
        """
        for ok, (_, error) in zip(self.flags().tolist() if flags is None else flags, self._found, strict=True):
            if not ok:
                raise error()


_ACTIVE: list[Checks] = []


def active_checks() -> Checks | None:
    """
    The innermost collection of deferred checks.

    :return: where checks are kept, or ``None`` if they are made at once
    """
    return _ACTIVE[-1] if _ACTIVE else None


@contextmanager
def deferred(checks: Checks | None = None) -> Iterator[Checks]:
    """
    Within this context checks are put off. They are of the process, not of a thread.

    :param checks: where they are kept (``None``: in new ones)
    :return: the checks; the caller asks them with :meth:`Checks.raise_first`
    """
    checks = Checks() if checks is None else checks
    _ACTIVE.append(checks)
    try:
        yield checks
    finally:
        _ACTIVE.remove(checks)


def require(ok: th.Tensor, error: Callable[[], Exception]) -> None:
    """
    Check a condition that is a tensor, now or, within :func:`deferred`, later.

    :param ok: bool scalar
    :param error: makes what is raised if it is false
    :raises Exception: that one, at once or, within :func:`deferred`, when the checks are asked
    """
    if _ACTIVE:
        _ACTIVE[-1].append(ok, error)
    elif not ok:
        raise error()


def require_finite(value: th.Tensor, error: Callable[[], Exception]) -> None:
    """
    Check that a scalar tensor is finite, now or, within :func:`deferred`, later.

    :param value: scalar
    :param error: makes what is raised if it is NaN or infinity
    :raises Exception: that one, as :func:`require` does
    """
    if _ACTIVE:
        _ACTIVE[-1].append(th.isfinite(value), error)
    elif not math.isfinite(value.item()):
        raise error()


def is_host(tensor: th.Tensor) -> bool:
    """
    Check that a tensor can be read without synchronising with a device.

    :param tensor: any
    :return: whether its values are the host's to read: then a loop or an index may depend on them
    """
    return tensor.device.type in HOSTS
