"""Shapes, values and protocols shared by every part of the package.

Axes, everywhere: ``B`` observations, ``N`` particles (always present; ``N = 1`` allowed), ``*E`` the event:
``(A,)`` an action or ``(H, A)`` a plan, ``C`` critics, ``F`` features. Low energy is good.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

EnergyFn = Callable[[th.Tensor], th.Tensor]
"""``(B, N, *E) -> (B, N)``: an energy that is already bound to its observations."""

VelocityFn = Callable[[th.Tensor, th.Tensor], th.Tensor]
"""``(B, N, *E), t (B, N) in [0, 1] -> (B, N, *E)``: a velocity field that is already bound to its observations."""

AverageVelocityFn = Callable[[th.Tensor, th.Tensor, th.Tensor], th.Tensor]
"""``(B, N, *E), t (B, N), r (B, N) -> (B, N, *E)``: the way from time ``t`` to time ``r``, over ``r - t``; the velocity
itself where they are equal. Bound to its observations."""

AverageDivergenceFn = Callable[[th.Tensor, th.Tensor, th.Tensor], th.Tensor]
"""``(B, N, *E), t (B, N), r (B, N) -> (B, N)``: the mean divergence of the velocity along that way."""

PrefixEnergyFn = Callable[[th.Tensor], th.Tensor]
"""``(B, N, j) -> (B, N)``, the energy of the first ``j`` coordinates of a flattened event of ``D``, ``1 <= j < D``: about
``-log ∫ exp(-E(x)) dx_{j+1:D}`` up to a constant for each ``j``, bound to its observations."""


class Target(NamedTuple):
    """
    What a refiner is asked to draw from: ``p(x) ∝ exp(-energy(x))`` on ``R^d``.

    :param energy: ``(B, N, *E) -> (B, N)``, temperature and Jacobian included
    :param velocity: a velocity field, for flow refiners only
    :param proposal_log_prob: ``(B, N)`` log-density of the initial particles, in the same space as the energy;
        importance resampling needs it
    :param prefix_energy: energies of the first coordinates, in the same space and with the same temperature as the energy;
        refiners that draw one coordinate after the other need it
    :param average_velocity: an average velocity field, for mean-flow refiners only
    :param average_divergence: its mean divergence, where that has been learned too
    :param proposal: minus the log-density that the initial particles were drawn from, as a function of particles in the same
        space as the energy: what annealing starts from (``None``: it is not known)
    """

    energy: EnergyFn
    velocity: VelocityFn | None = None
    proposal_log_prob: th.Tensor | None = None
    prefix_energy: PrefixEnergyFn | None = None
    average_velocity: AverageVelocityFn | None = None
    average_divergence: AverageDivergenceFn | None = None
    proposal: EnergyFn | None = None


class Head(NamedTuple):
    """
    What the networks that a refiner needs beside the energy say at some observations: fields of a :class:`Target`.

    :param velocity: for ``head = "velocity"``, pre-tanh
    :param average_velocity: for ``head = "average_velocity"``, pre-tanh
    :param average_divergence: its mean divergence
    :param prefix_energy: for ``head = "prefix_energy"``, on the box and with the temperature
    """

    velocity: VelocityFn | None = None
    average_velocity: AverageVelocityFn | None = None
    average_divergence: AverageDivergenceFn | None = None
    prefix_energy: PrefixEnergyFn | None = None

    def through(self, transform: Callable[[EnergyFn], EnergyFn]) -> "Head":
        """
        The head where its energy, if it has one, goes through the same transform as the energy of the whole event.

        :param transform: such as :func:`sb3_energy.energies.squashed`
        :return: the head after it; velocities stay as they are
        """
        return self if self.prefix_energy is None else self._replace(prefix_energy=transform(self.prefix_energy))


class Tick(NamedTuple):
    """
    Where a refinement stands.

    :param step: index of the step, from 0
    :param n_steps: how many steps the refinement has
    """

    step: int
    n_steps: int

    @property
    def remaining(self) -> float:
        """Falls from 1 at the first step to 0 at the last one: what schedules are functions of."""
        return 1.0 - self.step / max(self.n_steps - 1, 1)

    @property
    def dt(self) -> float:
        """Length of one step when the whole refinement takes one unit of time."""
        return 1.0 / self.n_steps

    @property
    def is_last(self) -> bool:
        """Whether no step follows."""
        return self.step == self.n_steps - 1


class RefinerState(NamedTuple):
    """
    Particles and the energies they have (never those of a step before).

    :param particles: ``(B, N, *E)``
    :param energies: ``(B, N)``
    :param extra: what the refiner carries from step to step (gradients, momenta, mean and std of a plan): a tensor with one
        row for each observation, or a tuple of such tensors
    """

    particles: th.Tensor
    energies: th.Tensor
    extra: Any = None


class RefinerInfo(NamedTuple):
    """
    Numbers to look at, never to compute with.

    :param acceptance: ``(B, N)`` probability with which the step was accepted (1 where nothing is rejected)
    :param displacement: ``(B, N)`` Euclidean length of the step
    :param effective_sample_size: ``(B,)`` how many equal particles the weights of a resampling at this step are worth
        (``None`` where nothing was resampled)
    :param energy_drop: ``(B,)`` by how much the step lowered the energy, in the mean over particles; the loop around the
        refiner fills it in, whose steps then add up to the whole refinement's
    :param computed: ``(B,)`` for which observations the step was computed (``None``: for all)
    """

    acceptance: th.Tensor
    displacement: th.Tensor
    effective_sample_size: th.Tensor | None = None
    energy_drop: th.Tensor | None = None
    computed: th.Tensor | None = None

    @classmethod
    def of_move(
        cls,
        before: th.Tensor,
        after: th.Tensor,
        acceptance: th.Tensor | None = None,
        effective_sample_size: th.Tensor | None = None,
    ) -> "RefinerInfo":
        """
        The info of a step, with the lengths of the moves.

        :param before: ``(B, N, *E)`` particles before the step
        :param after: ``(B, N, *E)`` particles after it
        :param acceptance: ``(B, N)`` (``None``: 1)
        :param effective_sample_size: ``(B,)``, where something was resampled
        :return: the info, without a graph
        """
        length = (after.detach() - before.detach()).flatten(2).norm(dim=-1)
        return cls(th.ones_like(length) if acceptance is None else acceptance, length, effective_sample_size)


ProposeFn = Callable[[int, float], tuple[th.Tensor, th.Tensor]]
"""``(n, uniform_fraction) -> energies (B, n), log-densities (B, n)`` of proposals drawn from the base and the box.
Temperature included, and both in the space of the actions, as SB3's ``log π(a|s)``: an entropy depends on the space."""


