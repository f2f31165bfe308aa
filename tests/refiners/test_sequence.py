"""Refiners in sequence: each takes its own steps where the one before has left the particles."""

import dataclasses
import math
import pickle

import pytest
import torch as th

from sb3_energy.energies import squashed
from sb3_energy.energies.transforms import log_tanh_jacobian
from sb3_energy.refiners import (
    MPPI,
    REFINERS,
    Flow,
    Identity,
    Langevin,
    MeanFlow,
    MetropolisAdjustedLangevin,
    RefinerSequence,
    SelfNormalizedImportanceSampling,
    SteinVariationalGradientDescent,
    refine,
    refine_until_still,
    refined_particles,
)
from sb3_energy.refiners.sequence import keeping_graph, members_of
from sb3_energy.types import Refiner, Tick
from tests.contracts.test_refiner_contract import SHAPES, quadratic, start, target
from tests.laws import modes_energy, total_variation

MALA, SNIS = MetropolisAdjustedLangevin(), SelfNormalizedImportanceSampling()
SEQUENCES = {
    "flow, langevin": RefinerSequence((Flow(), Langevin()), (2, 3)),
    "flow, mala": RefinerSequence((Flow("rk4"), MetropolisAdjustedLangevin(target_acceptance=0.5)), (1, 4)),
    "mean_flow, hmc": RefinerSequence((MeanFlow(), REFINERS["hmc"]()), (1, 2)),
    "flow, svgd": RefinerSequence((Flow(), SteinVariationalGradientDescent()), (2, 2)),
    "snis, langevin, mala": RefinerSequence((SNIS, Langevin(0.1), MALA), (1, 2, 2)),
    "smc, mala": RefinerSequence((REFINERS["smc"](), MALA), (3, 2)),
    "mppi, langevin": RefinerSequence((MPPI(), Langevin()), (2, 2)),
    "langevin, derivative_free": RefinerSequence((Langevin(), REFINERS["derivative_free"]()), (2, 2)),
    "autoregressive, mala": RefinerSequence((REFINERS["autoregressive_derivative_free"](), MALA), (1, 2)),
}
each_sequence = pytest.mark.parametrize("name", sorted(SEQUENCES))


def run(refiner, particles, seed=1, n_steps=None, **kwargs):
    n_steps, generator = refiner.n_steps if n_steps is None else n_steps, th.Generator().manual_seed(seed)
    return refine(refiner, particles, target(particles), n_steps=n_steps, generator=generator, **kwargs)


@each_sequence
def test_it_is_a_refiner_and_a_frozen_value(name):
    refiner = SEQUENCES[name]
    assert isinstance(refiner, Refiner) and dataclasses.is_dataclass(refiner)
    assert pickle.loads(pickle.dumps(refiner)) == refiner and hash(refiner) == hash(pickle.loads(pickle.dumps(refiner)))
    assert refiner.deterministic().deterministic() == refiner.deterministic()
    with pytest.raises(dataclasses.FrozenInstanceError):
        refiner.steps = (1, 1)


@each_sequence
def test_its_particles_are_those_of_its_members_in_turn(name):
    """By hand: each member refines what the one before has left, with the random numbers that are next."""
    refiner, x = SEQUENCES[name], start((3, 6, 2))
    goal, generator = target(x), th.Generator().manual_seed(1)
    for member, n_steps in zip(refiner.members, refiner.steps, strict=True):
        x = refine(member, x, goal, n_steps=n_steps, generator=generator).particles
        goal = goal._replace(proposal_log_prob=None, proposal=None)  # which were those of the first one's particles
    assert th.equal(run(refiner, start((3, 6, 2))).particles, x)


@each_sequence
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_shapes_hold_and_energies_belong_to_the_particles_after_every_step(name, shape, deterministic):
    refiner, particles = SEQUENCES[name], start(shape)
    refiner = refiner.deterministic() if deterministic else refiner
    goal = target(particles)
    state = refiner.init(particles, goal)
    for k in range(refiner.n_steps):
        th.testing.assert_close(state.energies, quadratic(state.particles))
        state, info = refiner.step(state, goal, Tick(k, refiner.n_steps), th.Generator().manual_seed(k))
        assert state.particles.shape == shape and info.acceptance.shape == info.displacement.shape == shape[:2]
    th.testing.assert_close(state.energies, quadratic(state.particles))


