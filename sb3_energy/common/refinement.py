"""From a Gaussian base and an energy to an action: what every refined policy does."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch as th

from sb3_energy.common.boxes import BOXES, Box
from sb3_energy.common.proposals import INITIAL_PARTICLES, Gaussian, Proposals, draw_proposals
from sb3_energy.common.row_energies import RowEnergy
from sb3_energy.common.warm_start import Plans
from sb3_energy.energies import near_proposal, on_box, squashed, standardized, tempered
from sb3_energy.refiners import (
    MPPI,
    REFINERS,
    Identity,
    effective_sample_size,
    importance_resample,
    normal_quantiles,
    refine,
    refine_until_still,
    select,
)
from sb3_energy.refiners.checks import check_integer, check_positive, check_tolerance
from sb3_energy.registry import resolve
from sb3_energy.types import EnergyFn, Refiner, RefinerInfo, RefinerState, Target


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
    """

    refiner: Refiner
    n_steps: int
    n_particles: int
    initial_particles: str = "mixture"
    precondition: bool = True
    trust_region: float | None = None
    box: Box = BOXES["tanh"]
    tolerance: float | None = None

    @property
    def is_identity(self) -> bool:
        """Whether actions stay what the base says."""
        return isinstance(self.refiner, Identity)

    @property
    def keeps_plans(self) -> bool:
        """Whether it can start from the plans of the refinement before."""
        return isinstance(self.refiner, MPPI) and self.refiner.warm_start

    def sample(
        self,
        base: Gaussian,
        energy: EnergyFn,
        temperature: th.Tensor,
        generator: th.Generator | None = None,
        infos: list[RefinerInfo] | None = None,
        plans: Plans | None = None,
    ) -> th.Tensor:
        """
        A draw from (about) ``exp(-E / temperature)`` on the box.

        :param base: the Gaussian before the squash
        :param energy: ``(B, N, A) -> (B, N)`` on the box
        :param temperature: scalar
        :param generator: source of the noise (``None``: torch's global one)
        :param infos: a list to which one ``RefinerInfo`` a step is appended
        :param plans: where to start from and where to write the plans, if the refiner has some
        :return: ``(B, A)``, before the squash
        :raises ValueError: if there are plans and the refiner has none
        """
        self._check_plans(plans)
        energy_fn = tempered(energy, temperature)
        proposals = draw_proposals(base, self.n_particles, INITIAL_PARTICLES[self.initial_particles], generator)
        log_weights = None
        if self.n_particles > 1 and not self.refiner.resamples:
            proposals, log_weights = _resampled(proposals, squashed(energy_fn), generator)
        if self.trust_region is not None:
            energy_fn = tempered(near_proposal(energy, th.tanh(proposals.particles), self.trust_region), temperature)
        steps: list[RefinerInfo] | None = None if infos is None else []
        starts, log_prob = proposals.particles, self.box.log_prob(*proposals)
        if plans is not None:
            starts = plans.warmed(starts, base, generator, quasi_random=False)
        target = self._target(base, self.box.sampled(energy_fn), log_prob if starts is proposals.particles else None)
        state = refine(self.refiner, self._to(base, starts), target, self.n_steps, generator, steps)
        self._keep(base, state, plans)
        if infos is not None and steps:
            if log_weights is not None:  # the resampling belongs to the step that follows it
                steps[0] = steps[0]._replace(effective_sample_size=effective_sample_size(log_weights))
            infos += steps
        return select(state._replace(particles=self._from(base, state.particles)), deterministic=False)

    def best(
        self, base: Gaussian, energy: EnergyFn, infos: list[RefinerInfo] | None = None, plans: Plans | None = None
    ) -> th.Tensor:
        """
        The action of lowest energy among the starts and where descent takes them. Asks no random number generator.

        :param base: the Gaussian before the squash
        :param energy: ``(B, N, A) -> (B, N)`` on the box; with a ``tolerance``, a
            :class:`sb3_energy.common.row_energies.RowEnergy`
        :param infos: a list to which one ``RefinerInfo`` a step is appended
        :param plans: where to start from and where to write the plans, if the refiner has some
        :return: ``(B, A)``, before the squash
        :raises TypeError: if there is a tolerance and the energy is not one of rows
        :raises ValueError: if there are plans and the refiner has none
        """
        self._check_plans(plans)
        mean, std = base.mean.unsqueeze(1), base.std.unsqueeze(1)
        starts = mean + std * normal_quantiles(self.n_particles, base.mean)
        if plans is not None:
            starts = plans.warmed(starts, base, None, quasi_random=True)
        state = self._ends(base, starts, energy, infos)
        self._keep(base, state, plans)
        ends = self._from(base, state.particles)
        candidates = th.cat([starts, ends], dim=1)
        return select(RefinerState(candidates, on_box(energy)(candidates)), deterministic=True)

    def _ends(self, base: Gaussian, starts: th.Tensor, energy: EnergyFn, infos: list[RefinerInfo] | None) -> RefinerState:
        refiner, particles = self.refiner.deterministic(), self._to(base, starts)
        target = self._descended(base, starts, energy)
        if self.tolerance is None:
            return refine(refiner, particles, target, self.n_steps, infos=infos)
        if not isinstance(energy, RowEnergy):
            raise TypeError(
                "tolerance needs an energy with a method rows(index), such as policy.energy_fn(obs), "
                f"got {type(energy).__name__}"
            )
        target_of = partial(self._descended_rows, base, starts, energy)
        return refine_until_still(refiner, particles, target, target_of, self.n_steps, self.tolerance, infos)

    def _descended(self, base: Gaussian, starts: th.Tensor, energy: EnergyFn) -> Target:
        if self.trust_region is not None:
            energy = near_proposal(energy, th.tanh(starts), self.trust_region)
        return self._target(base, self.box.descended(energy))

    def _descended_rows(self, base: Gaussian, starts: th.Tensor, energy: RowEnergy, index: th.Tensor) -> Target:
        return self._descended(Gaussian(base.mean[index], base.std[index]), starts[index], energy.rows(index))

    def _check_plans(self, plans: Plans | None) -> None:
        if plans is not None and not self.keeps_plans:
            raise ValueError(
                f"plans need refiner='mppi' with refiner_kwargs=dict(warm_start=True), got {type(self.refiner).__name__}"
            )

    def _keep(self, base: Gaussian, state: RefinerState, plans: Plans | None) -> None:
        if plans is not None:
            plans.keep(self._from(base, state.extra.mean).squeeze(1))

    def _target(self, base: Gaussian, energy_fn: EnergyFn, proposal_log_prob: th.Tensor | None = None) -> Target:
        if self.precondition:
            energy_fn = standardized(energy_fn, *self.box.frame(base))
        return Target(energy_fn, None, proposal_log_prob)

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