ReverseFn = Callable[[th.Tensor, float], th.Tensor]
"""``(B, N, *E), remaining -> (B, N, *E)``: what a learned reverse kernel adds to its drift, bound to its observations."""


class Chains(NamedTuple):
    """
    Runs of a refiner that have not begun, in its own coordinates.

    :param refiner: how they move
    :param target: what they draw from
    :param particles: ``(B, M, *E)`` where they start
    :param log_prob: ``(B, M)`` log-density of that, ``None`` where it is not known (after a resampling)
    :param n_steps: how many steps
    :param log_jacobian: ``(B, M, *E) -> (B, M)``, ``log |da/dx|`` of the actions with respect to the coordinates
    """

    refiner: "Refiner"
    target: Target
    particles: th.Tensor
    log_prob: th.Tensor | None
    n_steps: int
    log_jacobian: EnergyFn


class EntropyContext(NamedTuple):
    """
    What an estimator may ask. What it does not ask for is not computed.

    :param base_log_prob: ``(B, 1)`` log-density of the base at its own sample
    :param propose: draws proposals
    :param simulate: ``n_chains -> Chains`` that are independent of each other (or, of a refiner that compares particles,
        its one set of them)
    :param reverse: the learned reverse drift, for an estimator that has ``learns_reverse``
    :param anneal: ``n_particles -> Chains`` of annealed sequential Monte Carlo, from draws of the base and the box
    """

    base_log_prob: th.Tensor
    propose: ProposeFn
    simulate: Callable[[int], Chains]
    reverse: ReverseFn | None = None
    anneal: Callable[[int], Chains] | None = None


class EntropyEstimate(NamedTuple):
    """
    Estimate of an action's log-probability, with diagnostics and an auxiliary loss.

    :param log_prob: ``(B, 1)``, what stands for ``log π(a|s)`` in the backup and in the temperature's update
    :param records: numbers for the logger, ``(B,)`` each
    :param loss: scalar with a graph, for the reverse drift to learn from
    """

    log_prob: th.Tensor
    records: dict[str, th.Tensor] | None = None
    loss: th.Tensor | None = None