@each_sequence
def test_deterministic_asks_no_random_numbers(name):
    refiner, particles = SEQUENCES[name].deterministic(), start((3, 6, 2))
    generator = th.Generator().manual_seed(1)
    before, global_before = generator.get_state(), th.random.get_rng_state()
    first = refine(refiner, particles, target(particles), n_steps=refiner.n_steps, generator=generator)
    assert th.equal(before, generator.get_state()) and th.equal(global_before, th.random.get_rng_state())
    assert th.equal(first.particles, run(refiner, particles, seed=2).particles)


@each_sequence
def test_32_bits_stay_32_bits(name):
    state = run(SEQUENCES[name], start((3, 6, 2)).float())
    assert state.particles.dtype == state.energies.dtype == th.float32


class Counted:
    def __init__(self):
        self.n = 0

    def __call__(self, x):
        self.n += 1
        return quadratic(x)


@each_sequence
def test_without_a_look_at_energies_the_particles_are_the_same(name):
    refiner, particles, counted = SEQUENCES[name], start((3, 6, 2)), Counted()
    goal, generator = target(particles, counted), th.Generator().manual_seed(1)
    found = refined_particles(refiner, particles, goal, n_steps=refiner.n_steps, generator=generator)
    assert th.equal(found, run(refiner, particles).particles)
    if name == "flow, langevin":
        assert counted.n == 3  # one gradient for each step of the chain, and nothing else
    if name == "flow, mala":
        assert counted.n == 5  # and one where it starts


def test_each_member_counts_its_own_steps():
    asked = []

    def schedule(remaining):
        asked.append(remaining)
        return 0.1

    refiner = RefinerSequence((Flow(), Langevin(schedule), Langevin(schedule, 0.5)), (2, 3, 2))
    asked.clear()
    infos = []
    run(refiner, start((2, 1, 2)), infos=infos)
    assert asked == [1.0, 0.5, 0.0, 1.0, 0.0] and len(infos) == 7
    total = sum(info.energy_drop for info in infos)
    ends = run(refiner, start((2, 1, 2))).energies
    th.testing.assert_close(total, (quadratic(start((2, 1, 2))) - ends).mean(1))


def test_what_it_is_follows_from_its_members():
    sequence = SEQUENCES["flow, langevin"]
    assert sequence.exact and not sequence.resamples and sequence.head == "velocity"
    assert (sequence.n_steps, sequence.default_steps, sequence.max_steps, sequence.default_particles) == (5, 5, 5, 8)
    sequence = SEQUENCES["langevin, derivative_free"]
    assert not sequence.exact and sequence.resamples and sequence.head is None and sequence.default_particles == 64
    assert SEQUENCES["mppi, langevin"].exact and SEQUENCES["mppi, langevin"].default_particles == 64
    assert SEQUENCES["autoregressive, mala"].head == "prefix_energy"
    assert SEQUENCES["snis, langevin, mala"].resamples and SEQUENCES["snis, langevin, mala"].default_particles == 128
    assert members_of(sequence) == sequence.members and members_of(MALA) == (MALA,) and members_of(Langevin) == (Langevin,)


def test_a_graph_is_kept_where_all_members_keep_one():
    particles = start((2, 3, 2)).requires_grad_(True)
    refiner = RefinerSequence((Langevin(), Langevin(0.1)), (2, 2))
    assert not run(refiner, particles).particles.requires_grad and not refiner.differentiable
    kept = keeping_graph(refiner)
    assert kept.differentiable and run(kept, particles).particles.requires_grad
    assert not RefinerSequence((Langevin(differentiable=True), MALA), (1, 1)).differentiable


def test_an_observation_that_is_still_takes_no_steps_of_later_members():
    """Row 0 starts at the minimum and stops after a step, row 1 does not stop."""
    sequence = RefinerSequence((Langevin(), MALA, SteinVariationalGradientDescent()), (2, 2, 2)).deterministic()
    particles = th.tensor([[[0.3, 0.3]], [[9.0, 9.0]], [[5.0, 5.0]]], dtype=th.float64)
    infos = []
    state = refine_until_still(
        sequence,
        particles,
        target(particles),
        target_of=lambda rows: target(particles[rows]),
        n_steps=6,
        tolerance=1e-9,
        infos=infos,
    )
    assert th.equal(state.particles[0], particles[0])
    assert th.equal(state.particles[1:], run(sequence, particles).particles[1:])
    assert [info.computed.tolist() for info in infos] == [[True] * 3] + [[False, True, True]] * 5