def _resampled(proposals: Proposals, energy_fn: EnergyFn, generator: th.Generator | None) -> tuple[Proposals, th.Tensor]:
    with th.no_grad():
        log_weights = -energy_fn(proposals.particles) - proposals.log_prob
    particles, index = importance_resample(proposals.particles, log_weights, 1, generator)
    return Proposals(particles, proposals.log_prob.gather(1, index)), log_weights


def refinement_records(infos: list[RefinerInfo], actions: th.Tensor) -> dict[str, float]:
    """
    What a refinement did, in means over observations, for the logger.

    :param infos: of its steps
    :param actions: ``(B, A)`` what came out, scaled to [-1, 1]
    :return: ``refiner_displacement``, the length of the way; ``refiner_acceptance``, the mean over steps;
        ``refiner_effective_sample_size``, the mean over resamplings, where there was one; ``refiner_energy_drop``, by how
        much the target's energy is lower after the last step than before the first, over observations whose particles
        never entered what is forbidden; and ``refined_at_edge``, the part of the actions' coordinates beyond .99
    """
    records = {"refined_at_edge": (actions.abs() > 0.99).float().mean().item()}
    if infos:
        records["refiner_displacement"] = sum(info.displacement.mean().item() for info in infos)
        records["refiner_acceptance"] = sum(info.acceptance.mean().item() for info in infos) / len(infos)
    sizes = [info.effective_sample_size.mean().item() for info in infos if info.effective_sample_size is not None]
    if sizes:
        records["refiner_effective_sample_size"] = sum(sizes) / len(sizes)
    drops = [info.energy_drop for info in infos if info.energy_drop is not None]
    if drops:
        drop = th.stack(drops).sum(dim=0)
        finite = drop[th.isfinite(drop)]  # an infinite energy at one particle must not hide what the others did
        if len(finite) > 0:
            records["refiner_energy_drop"] = finite.mean().item()
    return records


