"""From a base and an energy to an event: the sampling and the descent of every refined policy."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch as th

from sb3_energy.energies import near_proposal, on_box, squashed, tempered
from sb3_energy.refinement.bases import Base
from sb3_energy.refinement.boxes import BOXES, Box, Coordinates, Framed
from sb3_energy.refinement.proposal_energy import proposal_energy
from sb3_energy.refinement.proposals import (
    INITIAL_PARTICLES,
    Starts,
    draw_starts,
    draws_unseen,
    energy_of_starts,
    is_flow,
    resampled,
    stratified_fraction,
)
from sb3_energy.refinement.sliceable_energy import SliceableEnergy
from sb3_energy.refinement.warm_start import Plans
from sb3_energy.refiners import (
    MPPI,
    AnnealedSMC,
    Identity,
    RefinerSequence,
    SelfNormalizedImportanceSampling,
    refine,
    refine_until_still,
    refined_particles,
    select,
)
from sb3_energy.refiners.sequence import members_of
from sb3_energy.stats import effective_sample_size
from sb3_energy.steps import zero_energy
from sb3_energy.types import Chains, EnergyFn, Head, Refiner, RefinerInfo, RefinerState, Target


@dataclass(frozen=True)
class Refinement:
    """
    How events are refined: values only, no network. Events ``*E`` are actions ``(A,)``, plans ``(H, A)`` or states ``(S,)`` in
    the box ``[-1, 1]^D``; bases and results are pre-tanh, ``a = tanh(u)``.

    Sampling draws ``n_particles`` proposals. A refiner that compares particles gets all of them; one that moves each
    particle alone gets a single one, resampled by importance: resample, then move (Gilks and Berzuini 2001). The
    resampling chooses the mode, and only one chain has to be paid for.

    Without noise, chains start at fixed quantiles of the base, the first at its mean, and follow the energy itself,
    without temperature and Jacobian; the lowest energy among starts and ends wins.

    :param refiner: moves the particles
    :param n_steps: how many steps
    :param n_particles: how many particles for each observation
    :param initial_particles: ``"base"``, ``"uniform"`` or ``"mixture"``: what the proposals are drawn from
    :param precondition: whether steps are in units of the base's standard deviation (of 1, where it is wider)
    :param trust_region: step ``Δt`` of the JKO transport cost ``|a - a_start|² / (2 Δt)``, in actions scaled to
        [-1, 1] and units of the energy (``None``: no cost)
    :param box: how particles stay in the box
    :param tolerance: without noise, an observation whose lowest energy falls by no more than this in a step takes no
        further one, in units of the energy without its temperature (``None``: all take all steps)
    :param deterministic_particles: how many particles there are without noise (``None``: ``n_particles``)
    """

    refiner: Refiner
    n_steps: int
    n_particles: int
    initial_particles: str = "mixture"
    precondition: bool = True
    trust_region: float | None = None
    box: Box = BOXES["tanh"]
    tolerance: float | None = None
    deterministic_particles: int | None = None

    @property
    def n_starts(self) -> int:
        """How many quantiles of the base a refinement without noise starts from."""
        return self.n_particles if self.deterministic_particles is None else self.deterministic_particles

    @property
    def is_identity(self) -> bool:
        """Whether events stay the base's draws."""
        return isinstance(self.refiner, Identity)

    @property
    def keeps_plans(self) -> bool:
        """Whether it can start from the plans of the refinement before."""
        return isinstance(self.refiner, MPPI) and self.refiner.warm_start

    def parts(self) -> "list[Refinement]":
        """
        Refinements by each refiner of a sequence alone.

        :return: one for each; of a single refiner this one
        """
        if not isinstance(self.refiner, RefinerSequence):
            return [self]
        members = zip(self.refiner.members, self.refiner.steps, strict=True)
        return [replace(self, refiner=member, n_steps=n_steps) for member, n_steps in members]

    def thinned(self, n_particles: int | None) -> "Refinement":
        """
        Limit the number of particles, to make the refinement cheaper.

        :param n_particles: the most that a draw may be chosen from, and that descend without noise (``None``: as many as
            there are)
        :return: the same refinement with no more; itself where particles move together, which needs them all
        """
        comparing = [member for member in members_of(self.refiner) if member.resamples]
        together = not all(isinstance(member, SelfNormalizedImportanceSampling) for member in comparing)
        if n_particles is None or together or max(self.n_particles, self.n_starts) <= n_particles:
            return self
        fewer, descents = min(self.n_particles, n_particles), self.deterministic_particles
        return replace(
            self, n_particles=fewer, deterministic_particles=None if descents is None else min(descents, n_particles)
        )

    def annealed(self, n_particles: int) -> "Refinement":
        """
        Annealed sequential Monte Carlo in the same coordinates, from draws of the base and the box.

        :param n_particles: how many for each observation
        :return: that refinement, with the sampler's defaults
        """
        return Refinement(AnnealedSMC(), AnnealedSMC.default_steps, n_particles, precondition=self.precondition, box=self.box)

    def coordinates(self, base: Base) -> Coordinates:
        """
        The coordinates in which the refiner sees particles.

        :param base: at ``B`` observations
        :return: those of the box, with ``precondition`` in units of the base's frame
        :raises ValueError: if steps are preconditioned and the base has no frame
        """
        if not self.precondition:
            return self.box
        frame = base.frame()
        if frame is None:
            raise ValueError(f"precondition=True needs a base with a frame, {type(base).__name__} has none")
        return Framed(self.box, *self.box.frame(frame))

    def sample(
        self,
        base: Base,
        energy: EnergyFn,
        temperature: float | th.Tensor = 1.0,
        *,
        generator: th.Generator | None = None,
        infos: list[RefinerInfo] | None = None,
        plans: Plans | None = None,
        head: Head | None = None,
        is_finite: bool = False,
    ) -> th.Tensor:
        """
        A draw from (about) ``exp(-E / temperature)`` in the box.

        :param base: draws the proposals
        :param energy: ``(B, N, *E) -> (B, N)`` in the box
        :param temperature: scalar, or ``(B, 1)``
        :param generator: source of the noise (``None``: torch's global one)
        :param infos: a list to which one ``RefinerInfo`` a step is appended
        :param plans: where to start from and where to write the plans, if the refiner has some
        :param head: the learned head at these observations, if the refiner needs one
        :param is_finite: whether the energy is known to be finite, so that it need not be checked where chains end
        :return: ``(B, *E)``, pre-tanh
        :raises ValueError: if there are plans and the refiner has none, or the base lacks a density or a frame that is needed
        :raises FloatingPointError: if an energy is not finite
        """
        self._check_plans(plans)
        if draws_unseen(self.refiner) and infos is None:
            energy = zero_energy  # it is not looked at, and each costs an evaluation of the critics
        starts, energy_fn = self._starts(base, energy, temperature, generator=generator)
        coordinates = self.coordinates(base)
        particles, log_prob = starts.particles, starts.log_prob
        if plans is not None:
            particles = plans.warmed(particles, base, generator=generator)
        known = None if log_prob is None or particles is not starts.particles else coordinates.log_prob(particles, log_prob)
        proposal = self._proposal(coordinates, base)
        target = _target(coordinates, coordinates.sampled, energy_fn, head, proposal_log_prob=known, proposal=proposal)
        x = coordinates.start(particles)
        if is_finite and infos is None and plans is None and not self.refiner.resamples:
            ends = refined_particles(self.refiner, x, target, n_steps=self.n_steps, generator=generator)
            return coordinates.end(ends)[:, 0]
        taken: list[RefinerInfo] | None = None if infos is None else []
        state = refine(self.refiner, x, target, n_steps=self.n_steps, generator=generator, infos=taken)
        if infos is not None and taken:
            if starts.log_weights is not None:  # the resampling belongs to the step that follows it
                taken[0] = taken[0]._replace(effective_sample_size=effective_sample_size(starts.log_weights))
            infos += taken
        return select(self._ended(coordinates, state, plans), deterministic=False)

    def simulate(
        self,
        base: Base,
        energy: EnergyFn,
        temperature: float | th.Tensor = 1.0,
        n_chains: int = 1,
        *,
        head: Head | None = None,
        generator: th.Generator | None = None,
    ) -> Chains:
        """
        Chains of the refiner before their first step, each started as :meth:`sample` starts, for estimators of their density.

        :param base: draws the proposals
        :param energy: ``(B, N, *E) -> (B, N)`` in the box
        :param temperature: scalar, or ``(B, 1)``
        :param n_chains: how many for each observation; a refiner that compares particles has its ``n_particles`` instead
        :param head: the learned head at these observations, if the refiner needs one
        :param generator: source of the noise (``None``: torch's global one)
        :return: the chains
        :raises ValueError: as :meth:`sample`
        """
        starts, energy_fn = self._starts(base, energy, temperature, n_chains=n_chains, generator=generator)
        coordinates = self.coordinates(base)
        log_prob = None if starts.log_prob is None else coordinates.log_prob(starts.particles, starts.log_prob)
        return Chains(
            self.refiner,
            _target(
                coordinates,
                coordinates.sampled,
                energy_fn,
                head,
                proposal_log_prob=log_prob,
                proposal=self._proposal(coordinates, base),
            ),
            coordinates.start(starts.particles),
            log_prob=log_prob if starts.log_weights is None else None,
            n_steps=self.n_steps,
            log_jacobian=coordinates.log_jacobian,
        )

    def best(
        self,
        base: Base,
        energy: EnergyFn,
        *,
        infos: list[RefinerInfo] | None = None,
        plans: Plans | None = None,
        head: Head | None = None,
    ) -> th.Tensor:
        """
        The event of lowest energy among the starts and where descent takes them. Uses no random number generator.

        :param base: whose quantiles are the starts
        :param energy: ``(B, N, *E) -> (B, N)`` in the box; with a ``tolerance``, a
            :class:`sb3_energy.refinement.sliceable_energy.SliceableEnergy`
        :param infos: a list to which one ``RefinerInfo`` a step is appended
        :param plans: where to start from and where to write the plans, if the refiner has some
        :param head: the learned head at these observations, if the refiner needs one; energies of prefixes in the units of the
            energy
        :return: ``(B, *E)``, pre-tanh
        :raises TypeError: if there is a tolerance and the energy cannot be had for some of its observations
        :raises ValueError: if there are plans and the refiner has none, or the base lacks a frame that is needed
        :raises FloatingPointError: if an energy is not finite
        """
        self._check_plans(plans)
        coordinates, starts = self.coordinates(base), base.quantiles(self.n_starts)
        if plans is not None:
            starts = plans.warmed(starts, base, quasi_random=True)
        refiner, x = self.refiner.deterministic(), coordinates.start(starts)
        target = self._descended(coordinates, starts, energy, head=head)
        if self.tolerance is None:
            state = refine(refiner, x, target, n_steps=self.n_steps, infos=infos)
        elif not isinstance(energy, SliceableEnergy):
            raise TypeError(
                "tolerance needs an energy with a method rows(index), such as policy.energy_fn(obs), "
                f"got {type(energy).__name__}"
            )
        else:
            target_of = partial(self._descended_rows, coordinates, starts, energy)
            options = dict(n_steps=self.n_steps, tolerance=self.tolerance, infos=infos)
            state = refine_until_still(refiner, x, target, target_of=target_of, **options)  # type: ignore[arg-type]
        ends = self._ended(coordinates, state, plans)
        candidates = th.cat([starts, ends.particles], dim=1)
        return select(RefinerState(candidates, on_box(energy)(candidates)), deterministic=True)

    def actions(self, base: Base, x: th.Tensor) -> th.Tensor:
        """
        The events at a refiner's particles.

        :param base: at ``B`` observations
        :param x: ``(B, N, *E)`` in the refiner's coordinates, such as the ends of :meth:`simulate`'s chains
        :return: ``(B, N, *E)`` in the box
        """
        return th.tanh(self.coordinates(base).end(x))

    def _starts(
        self,
        base: Base,
        energy: EnergyFn,
        temperature: float | th.Tensor,
        *,
        n_chains: int = 1,
        generator: th.Generator | None,
    ) -> tuple[Starts, EnergyFn]:
        """Where chains start pre-tanh, and the tempered energy that they follow."""
        fraction, energy_fn = INITIAL_PARTICLES[self.initial_particles], tempered(energy, temperature)
        if self.refiner.resamples:  # one set of particles
            return draw_starts(base, self.n_particles, fraction, generator=generator), energy_fn
        n_proposals = 1 if is_flow(self.refiner) else self.n_particles
        starts = draw_starts(base, n_proposals, fraction, n_chains=n_chains, generator=generator)
        if n_proposals > 1:
            weighing = squashed(tempered(energy_of_starts(energy), temperature))
            starts = resampled(starts, n_chains, weighing, generator=generator)
        if self.trust_region is not None:
            energy_fn = tempered(near_proposal(energy, th.tanh(starts.particles), self.trust_region), temperature)
        return starts, energy_fn

    def _proposal(self, coordinates: Coordinates, base: Base) -> EnergyFn | None:
        """What :meth:`_starts` draws the particles of a refiner that compares them from, if its density is known."""
        if not (self.refiner.resamples and base.has_density):
            return None
        fraction = stratified_fraction(self.n_particles, INITIAL_PARTICLES[self.initial_particles])
        return proposal_energy(coordinates, base, fraction)

    def _descended(self, coordinates: Coordinates, starts: th.Tensor, energy: EnergyFn, *, head: Head | None = None) -> Target:
        if self.trust_region is not None:
            energy = near_proposal(energy, th.tanh(starts), self.trust_region)
        return _target(coordinates, coordinates.descended, energy, head)

    def _descended_rows(
        self, coordinates: Coordinates, starts: th.Tensor, energy: SliceableEnergy, index: th.Tensor
    ) -> Target:
        return self._descended(coordinates.rows(index), starts[index], energy.rows(index))

    def _check_plans(self, plans: Plans | None) -> None:
        if plans is not None and not self.keeps_plans:
            raise ValueError(
                f"plans need refiner='mppi' with refiner_kwargs=dict(warm_start=True), got {type(self.refiner).__name__}"
            )

    def _ended(self, coordinates: Coordinates, state: RefinerState, plans: Plans | None) -> RefinerState:
        """The state pre-tanh, whose plans are kept."""
        if plans is not None:
            plans.keep(coordinates.end(state.extra.mean).squeeze(1))
        return state._replace(particles=coordinates.end(state.particles))


def _target(
    coordinates: Coordinates,
    transform: Callable[[EnergyFn], EnergyFn],
    energy: EnergyFn,
    head: Head | None,
    *,
    proposal_log_prob: th.Tensor | None = None,
    proposal: EnergyFn | None = None,
) -> Target:
    head = coordinates.velocities((head or Head()).through(transform))
    return Target(transform(energy), proposal_log_prob=proposal_log_prob, proposal=proposal, **head._asdict())
