"""Refiners in sequence: where one leaves the particles, the next one starts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch as th

from sb3_energy.checks import check_integer
from sb3_energy.steps import lean, zero_energy
from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick

FLOW_HEADS = ("velocity", "average_velocity")
"""Heads of refiners that transport the base, wherever its draws lie."""


class Turn(NamedTuple):
    """
    Whose step it is.

    :param place: of the refiner, from 0
    :param refiner: which takes the step
    :param tick: which of its own steps it is
    """

    place: int
    refiner: Any
    tick: Tick


class Turns:
    """Steps of refiners one after the other. Each counts its own steps, so its schedules run from its beginning to its end."""

    members: tuple[Any, ...]
    steps: tuple[int, ...]

    @property
    def n_steps(self) -> int:
        """Of all members together."""
        return sum(self.steps)

    def turn(self, tick: Tick) -> Turn:
        """
        Find the refiner that takes a step.

        :param tick: which step of all
        :return: the refiner, and which of its own steps it is
        :raises ValueError: if the number of all steps is another one
        """
        if tick.n_steps != self.n_steps:
            raise ValueError(f"n_steps must be {self.n_steps}, the sum of {self.steps}, got {tick.n_steps}")
        place, step = 0, tick.step
        while step >= self.steps[place]:
            place, step = place + 1, step - self.steps[place]
        return Turn(place, self.members[place], Tick(step, self.steps[place]))

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        Initialise the state of the first refiner.

        :param particles: ``(B, N, *E)`` where to start
        :param target: what to draw from
        :return: the state before the first step
        """
        return self.members[0].init(particles, target)

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        Take a step of the refiner whose turn it is.

        :param state: the state before the step
        :param target: what to draw from
        :param tick: which step of how many
        :param generator: source of the noise
        :return: the state after the step, which at the end of a turn is the one that the next refiner starts in; and the
            info of the step
        """
        place, refiner, own = self.turn(tick)
        # Only the first one's particles have the density that the target knows
        later = target._replace(proposal_log_prob=None, proposal=None)
        state, info = refiner.step(state, target if place == 0 else later, own, generator)
        if own.is_last and not tick.is_last:
            state = self.members[place + 1].init(state.particles, later)
        return state, info


@dataclass(frozen=True)
class RefinerSequence(Turns):
    """
    Refiners one after the other, on the same target: a learned flow and a few Langevin steps, or a descent and a sampler.

    What is known of its draws follows from the members. A step of a chain that leaves ``exp(-E)`` as it is (``mala``, ``hmc``,
    ``langevin`` as its steps shorten) brings no law further from it, in total variation as in any other distance that
    a Markov kernel contracts (Csiszar 1967), and brings every law to it as the steps grow (Roberts and Tweedie 1996). So

    * the sequence is ``exact`` where its last member is, as *that one's* steps grow. With few steps, the chain corrects what
      it can reach: the shape of modes, and not their weights where none is left in a few steps;
    * it ``resamples`` where a member does: then all particles are carried along;
    * an entropy estimator is valid where it is valid for the members whose steps it looks at, see
      :func:`sb3_energy.refinement.estimators.valid_estimators`.

    A flow is learned from the base and comes first. Importance weights need the density of what they weigh, which only the
    first refiner's particles have. At most one member learns, since a policy has one head.

    :param members: two refiners or more, in their order
    :param steps: how many steps each of them takes
    :raises ValueError: if the law of such a sequence is not known to be of use, or the numbers do not fit
    :raises TypeError: if a member is no refiner, or a number no integer
    """

    members: tuple[Any, ...]
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(self.members))
        if len(self.members) < 2 or len(self.steps) != len(self.members):
            raise ValueError(
                "members must be at least two refiners, with one of the steps for each, "
                f"got {len(self.members)} and {len(self.steps)}"
            )
        object.__setattr__(self, "steps", tuple(check_integer("steps", n, minimum=1) for n in self.steps))
        _check_members(self.members)

    @property
    def exact(self) -> bool:
        """Whether the law tends to the target's, as the last member's steps grow."""
        return self.members[-1].exact

    @property
    def resamples(self) -> bool:
        """Whether a member compares particles, so that all of them are carried along."""
        return any(member.resamples for member in self.members)

    @property
    def head(self) -> str | None:
        """The head of the member that learns."""
        return next((head for head in map(_head, self.members) if head is not None), None)

    @property
    def differentiable(self) -> bool:
        """Whether steps keep their graph: if those of all members do."""
        return all(getattr(member, "differentiable", False) for member in self.members)

    @property
    def default_steps(self) -> int:
        """All of them: another number has no members."""
        return self.n_steps

    @property
    def max_steps(self) -> int:
        """All of them."""
        return self.n_steps

    @property
    def default_particles(self) -> int:
        """Of the members that compare particles the largest number, or that of the first member, which chooses a start."""
        together = [getattr(member, "default_particles", 1) for member in self.members if member.resamples]
        return max(together) if together else getattr(self.members[0], "default_particles", 1)

    @property
    def estimators(self) -> tuple[str, ...]:
        """
        The last member's. Of these, :func:`sb3_energy.refinement.estimators.valid_estimators` keeps the ones that hold for
        the members before it.
        """
        return getattr(self.members[-1], "estimators", ("base", "soft_value"))

    def deterministic(self) -> "RefinerSequence":
        """
        Return the variant that uses no random numbers.

        :return: the same steps of each member's own variant
        """
        return RefinerSequence(tuple(member.deterministic() for member in self.members), self.steps)

    def lean(self) -> Any:
        """
        Return the same steps for callers that look at the particles alone.

        :return: the same particles: no energies along a flow, and no energy where a Langevin member ends; a subclass itself,
            whose steps are its own
        """
        if type(self) is not RefinerSequence:
            return self
        members = (Unseen(member) if _head(member) in FLOW_HEADS else lean(member) for member in self.members)
        return LeanSequence(tuple(members), self.steps)

    def kernel(self, state: RefinerState, target: Target, tick: Tick) -> tuple[th.Tensor, float]:
        """
        The Gaussian that a step draws from, where the member whose turn it is has one.

        :param state: before the step
        :param target: what to draw from
        :param tick: which step of how many
        :return: its mean ``(B, N, *E)`` and its standard deviation
        """
        _, refiner, own = self.turn(tick)
        return refiner.kernel(state, target, own)

    def step_jacobian(self, state: RefinerState, tick: Tick) -> th.Tensor:
        """
        The Jacobian of a step with respect to its particle, where the member whose turn it is says it.

        :param state: before the step
        :param tick: which step of how many
        :return: ``(B, N, D, D)``
        """
        _, refiner, own = self.turn(tick)
        return refiner.step_jacobian(state, own)

    def own_share(self, state: RefinerState, tick: Tick) -> float | th.Tensor:
        """
        The factor of the Hessian that :meth:`step_jacobian` leaves out.

        :param state: before the step
        :param tick: which step of how many
        :return: a number, or ``(B, 1)``
        """
        _, refiner, own = self.turn(tick)
        return refiner.own_share(state, own)


@dataclass(frozen=True)
class LeanSequence(Turns):
    """
    A sequence whose members do nothing that only serves to be looked at.

    :param members: in their order, with the random numbers of the refiners that they stand for
    :param steps: how many steps each of them takes
    """

    members: tuple[Any, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Unseen:
    """
    A flow that is not told the energy, which it does not follow.

    :param refiner: the flow
    """

    refiner: Any

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        Initialise the flow's state.

        :param particles: ``(B, N, *E)``
        :param target: of which the energy is not asked
        :return: the state before the first step
        """
        return self.refiner.init(particles, target._replace(energy=zero_energy))

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        Take one step of the flow.

        :param state: before the step
        :param target: of which the energy is not asked
        :param tick: which step of how many
        :param generator: source of the noise
        :return: the state after the step, with energies of 0 (NaN where a particle is), and the info
        """
        return self.refiner.step(state, target._replace(energy=zero_energy), tick, generator)


def members_of(refiner: Any) -> tuple[Any, ...]:
    """
    The members of a sequence.

    :param refiner: any, or the class of one
    :return: its members in their order, or the refiner alone
    """
    return refiner.members if isinstance(refiner, RefinerSequence) else (refiner,)


def class_names(refiner: Any) -> str:
    """
    Name a refiner in a message.

    :param refiner: any
    :return: the name of its class, or those of a sequence's members
    """
    return " and ".join(type(member).__name__ for member in members_of(refiner))


def keeping_graph(refiner: Any) -> Any:
    """
    Make a refiner's steps differentiable.

    :param refiner: one with a field ``differentiable``, one with a variant ``unadjusted()`` that has it, or a sequence of such
    :return: the same with ``differentiable=True``
    :raises ValueError: if its steps cannot be differentiated
    """
    if isinstance(refiner, RefinerSequence):
        return RefinerSequence(tuple(map(keeping_graph, refiner.members)), refiner.steps)
    refiner = refiner.unadjusted() if hasattr(refiner, "unadjusted") else refiner
    if not hasattr(refiner, "differentiable"):
        raise ValueError(f"refiner must be one whose steps can be differentiated, got {type(refiner).__name__}")
    return replace(refiner, differentiable=True)


def _check_members(members: Sequence[Any]) -> None:
    for index, member in enumerate(members):
        name = type(member).__name__
        if isinstance(member, Turns):
            raise ValueError(f"members of a sequence must be single refiners, got a {name}")
        if isinstance(member, type) or not all(hasattr(member, part) for part in ("init", "step", "deterministic")):
            raise TypeError(f"members of a sequence must be refiners with init, step and deterministic, got {member!r}")
        if getattr(member, "warm_start", False):
            raise ValueError(f"warm_start=True needs {name} as the only refiner, got it in a sequence")
        if index == 0:
            continue
        before = type(members[index - 1]).__name__
        if _head(member) in FLOW_HEADS:
            raise ValueError(f"{name} transports the base and must be the first refiner of a sequence, got it after {before}")
        if getattr(member, "needs_log_prob", False):
            raise ValueError(
                f"{name} needs the density of the particles that it weighs and must be the first refiner of a sequence, "
                f"got it after {before}"
            )
    learning = [type(member).__name__ for member in members if _head(member) is not None]
    if len(learning) > 1:
        raise ValueError(f"a sequence must have at most one refiner that learns, got {learning}")


def _head(refiner: Any) -> str | None:
    return getattr(refiner, "head", None)
