"""The arguments of a refinement: each is named, described, checked and given its default here, once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch as th

from sb3_energy.checks import check_bool, check_integer, check_positive, check_tolerance
from sb3_energy.energies import ENERGIES, QEnergy, as_imported, make_energy
from sb3_energy.keywords import argument, check_arguments, documented
from sb3_energy.refinement.boxes import BOXES
from sb3_energy.refinement.chosen_refiner import check_steps, make_refiner
from sb3_energy.refinement.proposals import INITIAL_PARTICLES, draws_unseen, is_flow
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refiners import REFINERS, Identity
from sb3_energy.types import Energy, Refiner


def _check_dict(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be a dict, got {value!r}")
    return value


@documented
@dataclass(frozen=True)
class RefinementArguments:
    """
    The arguments of a refinement and its energy as they were given. Policies and algorithms that refine take their keywords,
    defaults, checks and descriptions from the fields, the RL Zoo's search takes the choices.

    :raises ValueError: if a name or a number is not one of those that are accepted
    :raises TypeError: if an argument has the wrong type
    """

    refiner: str | type[Refiner] | list[Any] = argument(
        "mala",
        "How the proposals are refined: a name in :data:`sb3_energy.refiners.REFINERS` "
        f"({', '.join(f'``{name!r}``' for name in REFINERS)}) or a class; a list of these is run in sequence, such as "
        "``['flow', 'langevin']``",
    )
    refiner_kwargs: dict[str, Any] | list[Any] | None = argument(
        None, "Keyword arguments of the refiner; for a list of refiners a list of dicts and ``None``"
    )
    refiner_steps: int | list[Any] | None = argument(
        None,
        "Number of refinement steps (``None``: the refiner's own default); for a list of refiners a list of numbers and "
        "``None``",
        check_steps,
    )
    n_particles: int | None = argument(
        None,
        "Number of particles for each observation (``None``: the refiner's own default)",
        partial(check_integer, minimum=1),
    )
    initial_particles: str | None = argument(
        None,
        "Where the proposals are drawn from: ``'base'`` (the Gaussian), ``'uniform'`` (the box) or ``'mixture'`` (half and "
        "half, the first from the base); ``None``: ``'base'`` for flows, ``'mixture'`` for all other refiners",
        choices=INITIAL_PARTICLES,
    )
    precondition: bool | None = argument(
        None,
        "Whether step sizes are in units of the Gaussian's standard deviation (of 1, where it is wider); ``None``: unless the "
        "refiner is a flow alone",
        check_bool,
    )
    head_kwargs: dict[str, Any] | None = argument(
        None,
        "Keyword arguments of the network that the refiner learns (``'flow'``, ``'mean_flow'``, "
        "``'autoregressive_derivative_free'``): ``net_arch`` (``None``: the actor's), ``activation_fn`` (``None``: SiLU), "
        "``backbone`` (``None``: the policy's, or ``'layer_norm'`` where that is ``'flash'``), for flows ``gated`` and "
        "``n_frequencies``, for ``'mean_flow'`` "
        "``same_fraction``",
        _check_dict,
    )
    energy: str | type[Energy] | Callable[..., th.Tensor] | Energy = argument(
        "q",
        "The energy, which is low where an action is good: a name in :data:`sb3_energy.energies.ENERGIES`, a class with a "
        "method ``bind(networks, obs)``, a function ``(observations, actions) -> (B, N)`` at the top level of a module, or a "
        "sum of energies such as ``QEnergy() + 0.1 * FunctionEnergy(function)``",
        lambda name, value: as_imported(value),
    )
    energy_kwargs: dict[str, Any] | None = argument(
        None, "Keyword arguments of the energy, such as ``dict(aggregate='min')``", lambda name, value: as_imported(value)
    )
    trust_region: float | None = argument(
        None, "Step ``Δt`` of the JKO transport cost ``|a - a_start|² / (2 Δt)`` (``None``: no cost)", check_positive
    )
    box: str = argument(
        "tanh",
        "How particles stay in the box of actions: ``'tanh'`` (they move pre-tanh) or ``'reflect'`` (they move in the box and "
        "are reflected at its walls)",
        choices=BOXES,
    )
    tolerance: float | None = argument(
        None,
        "In deterministic predictions, an observation whose lowest energy falls by at most this in a step, in units of Q, "
        "takes no further step (``None``: all take all steps)",
        check_tolerance,
    )
    deterministic_particles: int | None = argument(
        None,
        "Number of particles in deterministic predictions, for refiners that move each particle alone (``None``: "
        "``n_particles``); the first starts at the mean of the Gaussian, and the one of lowest energy is returned",
        partial(check_integer, minimum=1),
    )

    def __post_init__(self) -> None:
        check_arguments(self)

    def make_refinement(self) -> Refinement:
        """
        Check the arguments against each other and build the refinement.

        :return: the refinement
        :raises ValueError: if two arguments do not go together, or one would have no effect beside the others
        :raises TypeError: if the refiner is none
        """
        refiner, n_steps = self._make_refiner()
        n_particles = getattr(refiner, "default_particles", 1) if self.n_particles is None else self.n_particles
        n_particles = check_integer("n_particles", n_particles, minimum=1)
        takes_no_size = isinstance(refiner, Identity) or draws_unseen(refiner)  # no step has a size
        fixed = takes_no_size or is_flow(refiner)  # to start at the base, where it was learned
        self._check_unread(refiner, n_steps, n_particles)
        refinement = Refinement(
            refiner,
            n_steps=n_steps,
            n_particles=n_particles,
            initial_particles=self.initial_particles or ("base" if fixed else "mixture"),
            precondition=not takes_no_size if self.precondition is None else self.precondition,
            trust_region=self.trust_region,
            box=BOXES[self.box],
            tolerance=self.tolerance,
            deterministic_particles=self.deterministic_particles,
        )
        if refinement.keeps_plans and (n_particles < 2 or n_steps < 1):
            raise ValueError(
                "warm_start=True needs n_particles of at least 2 and refiner_steps of at least 1, "
                f"got {n_particles} and {n_steps}"
            )
        return refinement

    def make_energy(self) -> Energy:
        """
        Build the energy from its name or object and check that the refiner follows it.

        :return: the energy
        :raises ValueError: if its name or an argument is not accepted, or nothing would follow it
        :raises TypeError: if it is no energy, or does not take these arguments
        """
        energy = make_energy(ENERGIES, self.energy, self.energy_kwargs)
        if isinstance(self._make_refiner()[0], Identity) and energy != QEnergy():
            raise ValueError(
                f"energy and energy_kwargs need a refiner that follows them, got {energy!r} with refiner={self.refiner!r}"
            )
        return energy

    def _make_refiner(self) -> tuple[Refiner, int]:
        return make_refiner(self.refiner, self.refiner_kwargs, self.refiner_steps)

    def _check_unread(self, refiner: Refiner, n_steps: int, n_particles: int) -> None:
        """Raise where an argument would have no effect with this refiner."""
        given = f"with refiner={self.refiner!r}"
        has_head = getattr(refiner, "head", None) is not None
        if isinstance(refiner, Identity):
            if n_particles > 1 or self.trust_region is not None:
                raise ValueError(
                    f"refiner={self.refiner!r} leaves actions as they are and takes n_particles=1 and trust_region=None, "
                    f"got {n_particles} and {self.trust_region!r}"
                )
            self._check_only(f"{given}, which moves nothing", initial_particles="base", precondition=False, box="tanh")
        if is_flow(refiner):  # it starts at the base, pre-tanh, where it has learned
            because = f"{given}, which follows what it has learned"
            self._check_only(because, initial_particles="base", trust_region=None, box="tanh")
        if draws_unseen(refiner):
            self._check_only(f"{given}, whose steps have no size", precondition=False)
        if self.trust_region is not None and refiner.resamples:
            raise ValueError(f"trust_region {_NEEDS_ALONE}, got {self.refiner!r}")
        if self.tolerance is not None and n_steps < 2:
            raise ValueError(
                f"tolerance saves steps after the first and needs refiner_steps of at least 2, got {n_steps} {given}"
            )
        if self.tolerance is not None and has_head:
            raise ValueError(f"tolerance needs a refiner whose steps descend the energy, got {self.refiner!r}")
        if self.deterministic_particles is not None and (refiner.resamples or isinstance(refiner, Identity)):
            raise ValueError(f"deterministic_particles {_NEEDS_ALONE}, got {self.deterministic_particles} {given}")
        if self.head_kwargs is not None and not has_head:
            raise ValueError(
                f"head_kwargs needs a refiner that learns, such as 'flow', got {self.head_kwargs!r} with {self.refiner!r}"
            )

    def _check_only(self, because: str, **accepted: Any) -> None:
        for name, only in accepted.items():
            if getattr(self, name) not in (None, only):
                raise ValueError(f"{name} must be {only!r} {because}, got {getattr(self, name)!r}")


_NEEDS_ALONE = "needs a refiner that moves each particle alone, such as 'langevin'"
