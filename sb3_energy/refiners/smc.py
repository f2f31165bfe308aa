"""Annealed sequential Monte Carlo: from the proposals to the energy in rungs of reweighing, resampling and moving."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch as th

from sb3_energy.autodiff import has_gradient
from sb3_energy.checks import check_choice, check_fraction, check_integer, check_positive, plain_fields
from sb3_energy.deferred import is_host
from sb3_energy.refiners.bridge import Points, increment, over_event, resampled_in_groups, spread
from sb3_energy.refiners.langevin import Langevin
from sb3_energy.refiners.mala import FALLING_STEPS, langevin_proposal, log_way_back
from sb3_energy.refiners.metropolis import metropolis_test
from sb3_energy.stats import log_mean_exp
from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick

LADDERS = ("adaptive", "fixed")
"""How the rungs are placed."""

ACCEPTANCE_OF_WALKS = 0.234
"""The best acceptance of a random walk in many dimensions (Roberts, Gelman and Gilks 1997)."""


class Annealing(NamedTuple):
    """
    The ``extra`` of annealed sequential Monte Carlo, with ``G`` groups of particles.

    :param points: the particles with what their tempered energies are made of
    :param beta: ``(B, 1)``, 0 at the proposal and 1 at the target
    :param log_weights: ``(B, G)``, those of the groups
    :param n_rungs: ``(B, 1)``, how many rungs an observation has taken
    :param log_scale: ``(B, 1)``, logarithm of the tuned factor of the step size
    :param variances: ``(B, 1, *E)`` of the weighted particles, the unit of the step size
    """

    points: Points
    beta: th.Tensor
    log_weights: th.Tensor
    n_rungs: th.Tensor
    log_scale: th.Tensor
    variances: th.Tensor

    @property
    def log_normalizer(self) -> th.Tensor:
        """``(B,)``, estimate of ``log ∫ exp(-E)`` where ``beta`` is 1."""
        return log_mean_exp(self.log_weights, dim=1)


class _Bounds(NamedTuple):
    """Those of a Langevin step: a drift of one standard deviation."""

    max_displacement: th.Tensor
    max_grad_norm: None = None


@dataclass(frozen=True)
class AnnealedSMC:
    """
    Brings draws of the proposal ``q`` to ``exp(-E)`` along ``q^(1-β) exp(-βE)``, with ``β`` rising from 0 to 1. Annealed
    importance sampling (Neal 2001) with resampling: the sampler of Del Moral, Doucet and Jasra (2006, section 3.3.2.3).

    A step is a rung: ``β`` rises as far as the weights keep an effective sample size of ``ess_fraction`` of the particles,
    these are resampled systematically (Carpenter et al. 1999), and each takes ``moves`` Metropolis-adjusted Langevin steps at
    the new ``β``, or steps of a random walk where the energy has no gradient. Each observation has a ladder of its own; one
    that has arrived is left as it is, and the last rung goes to ``β = 1`` whatever the weights are.

    Importance weights of the whole way collapse in many dimensions, those of a rung do not. There, particles from a Gaussian
    on one mode outweigh those from the box half-way, and are outweighed at the end, when no others would be left. So particles
    are resampled within ``groups`` whose weights are kept, and across them on the last rung: the proposal is sampled in
    strata, the base's draws first. All groups take the same rungs and steps, since only together they follow the law.

    ``extra`` has an estimate of ``log ∫ exp(-E)``: with a fixed ladder and a fixed ``step_size`` its exponential is unbiased,
    with those that look at the particles it is consistent.

    :param ladder: ``"adaptive"``, or ``"fixed"``: ``β_k = (k / K)²`` after the ``k``-th of ``K`` rungs
    :param ess_fraction: effective sample size that an adaptive rung keeps, a part of the particles
    :param moves: steps of every particle on each rung
    :param groups: into how many equal groups the particles are divided, in their order (one, if their number is no multiple)
    :param step_size: ``ε`` on all rungs (``None``: the variance of the particles in each coordinate times a factor, which
        follows the acceptance after every move)
    :param target_acceptance: what the tuned factor aims at where there is a gradient; .574 is best in many dimensions (Roberts
        and Rosenthal 1998). Random walks aim at .234
    :raises ValueError: if a name or a number is not one of those that are accepted
    :raises TypeError: if something has the wrong type
    """

    ladder: str = "adaptive"
    ess_fraction: float = 0.5
    moves: int = 6
    groups: int = 2
    step_size: float | None = None
    target_acceptance: float = 0.574

    exact: ClassVar[bool] = True
    resamples: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = False
    """It follows a gradient where there is one."""
    default_steps: ClassVar[int] = 10
    default_particles: ClassVar[int] = 32
    max_steps: ClassVar[int | None] = None
    estimators: ClassVar[tuple[str, ...]] = ("base", "soft_value", "smc")
    head: ClassVar[str | None] = None
    needs_log_prob: ClassVar[bool] = True
    search_space: ClassVar[dict[str, Any]] = dict(steps=(2, 12), particles_pow=(3, 6))

    def __post_init__(self) -> None:
        plain_fields(self)
        check_choice("ladder", self.ladder, LADDERS)
        check_fraction("ess_fraction", self.ess_fraction, strict=True)
        check_integer("moves", self.moves, minimum=1)
        check_integer("groups", self.groups, minimum=1)
        check_positive("step_size", self.step_size)
        check_fraction("target_acceptance", self.target_acceptance, strict=True)
        if self.ladder == "fixed" and self.ess_fraction != 0.5:
            raise ValueError(f"ess_fraction belongs to ladder='adaptive', got {self.ess_fraction!r} with 'fixed'")
        if self.step_size is not None and self.target_acceptance != 0.574:
            raise ValueError(
                f"target_acceptance tunes steps without a step_size, got {self.target_acceptance!r} with {self.step_size!r}"
            )

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        Evaluate the initial particles' energies and densities, with gradients where the energy has one.

        :param particles: ``(B, N, *E)``, draws from the proposal
        :param target: with its ``proposal``
        :return: particles, energies, and an :class:`Annealing` that has not begun in ``extra``
        :raises ValueError: if the target does not say what the particles were drawn from
        """
        if target.proposal is None:
            raise ValueError("smc needs Target.proposal, minus the log-density of the initial particles, got None")
        follows = _has_gradient(target, particles)
        points = Points.at(particles, target, follows)
        n_groups = self.groups if particles.shape[1] % self.groups == 0 else 1
        zero = points.energies.new_zeros(len(particles), 1)
        weights = points.energies.new_zeros(len(particles), n_groups)
        unit = th.ones_like(particles[:, :1])
        return RefinerState(particles, points.energies, Annealing(points, zero, weights, zero, zero, unit))

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        Take one rung: reweigh, resample, move.

        :param state: with an :class:`Annealing` in ``extra``
        :param target: with its ``proposal``
        :param tick: which rung of at most how many
        :param generator: source of the noise and of the draws
        :return: the next state; the mean acceptance of the moves, how far the particles in each place went, and the effective
            sample size of the rung's weights
        :raises FloatingPointError: if an energy is NaN or minus infinity
        """
        now, active = state.extra, state.extra.beta < 1.0
        if is_host(active) and not th.compiler.is_compiling() and not bool(active.any()):  # all have arrived
            return state, RefinerInfo.of_move(state.particles, state.particles)
        now, size = self._reweighed(now, active, tick, generator)
        acceptance = th.zeros_like(state.energies)
        for _ in range(self.moves):
            now, probability = self._moved(now, active, target, tick, generator=generator)
            acceptance = acceptance + th.where(active, probability, 1.0) / self.moves
        points = now.points
        info = RefinerInfo.of_move(state.particles, points.particles, acceptance.clamp(max=1.0), size)
        return RefinerState(points.particles, points.energies, now), info

    def deterministic(self) -> Langevin:
        """
        Return the variant without noise, weights and rejections.

        :return: gradient descent with MALA's steps; where the energy has no gradient, particles stay where they start
        """
        return _Descent(FALLING_STEPS, 0.0)

    def _reweighed(
        self, old: Annealing, active: th.Tensor, tick: Tick, generator: th.Generator | None
    ) -> tuple[Annealing, th.Tensor]:
        """The next ``β``, the particles resampled by the weights of the way there, and their effective sample size."""
        points, n_groups = old.points, old.log_weights.shape[1]
        rates, room = points.surprisals - points.energies, 1.0 - old.beta
        risen = self._risen(rates.unflatten(1, (n_groups, -1)), old.beta, tick)
        beta = th.where(risen < room, old.beta + risen, 1.0)
        log_weights = th.where(active, risen * rates, 0.0)  # 0 · ∞ is NaN
        index, group_weights, size = resampled_in_groups(log_weights, old.log_weights, beta >= 1.0, generator)
        variances = spread(points.particles, log_weights, n_groups).maximum(0.1 * old.variances)  # 0 where one has it all
        return Annealing(
            points.taken(th.where(active, index, th.arange(index.shape[1], device=index.device))),
            beta,
            th.where(active, group_weights, old.log_weights),
            old.n_rungs + active,
            old.log_scale,
            th.where(over_event(active, variances), variances, old.variances),
        ), size

    def _risen(self, rates: th.Tensor, beta: th.Tensor, tick: Tick) -> th.Tensor:
        if tick.is_last:
            return 1.0 - beta
        if self.ladder == "adaptive":
            return increment(rates, 1.0 - beta, self.ess_fraction)
        return ((tick.step + 1) / tick.n_steps) ** 2 - beta

    def _moved(
        self, old: Annealing, active: th.Tensor, target: Target, tick: Tick, *, generator: th.Generator | None
    ) -> tuple[Annealing, th.Tensor]:
        """One Metropolis-Hastings step at ``β`` of the particles that are on their way, and the probability of acceptance."""
        points, beta = old.points, old.beta
        step_size, bounds = self._step_size(old)
        particles, noise = langevin_proposal(bounds, points.particles, points.slopes(beta), step_size, generator)
        new = Points.at(particles, target, points.has_gradient)
        way_back = log_way_back(bounds, points.particles, particles, new.slopes(beta), step_size, noise)
        log_ratio = points.heights(beta) - new.heights(beta) + way_back
        accepted, probability = metropolis_test(self, tick, new.energies, log_ratio, generator)
        aim = self.target_acceptance if points.has_gradient else ACCEPTANCE_OF_WALKS
        gain = th.where(active, probability.mean(dim=1, keepdim=True) - aim, 0.0)
        return old._replace(points=new.where(accepted & active, points), log_scale=old.log_scale + gain), probability

    def _step_size(self, now: Annealing) -> tuple[th.Tensor, _Bounds]:
        """``(B, 1, *E)``, and the bound of the drift. How it falls with the dimension: Roberts and Rosenthal (1998)."""
        if self.step_size is not None:
            return th.full_like(now.variances, self.step_size), _Bounds(th.ones_like(now.variances))
        dimension = now.variances.shape[2:].numel()
        first = dimension ** (-1.0 / 3.0) if now.points.has_gradient else 2.0 / dimension
        factor = over_event(first * now.log_scale.exp(), now.variances)
        return factor * now.variances, _Bounds(now.variances.sqrt())


class _Descent(Langevin):
    """Langevin's steps, which leave particles where the energy has no gradient."""

    def _energy_and_grad(self, target: Target, particles: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        if _has_gradient(target, particles):
            return super()._energy_and_grad(target, particles)
        return target.energy(particles), th.zeros_like(particles)


def _has_gradient(target: Target, particles: th.Tensor) -> bool:
    try:  # inside of the box, which the coordinates of an energy without gradient may be of
        return has_gradient(target.energy, particles[:, :1].clamp(-1.0, 1.0))
    except RuntimeError:  # numpy code refuses a tensor that autograd follows
        with th.no_grad():
            target.energy(particles[:, :1])  # what fails without autograd, too, is not about the gradient
        return False
