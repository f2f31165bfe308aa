"""From a Gaussian base and an energy to an action: what every refined policy does."""

from dataclasses import dataclass, replace
from functools import partial

import torch as th

from sb3_energy.energies import near_proposal, on_box, squashed, standardized, tempered
from sb3_energy.refinement.boxes import BOXES, Box
from sb3_energy.refinement.proposals import INITIAL_PARTICLES, Gaussian, draw_proposals
from sb3_energy.refinement.sliceable_energy import SliceableEnergy
from sb3_energy.refinement.starts import Starts, energy_of_starts, is_flow, resampled_proposals
from sb3_energy.refinement.warm_start import Plans
from sb3_energy.refiners import (
    MPPI,
    Identity,
    SelfNormalizedImportanceSampling,
    refine,
    refine_until_still,
    refined_particles,
    select,
)
from sb3_energy.stats import effective_sample_size, normal_quantiles
from sb3_energy.steps import zero_energy
from sb3_energy.types import Chains, EnergyFn, Head, Refiner, RefinerInfo, RefinerState, Target


@dataclass(frozen=True)
class Refinement:
    """
    How actions are refined: values only, no network. What goes in and comes out is before the squash, ``a = tanh(u)``.

    Sampling draws ``n_particles`` proposals. A refiner that compares particles gets all of them; one that moves each
    particle alone gets a single one, resampled by importance: resample, then move (Gilks and Berzuini 2001). The
    resampling chooses the mode, the chain settles in it, and only one chain has to be paid for.

    Without noise, the chains start at fixed quantiles of the base, the first at its mean, and follow the energy itself,
    without temperature and Jacobian; the lowest energy among starts and ends wins.

    :param refiner: moves the particles
    :param n_steps: how many steps
    :param n_particles: how many particles for each observation
    :param initial_particles: ``"base"``, ``"uniform"`` or ``"mixture"``: what the proposals are drawn from
    :param precondition: whether steps are measured in units of the base's standard deviation (of 1, where it is wider)
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
        """Quantiles of the base that a refinement without noise starts from."""
        return self.n_particles if self.deterministic_particles is None else self.deterministic_particles

    @property
    def is_identity(self) -> bool:
        """Whether actions stay what the base says."""
        return isinstance(self.refiner, Identity)

    @property
    def keeps_plans(self) -> bool:
        """Whether it can start from the plans of the refinement before."""
        return isinstance(self.refiner, MPPI) and self.refiner.warm_start

    def thinned(self, n_particles: int | None) -> "Refinement":
        """
        :param n_particles: the most that a draw may be chosen from, and that descend without noise (``None``: as many as
            there are)
        :return: the same refinement with no more; itself where particles move together, which needs them all
        """
        together = self.refiner.resamples and not isinstance(self.refiner, SelfNormalizedImportanceSampling)
        if n_particles is None or together or max(self.n_particles, self.n_starts) <= n_particles:
            return self
        fewer, descents = min(self.n_particles, n_particles), self.deterministic_particles
        return replace(
            self, n_particles=fewer, deterministic_particles=None if descents is None else min(descents, n_particles)
        )

    def sample(
        self,
        base: Gaussian,
        energy: EnergyFn,
        temperature: th.Tensor,
        generator: th.Generator | None = None,
        infos: list[RefinerInfo] | None = None,
        plans: Plans | None = None,
        head: Head | None = None,
        is_finite: bool = False,
    ) -> th.Tensor:
        """
        A draw from (about) ``exp(-E / temperature)`` on the box.

        :param base: the Gaussian before the squash
        :param energy: ``(B, N, A) -> (B, N)`` on the box
        :param temperature: scalar
        :param generator: source of the noise (``None``: torch's global one)
        :param infos: a list to which one ``RefinerInfo`` a step is appended
        :param plans: where to start from and where to write the plans, if the refiner has some
        :param head: what a learned head says at these observations, if the refiner needs one
        :param is_finite: whether the energy is known to be finite, so that nobody has to look at it where chains end
        :return: ``(B, A)``, before the squash
        :raises ValueError: if there are plans and the refiner has none
        """
        self._check_plans(plans)
        if is_flow(self.refiner) and infos is None:
            energy = zero_energy  # nobody would see it, and each costs an evaluation of the critics
        starts, energy_fn = self._starts(base, energy, temperature, 1, generator)
        steps: list[RefinerInfo] | None = None if infos is None else []
        particles, log_prob = starts.particles, self.box.log_prob(starts.particles, starts.log_prob)
        if plans is not None:
            particles = plans.warmed(particles, base, generator, quasi_random=False)
        known = log_prob if particles is starts.particles else None
        target = self._target(base, self.box.sampled(energy_fn), known, self._sampled_head(head))
        particles = self._to(base, particles)
        if is_finite and infos is None and plans is None and not self.refiner.resamples:
            return self._from(
                base, refined_particles(self.refiner, particles, target, n_steps=self.n_steps, generator=generator)
            )[:, 0]
        state = refine(self.refiner, particles, target, n_steps=self.n_steps, generator=generator, infos=steps)
        self._keep(base, state, plans)
        if infos is not None and steps:
            if starts.log_weights is not None:  # the resampling belongs to the step that follows it
                steps[0] = steps[0]._replace(effective_sample_size=effective_sample_size(starts.log_weights))
            infos += steps
        return select(state._replace(particles=self._from(base, state.particles)), deterministic=False)

    def simulate(
        self,
        base: Gaussian,
        energy: EnergyFn,
        temperature: th.Tensor,
        n_chains: int,
        head: Head | None = None,
        generator: th.Generator | None = None,
    ) -> Chains:
        """
        Runs of the refiner that have not begun, each started as :meth:`sample` starts, for whoever looks at their density.

        :param base: the Gaussian before the squash
        :param energy: ``(B, N, A) -> (B, N)`` on the box
        :param temperature: scalar
        :param n_chains: how many for each observation; a refiner that compares particles has its ``n_particles`` instead
        :param head: what a learned head says at these observations
        :param generator: source of the noise (``None``: torch's global one)
        :return: the chains
        """
        starts, energy_fn = self._starts(base, energy, temperature, n_chains, generator)
        log_prob = self.box.log_prob(starts.particles, starts.log_prob)
        if self.precondition:
            log_prob = log_prob + self.box.frame(base).std.log().sum(-1)
        target = self._target(base, self.box.sampled(energy_fn), log_prob, self._sampled_head(head))
        known = None if starts.log_weights is not None else log_prob
        log_jacobian = partial(self._log_jacobian, base)
        return Chains(self.refiner, target, self._to(base, starts.particles), known, self.n_steps, log_jacobian)

    def _starts(
        self,
        base: Gaussian,
        energy: EnergyFn,
        temperature: th.Tensor,
        n_chains: int,
        generator: th.Generator | None,
    ) -> tuple[Starts, EnergyFn]:
        """Where chains start before the squash, and the tempered energy that they follow."""
        fraction = INITIAL_PARTICLES[self.initial_particles]
        energy_fn = tempered(energy, temperature)
        if self.refiner.resamples:  # one set of particles
            return Starts(*draw_proposals(base, self.n_particles, fraction, generator), None), energy_fn
        n_proposals = 1 if is_flow(self.refiner) else self.n_particles
        repeated = Gaussian(*(part.repeat_interleave(n_chains, dim=0) for part in base)) if n_chains > 1 else base
        proposals, log_weights = draw_proposals(repeated, n_proposals, fraction, generator), None
        if n_proposals > 1:
            weighing = squashed(tempered(energy_of_starts(energy), temperature))
            proposals, log_weights = resampled_proposals(proposals, n_chains, weighing, generator)
        particles, log_prob = (part.reshape(len(base.mean), n_chains, *part.shape[2:]) for part in proposals)
        if self.trust_region is not None:
            energy_fn = tempered(near_proposal(energy, th.tanh(particles), self.trust_region), temperature)
        return Starts(particles, log_prob, log_weights), energy_fn

    def _sampled_head(self, head: Head | None) -> Head:
        if head is None or head.prefix_energy is None:
            return head or Head()
        return head._replace(prefix_energy=self.box.sampled(head.prefix_energy))

    def _log_jacobian(self, base: Gaussian, x: th.Tensor) -> th.Tensor:
        if not self.precondition:
            return self.box.log_jacobian(x)
        loc, std = self.box.frame(base)
        return self.box.log_jacobian(loc + std * x) + std.log().sum(-1)

    def best(
        self,
        base: Gaussian,
        energy: EnergyFn,
        infos: list[RefinerInfo] | None = None,
        plans: Plans | None = None,
        head: Head | None = None,
    ) -> th.Tensor:
        """
        The action of lowest energy among the starts and where descent takes them. Asks no random number generator.

        :param base: the Gaussian before the squash
        :param energy: ``(B, N, A) -> (B, N)`` on the box; with a ``tolerance``, a
            :class:`sb3_energy.refinement.sliceable_energy.SliceableEnergy`
        :param infos: a list to which one ``RefinerInfo`` a step is appended
        :param plans: where to start from and where to write the plans, if the refiner has some
        :param head: what a learned head says at these observations, if the refiner needs one; energies of prefixes in the
            units of the energy
        :return: ``(B, A)``, before the squash
        :raises TypeError: if there is a tolerance and the energy is not one of rows
        :raises ValueError: if there are plans and the refiner has none
        """
        self._check_plans(plans)
        mean, std = base.mean.unsqueeze(1), base.std.unsqueeze(1)
        starts = mean + std * normal_quantiles(self.n_starts, base.mean)
        if plans is not None:
            starts = plans.warmed(starts, base, None, quasi_random=True)
        state = self._ends(base, starts, energy, infos, head or Head())
        self._keep(base, state, plans)
        ends = self._from(base, state.particles)
        candidates = th.cat([starts, ends], dim=1)
        return select(RefinerState(candidates, on_box(energy)(candidates)), deterministic=True)

    def _ends(
        self, base: Gaussian, starts: th.Tensor, energy: EnergyFn, infos: list[RefinerInfo] | None, head: Head
    ) -> RefinerState:
        refiner, particles = self.refiner.deterministic(), self._to(base, starts)
        if head.prefix_energy is not None:
            head = head._replace(prefix_energy=self.box.descended(head.prefix_energy))
        target = self._descended(base, starts, energy, head)
        if self.tolerance is None:
            return refine(refiner, particles, target, n_steps=self.n_steps, infos=infos)
        if not isinstance(energy, SliceableEnergy):
            raise TypeError(
                "tolerance needs an energy with a method rows(index), such as policy.energy_fn(obs), "
                f"got {type(energy).__name__}"
            )
        target_of = partial(self._descended_rows, base, starts, energy)
        return refine_until_still(
            refiner, particles, target, target_of=target_of, n_steps=self.n_steps, tolerance=self.tolerance, infos=infos
        )

    def _descended(self, base: Gaussian, starts: th.Tensor, energy: EnergyFn, head: Head | None = None) -> Target:
        if self.trust_region is not None:
            energy = near_proposal(energy, th.tanh(starts), self.trust_region)
        return self._target(base, self.box.descended(energy), None, head or Head())

    def _descended_rows(self, base: Gaussian, starts: th.Tensor, energy: SliceableEnergy, index: th.Tensor) -> Target:
        return self._descended(Gaussian(base.mean[index], base.std[index]), starts[index], energy.rows(index))

    def _check_plans(self, plans: Plans | None) -> None:
        if plans is not None and not self.keeps_plans:
            raise ValueError(
                f"plans need refiner='mppi' with refiner_kwargs=dict(warm_start=True), got {type(self.refiner).__name__}"
            )

    def _keep(self, base: Gaussian, state: RefinerState, plans: Plans | None) -> None:
        if plans is not None:
            plans.keep(self._from(base, state.extra.mean).squeeze(1))

    def _target(self, base: Gaussian, energy_fn: EnergyFn, proposal_log_prob: th.Tensor | None, head: Head) -> Target:
        if self.precondition:
            frame = self.box.frame(base)
            energy_fn = standardized(energy_fn, *frame)
            if head.prefix_energy is not None:
                head = head._replace(prefix_energy=standardized(head.prefix_energy, *frame))
        return Target(energy_fn, proposal_log_prob=proposal_log_prob, **head._asdict())

    def actions(self, base: Gaussian, x: th.Tensor) -> th.Tensor:
        """
        :param base: the Gaussian before the squash
        :param x: ``(B, N, A)`` where a refiner sees them, such as the ends of :meth:`simulate`'s chains
        :return: ``(B, N, A)`` on the box
        """
        return th.tanh(self._from(base, x))

    def _to(self, base: Gaussian, u: th.Tensor) -> th.Tensor:
        """``(B, N, A)`` before the squash -> where a refiner sees it."""
        x = self.box.start(u)
        if not self.precondition:
            return x
        loc, scale = self.box.frame(base)
        return (x - loc) / scale

    def _from(self, base: Gaussian, x: th.Tensor) -> th.Tensor:
        """The way back."""
        if self.precondition:
            loc, scale = self.box.frame(base)
            x = loc + scale * x
        return self.box.end(x)