def test_observations_may_stop_at_different_members():
    sequence = RefinerSequence((MPPI(), Langevin(0.3)), (3, 4)).deterministic()
    particles = start((4, 16, 2))
    particles[1:] += 3.0
    rows_of = lambda rows: target(particles[rows])  # noqa: E731
    state = refine_until_still(sequence, particles, target(particles), target_of=rows_of, n_steps=7, tolerance=0.05)
    th.testing.assert_close(state.energies, quadratic(state.particles))


SVGD = SteinVariationalGradientDescent()
REFUSED = [
    (((Langevin(),), (1,)), ValueError, "members must be at least two refiners, with one of the steps for each, got 1 and 1"),
    (((Langevin(), MALA), (1,)), ValueError, "with one of the steps for each, got 2 and 1"),
    (((Langevin(), MALA), (1, 0)), ValueError, "steps must be at least 1, got 0"),
    (((Langevin(), MALA), (1, 1.5)), TypeError, "steps must be an integer, got 1.5"),
    (
        ((Langevin(), Flow()), (1, 1)),
        ValueError,
        "Flow transports the base and must be the first refiner of a sequence, got it after",
    ),
    (((Flow(), MeanFlow()), (1, 1)), ValueError, "MeanFlow transports the base and must be the first .* after Flow"),
    (((Flow(), SNIS), (1, 1)), ValueError, "needs the density of the particles that it weighs and must be the first"),
    (((Flow(), REFINERS["autoregressive_derivative_free"]()), (1, 1)), ValueError, "at most one refiner that learns, got"),
    (((Langevin(), MPPI(warm_start=True)), (1, 1)), ValueError, "warm_start=True needs MPPI as the only refiner"),
    (((SEQUENCES["flow, mala"], MALA), (5, 1)), ValueError, "must be single refiners, got a RefinerSequence"),
    (((Langevin, MALA), (1, 1)), TypeError, "must be refiners with init, step and deterministic, got <class"),
]


@pytest.mark.parametrize("arguments, error, message", REFUSED)
def test_sequences_without_a_use_are_refused_at_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        RefinerSequence(*arguments)


EXACT = [name for name in sorted(SEQUENCES) if SEQUENCES[name].exact]


@pytest.mark.parametrize("name", EXACT)
def test_who_calls_itself_exact_reproduces_a_density_with_many_steps_of_the_last(name):
    """Of one coordinate, from the uniform distribution; the velocities lead elsewhere, to .3."""
    density = modes_energy([[0.5]], 0.5)
    box = 2.0 * th.rand(100, 400, 1, generator=th.Generator().manual_seed(0)) - 1.0
    particles = th.atanh(box.clamp(-1.0 + 1e-6, 1.0 - 1e-6))
    refiner = RefinerSequence(SEQUENCES[name].members, (*SEQUENCES[name].steps[:-1], 100))
    log_prob = log_tanh_jacobian(particles) - math.log(2.0)
    goal = target(particles, squashed(density))._replace(proposal_log_prob=log_prob)
    state = refine(refiner, particles, goal, n_steps=refiner.n_steps, generator=th.Generator().manual_seed(1))
    assert total_variation(th.tanh(state.particles).reshape(-1, 1), density, 40) < 0.05


def test_another_number_of_steps_is_refused():
    with pytest.raises(ValueError, match=r"n_steps must be 5, the sum of \(2, 3\), got 4"):
        run(SEQUENCES["flow, langevin"], start((2, 3, 2)), n_steps=4)
    state = run(SEQUENCES["flow, langevin"], start((2, 3, 2)), n_steps=0)
    assert th.equal(state.particles, start((2, 3, 2)))


def test_an_error_names_the_member_whose_step_it_was():
    particles = start((2, 3, 2))

    def energy(x):
        return th.where(x.detach().abs().amax(-1) > 1e6, th.nan, 0.0) + quadratic(x)

    exploding = RefinerSequence((Identity(), Langevin(1e9, max_displacement=None)), (2, 1))
    with pytest.raises(FloatingPointError, match="appeared at step 3 of 3 while Langevin refined"):
        refine(exploding, particles, target(particles, energy), n_steps=3)