def make_refinement(
    refiner: str | type[Refiner],
    refiner_kwargs: dict[str, Any] | None,
    refiner_steps: int | None,
    n_particles: int | None,
    initial_particles: str,
    precondition: bool,
    trust_region: float | None,
    box: str = "tanh",
    tolerance: float | None = None,
) -> Refinement:
    """
    Check the arguments of a refined policy and put them together.

    :param refiner: a name in :data:`sb3_energy.refiners.REFINERS`, or a class
    :param refiner_kwargs: its arguments
    :param refiner_steps: how many steps (``None``: the refiner's own default)
    :param n_particles: how many particles (``None``: the refiner's own default)
    :param initial_particles: ``"base"``, ``"uniform"`` or ``"mixture"``
    :param precondition: whether steps are measured in units of the base's standard deviation
    :param trust_region: step of the JKO transport cost, or ``None``
    :param box: ``"tanh"`` or ``"reflect"``
    :param tolerance: by how much the energy must fall for a deterministic refinement to go on, or ``None``
    :return: the refinement
    :raises ValueError: if a number or a name is not one of those that are accepted
    :raises TypeError: if something has the wrong type
    """
    instance = resolve(REFINERS, refiner, refiner_kwargs, "refiner")
    missing = [name for name in ("init", "step", "deterministic", "resamples") if not hasattr(instance, name)]
    if missing:
        raise TypeError(
            f"refiner must have init, step, deterministic and resamples, but {type(instance).__name__} lacks {missing}"
        )
    n_steps = getattr(instance, "default_steps", 1) if refiner_steps is None else refiner_steps
    check_integer("refiner_steps", n_steps, minimum=0)
    max_steps = getattr(instance, "max_steps", None)
    if max_steps is not None and n_steps > max_steps:
        raise ValueError(f"refiner_steps must be at most {max_steps} with refiner={refiner!r}, got {n_steps}")
    n_particles = getattr(instance, "default_particles", 1) if n_particles is None else n_particles
    check_integer("n_particles", n_particles, minimum=1)
    if isinstance(instance, Identity) and (n_particles > 1 or trust_region is not None):
        raise ValueError(
            f"refiner={refiner!r} leaves actions as they are and takes n_particles=1 and trust_region=None, "
            f"got {n_particles} and {trust_region!r}"
        )
    if not isinstance(initial_particles, str) or initial_particles not in INITIAL_PARTICLES:
        raise ValueError(f"initial_particles must be one of {sorted(INITIAL_PARTICLES)}, got {initial_particles!r}")
    if not isinstance(precondition, bool):
        raise TypeError(f"precondition must be True or False, got {precondition!r}")
    check_positive("trust_region", trust_region)
    if trust_region is not None and instance.resamples:
        raise ValueError(f"trust_region needs a refiner that moves each particle alone, such as 'langevin', got {refiner!r}")
    if not isinstance(box, str) or box not in BOXES:
        raise ValueError(f"box must be one of {sorted(BOXES)}, got {box!r}")
    check_tolerance("tolerance", tolerance)
    if tolerance is not None and n_steps < 2:
        raise ValueError(
            f"tolerance saves steps after the first and needs refiner_steps of at least 2, got {n_steps} "
            f"with refiner={refiner!r}"
        )
    refinement = Refinement(
        instance, n_steps, n_particles, initial_particles, precondition, trust_region, BOXES[box], tolerance
    )
    if refinement.keeps_plans and (n_particles < 2 or n_steps < 1):
        raise ValueError(
            f"warm_start=True needs n_particles of at least 2 and refiner_steps of at least 1, got {n_particles} and {n_steps}"
        )
    return refinement
