"""The loop over the steps of a refiner: whatever runs one, or looks at its states, iterates over this."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch as th

from sb3_energy.stats import gaussian_draw
from sb3_energy.types import Refiner, RefinerInfo, RefinerState, Target, Tick


class Step(NamedTuple):
    """
    One step of a refiner.

    :param before: the state before it
    :param after: the state after it
    :param info: numbers to look at (``None`` from :class:`KernelSteps`)
    :param tick: which step of how many
    """

    before: RefinerState
    after: RefinerState
    info: RefinerInfo | None
    tick: Tick


def steps(
    refiner: "Refiner | KernelSteps",
    particles: th.Tensor,
    target: Target,
    *,
    n_steps: int,
    generator: th.Generator | None = None,
) -> Iterator[Step]:
    """
    Run a refiner, one step for each iteration.

    :param refiner: how to move
    :param particles: ``(B, N, *E)`` where to start
    :param target: what to draw from
    :param n_steps: how many steps; with 0 nothing is evaluated
    :param generator: source of the noise (``None``: torch's global one)
    :return: the steps
    """
    if n_steps == 0:
        return
    state = refiner.init(particles, target)
    for k in range(n_steps):
        before, tick = state, Tick(k, n_steps)
        state, info = refiner.step(before, target, tick, generator)
        yield Step(before, state, info, tick)


class KernelSteps:
    """
    A refiner's steps as draws from the Gaussian that its ``kernel`` names, without what only serves to be looked at: no
    lengths of steps, and no energy where the last one ends.

    :param refiner: one with a method ``kernel(state, target, tick) -> mean (B, N, *E), std``
    """

    def __init__(self, refiner: Any):
        self.refiner = refiner

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        Initialise the wrapped refiner's state.

        :param particles: ``(B, N, *E)``
        :param target: what to draw from
        :return: the state before the first step
        """
        return self.refiner.init(particles, target)

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, None]:
        """
        Draw the next particles from the refiner's Gaussian transition kernel.

        :param state: the state before the step
        :param target: what to draw from
        :param tick: which step of how many
        :param generator: source of the noise
        :return: the state after the step, where the last one has the energies of the state before, NaN where a particle is
            NaN or infinity; and ``None`` for the diagnostics
        """
        mean, std = self.refiner.kernel(state, target, tick)
        particles = gaussian_draw(mean, std, generator)
        if tick.is_last:
            return RefinerState(particles, state.energies + zero_energy(particles)), None
        return self.refiner.init(particles, target), None


def lean(refiner: Any) -> Any:
    """
    A refiner's steps for callers that look at nothing but the particles.

    :param refiner: any; one that knows what it can leave out has a method ``lean``
    :return: something with ``init`` and ``step`` that draws the same random numbers and moves particles alike
    """
    if hasattr(refiner, "lean"):
        return refiner.lean()
    return KernelSteps(refiner) if hasattr(refiner, "kernel") else refiner


def zero_energy(x: th.Tensor) -> th.Tensor:
    """
    The energy that is 0 everywhere, in place of one that is not looked at; NaN where a particle is NaN or infinity.

    :param x: ``(B, N, *E)``
    :return: ``(B, N)``
    """
    return 0.0 * x.flatten(2).sum(-1)
