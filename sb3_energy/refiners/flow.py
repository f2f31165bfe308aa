"""Integration of a learned velocity field."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch as th

from sb3_energy.checks import check_choice
from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick


class TransportSteps(ABC):
    """Steps that move each particle by a function of its place alone: no noise, no energy."""

    @abstractmethod
    def transport(self, particles: th.Tensor, target: Target, tick: Tick) -> th.Tensor:
        """
        One step as a function of the particles, which can be differentiated.

        :param particles: ``(B, N, *E)``
        :param target: with the velocity that has been learned
        :param tick: which step of how many
        :return: ``(B, N, *E)``
        """

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        Transport the particles over one time step of the flow.

        :param state: particles at the time the step begins
        :param target: with the velocity that has been learned
        :param tick: which step of how many
        :param generator: not used
        :return: particles at the time the step ends, and how far they went
        """
        particles = self.transport(state.particles, target, tick)
        return RefinerState(particles, target.energy(particles)), RefinerInfo.of_move(state.particles, particles)

    def deterministic(self) -> Any:
        """
        Return the refiner unchanged, because transport has no noise.

        :return: itself
        """
        return self


class Stage(NamedTuple):
    """
    A point of a step at which a solver evaluates the velocity.

    :param particles: ``(B, N, *E)``
    :param time: ``(B, N)``
    :param weight: by which the velocity there is multiplied in the sum that is the step
    :param velocity: ``(B, N, *E)``
    """

    particles: th.Tensor
    time: th.Tensor
    weight: float
    velocity: th.Tensor


StageFn = Callable[[th.Tensor, float, float], Stage]
"""``(B, N, *E)``, how long after the step's beginning, weight ``-> Stage``."""


@dataclass(frozen=True)
class Flow(TransportSteps):
    """
    ``dx/dt = v(x, t)`` from the base at ``t = 0`` to the target at ``t = 1``, in as many steps as there are.

    Flow matching (Lipman et al. 2023, section 2); the velocity comes with the target, and a policy learns it. Steps ask no
    random numbers: the base's are all there is. What comes out is as good as what was learned.

    :param solver: ``"euler"``, ``"heun"`` or ``"rk4"`` (Runge and Kutta's fourth order): 1, 2 or 4 velocities a step
    :raises ValueError: if there is no such solver
    """

    solver: str = "heun"

    exact: ClassVar[bool] = False
    resamples: ClassVar[bool] = False
    default_steps: ClassVar[int] = 4
    default_particles: ClassVar[int] = 8
    max_steps: ClassVar[int | None] = None
    estimators: ClassVar[tuple[str, ...]] = ("divergence", "base", "soft_value", "smc")
    head: ClassVar[str | None] = "velocity"
    search_space: ClassVar[dict[str, Any]] = dict(steps=(1, 8), particles_pow=(0, 4))

    def __post_init__(self) -> None:
        check_choice("solver", self.solver, sorted(SOLVERS))

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        Evaluate the initial particles' energies.

        :param particles: ``(B, N, *E)``, draws from the base
        :param target: with its ``velocity``
        :return: particles and energies
        :raises ValueError: if the target has no velocity
        """
        if target.velocity is None:
            raise ValueError("flow needs Target.velocity, (B, N, *E), t (B, N) -> (B, N, *E), got None")
        return RefinerState(particles, target.energy(particles))

    def transport(self, particles: th.Tensor, target: Target, tick: Tick) -> th.Tensor:
        for stage in self.stages(particles, target, tick):
            particles = particles + stage.weight * stage.velocity
        return particles

    def stages(self, particles: th.Tensor, target: Target, tick: Tick) -> list[Stage]:
        """
        Evaluate the velocity at the solver's stages of one step.

        :param particles: ``(B, N, *E)``
        :param target: with its ``velocity``
        :param tick: which step of how many
        :return: the points at which the solver evaluates the velocity
        """
        velocity, begin = target.velocity, particles.new_full(particles.shape[:2], tick.step * tick.dt)
        assert velocity is not None  # init has checked it

        def at(x: th.Tensor, later: float, weight: float) -> Stage:
            time = begin + later
            return Stage(x, time, weight=weight, velocity=velocity(x, time))

        return SOLVERS[self.solver](at, particles, tick.dt)


def _euler(at: StageFn, x: th.Tensor, dt: float) -> list[Stage]:
    return [at(x, 0.0, dt)]


def _heun(at: StageFn, x: th.Tensor, dt: float) -> list[Stage]:
    first = at(x, 0.0, dt / 2.0)
    return [first, at(x + dt * first.velocity, dt, dt / 2.0)]


def _rk4(at: StageFn, x: th.Tensor, dt: float) -> list[Stage]:
    first = at(x, 0.0, dt / 6.0)
    second = at(x + dt / 2.0 * first.velocity, dt / 2.0, dt / 3.0)
    third = at(x + dt / 2.0 * second.velocity, dt / 2.0, dt / 3.0)
    return [first, second, third, at(x + dt * third.velocity, dt, dt / 6.0)]


SOLVERS: dict[str, Callable[[StageFn, th.Tensor, float], list[Stage]]] = {
    "euler": _euler,
    "heun": _heun,
    "rk4": _rk4,
}
"""Explicit Runge-Kutta methods (Hairer et al. 1993, section II.1), by name."""
