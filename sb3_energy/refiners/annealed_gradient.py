"""The gradient sampler of implicit behavioral cloning, which anneals its steps and its noise together."""

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.checks import check_integer, check_number, check_positive, check_schedule, plain_fields
from sb3_energy.refiners.sequence import RefinerSequence
from sb3_energy.schedules import Polynomial, value_at
from sb3_energy.stats import noise_like
from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick

FALLING = Polynomial(0.1, 1e-5, 2.0)
"""Published step sizes: from .1 to .00001, by the square of what remains."""


@dataclass(frozen=True)
class AnnealedGradient:
    """
    ``x ← x - clip(λ_k (½ ∇E(x) + ξ))`` with a falling ``λ_k``: the "Langevin" sampler of implicit behavioral cloning
    (Florence et al. 2021, appendix B.3), for counter-examples in training and for the argmin in inference.

    It is not Langevin dynamics at the energy's temperature, and ``exact`` is false: both terms are multiplied by ``λ``, where
    :class:`Langevin` has ``ε ½ ∇E`` beside ``√ε ξ``. At a step ``λ`` it is a chain at the temperature ``λ``: on a quadratic of
    curvature 1 the variance is ``λ / (1 - λ / 4)``, where that of ``exp(-E)`` is 1. As ``λ`` falls it becomes a descent, and
    where its particles end says how low the energy is there, not how likely.

    Steps are in the coordinates of the particles. With ``box="reflect", precondition=False`` these are the actions in [-1, 1],
    and the bound is the published .1 of half the range. Walls are mirrors then; the published sampler clips to them.

    :param step_size: ``λ``, a number or a schedule
    :param noise_scale: factor of the noise ``ξ``, a number or a schedule; 0 descends
    :param max_displacement: the largest step of a coordinate, with its noise (``None``: any)
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    """

    step_size: float | Schedule = FALLING
    noise_scale: float | Schedule = 1.0
    max_displacement: float | None = 0.1

    exact: ClassVar[bool] = False
    resamples: ClassVar[bool] = False
    default_steps: ClassVar[int] = 100
    default_particles: ClassVar[int] = 128
    max_steps: ClassVar[int | None] = None
    estimators: ClassVar[tuple[str, ...]] = ("base",)
    head: ClassVar[str | None] = None
    search_space: ClassVar[dict[str, Any]] = dict(steps=(5, 50), particles_pow=(0, 7), noise_scale=(0.01, 1.0))

    def __post_init__(self) -> None:
        plain_fields(self)
        check_schedule("step_size", self.step_size, minimum=0.0, strict=True)
        check_schedule("noise_scale", self.noise_scale, minimum=0.0)
        check_positive("max_displacement", self.max_displacement)

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        Evaluate the initial particles' energies and gradients.

        :param particles: ``(B, N, *E)``
        :param target: whose energy is to be low
        :return: particles, energies, and the gradients in ``extra``
        """
        return RefinerState(particles, *energy_and_grad(target.energy, particles))

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        Take one step of the size that is due.

        :param state: with the gradients at its particles in ``extra``
        :param target: whose energy is to be low
        :param tick: which step of how many
        :param generator: source of the noise
        :return: the next state, and how far the particles went
        """
        change = 0.5 * state.extra
        noise_scale = value_at(self.noise_scale, tick.remaining)
        if noise_scale > 0.0:
            change = change + noise_scale * noise_like(change, generator)
        change = value_at(self.step_size, tick.remaining) * change
        if self.max_displacement is not None:
            change = change.clamp(-self.max_displacement, self.max_displacement)
        particles = state.particles - change
        if tick.is_last:  # no step follows that needs the gradients
            energies, gradients = target.energy(particles), None
        else:
            energies, gradients = energy_and_grad(target.energy, particles)
        return RefinerState(particles, energies, gradients), RefinerInfo.of_move(state.particles, particles)

    def deterministic(self) -> "AnnealedGradient":
        """
        Return the variant without noise.

        :return: gradient descent with the same steps
        """
        return replace(self, noise_scale=0.0)

    def reach(self, margin: float, n_steps: int | None = None) -> float:
        """
        How far slopes of a length can carry a coordinate in a whole refinement, ``½ m Σ_k λ_k``, or less where steps are
        bounded. A chain that starts anywhere in the box has to reach as far as the box is wide, 2 in [-1, 1].

        :param margin: ``m``, the largest slope of a coordinate; a gradient penalty holds it near its margin
        :param n_steps: of the refinement (``None``: the default)
        :return: the distance, in the coordinates of the particles
        :raises ValueError: if a number is out of range
        :raises TypeError: if something has the wrong type
        """
        margin = check_number("margin", margin, strict=True)
        n = check_integer("n_steps", self.default_steps if n_steps is None else n_steps, minimum=1)
        longest = math.inf if self.max_displacement is None else self.max_displacement
        sizes = (value_at(self.step_size, Tick(k, n).remaining) for k in range(n))
        return sum(min(0.5 * margin * size, longest) for size in sizes)

    def settling(self, n_steps: int) -> RefinerSequence:
        """
        The sampler of inference, with twice the steps of training: its schedule, then as many steps of its last size.

        :param n_steps: of training
        :return: a sequence of both
        :raises ValueError: if the number is below 1
        :raises TypeError: if it is not an integer
        """
        last = replace(self, step_size=value_at(self.step_size, 0.0), noise_scale=value_at(self.noise_scale, 0.0))
        return RefinerSequence((self, last), (n_steps, n_steps))


def warn_if_out_of_reach(refiner: AnnealedGradient, margin: float, n_steps: int, width: float = 2.0) -> None:
    """
    Warn of a gradient penalty under which chains cannot cross the actions' range. An energy that has not learned enough fails
    alike: compare with an argmin over a grid before a sampler is blamed.

    :param refiner: the sampler
    :param margin: of the gradient penalty
    :param n_steps: of the refinement
    :param width: of the range, in the coordinates of the particles
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    """
    reach, width = refiner.reach(margin, n_steps), check_number("width", width, strict=True)
    if reach < width:
        warnings.warn(
            f"a chain of {n_steps} steps gets {reach:.2f} far where slopes are at most {margin:g}, and actions are {width:g} "
            "apart: use more steps, or a larger margin of the gradient penalty",
            UserWarning,
            stacklevel=2,
        )