class EntropyEstimator(Protocol):
    """
    A frozen dataclass: how the entropy of a refined policy is estimated.

    Optional class attributes: ``refiners``, names or classes of refiners that one of the user's own is valid for (without it:
    all); ``looks_at``, on which of the steps of refiners in sequence it depends
    (:func:`sb3_energy.refinement.estimators.valid_estimators`); ``learns_reverse``, whether it asks for a learned reverse
    drift; ``reads_values``, whether it learns or branches on tensors' values, which no CUDA graph can record.
    """

    def estimate(self, context: EntropyContext) -> EntropyEstimate:
        """
        Estimate the log-probability of the refined policy's actions.

        :param context: what may be asked
        :return: the estimate, in the space of the actions on the box
        """
        ...


class CriticNetwork(Protocol):
    """What an energy asks of a critic: encode an observation once, evaluate many actions on it."""

    def encode(self, obs: PyTorchObs) -> th.Tensor:
        """``obs -> (B, F)``."""
        ...

    def evaluate(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """``(B, F), (B, N, A) -> (C, B, N)``, one Q-value for each critic."""
        ...


class BoundCritic(Protocol):
    """
    What a critic's ``bind(features)`` gives, if it has one: ``(B, N, A) -> (C, B, N)``. It may also have
    ``value_and_gradient(actions, weigh, sparse) -> (B, N), (B, N, A)``, where ``weigh`` makes one value of ``(C, B, N)`` and
    says its derivatives, and ``sparse`` whether most of them are 0.
    """

    def __call__(self, actions: th.Tensor) -> th.Tensor:
        """``(B, N, A) -> (C, B, N)``."""
        ...


class Networks(NamedTuple):
    """
    The networks an energy may be made of. They are arguments, never attributes of an energy or a refiner:
    ``nn.Module`` would register them and the wrong optimiser would train them.

    :param critic: encodes observations and evaluates actions
    :param potential: a learned ``V(s, a)``, with a method ``bind(features) -> EnergyFn``
    :param dynamics: a learned model of the environment
    :param q_scale: scalar, how far apart the Q-values of one observation's actions are
    """

    critic: CriticNetwork
    potential: Any = None
    dynamics: Any = None
    q_scale: Any = None


@runtime_checkable
class Energy(Protocol):
    """A frozen dataclass that holds no network: its fields are the hyperparameters of the energy."""

    def bind(self, networks: Networks, obs: PyTorchObs) -> EnergyFn:
        """
        Encode the observations once and forget them.

        :param networks: the networks the energy is made of
        :param obs: ``B`` observations, as SB3 hands them to a policy
        :return: a function of the actions ``(B, N, A) -> (B, N)``
        """
        ...


@runtime_checkable
class Refiner(Protocol):
    """
    A frozen dataclass: its fields are the hyperparameters, ``float | Schedule``.

    A refiner draws from ``exp(-energy)`` in ``R^d``; it has no temperature, knows no box and sees no observation.
    After its last step each particle is a draw from what the refiner approximates.
    """

    exact: ClassVar[bool]
    """Whether the law of the particles tends to the target's (small steps, many steps, many particles)."""
    resamples: ClassVar[bool]
    """Whether particles are compared with each other, so that all of them have to be carried along."""
    default_steps: ClassVar[int]
    """Default number of steps."""
    default_particles: ClassVar[int]
    """Default number of particles."""
    max_steps: ClassVar[int | None]
    """Most steps that have an effect; more raise an error (``None``: no limit)."""
    estimators: ClassVar[tuple[str, ...]]
    """Names of the entropy estimators that are valid for its particles; the first one is the default."""
    # One of the user's own may also have ``search_space``, see ``sb3_energy.zoo.samplers.search_space``, and
    # ``needs_log_prob``, whether it asks for ``Target.proposal_log_prob`` or ``Target.proposal``: in a sequence such a one
    # comes first; ``needs_gradient = False`` where it follows a gradient, but can do without
    head: ClassVar[str | None]
    """The field of a :class:`Head` that it needs, which a policy has to learn (``None``: the energy is enough)."""

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        Initialise the refiner's state at the initial particles.

        :param particles: ``(B, N, *E)`` where to start
        :param target: what to draw from
        :return: the state before the first step
        """
        ...

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        Take one refinement step.

        :param state: the state before the step
        :param target: what to draw from
        :param tick: which step of how many
        :param generator: source of the noise (``None``: torch's global one)
        :return: the state after the step, and numbers to look at
        """
        ...

    def deterministic(self) -> "Refiner":
        """
        Return the variant that uses no random numbers.

        :return: the same refiner without noise: its steps never ask a random number generator
        """
        ...
