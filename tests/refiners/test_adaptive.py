"""Observations whose energy stands still leave the batch, and nothing else changes."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch as th

from sb3_energy.refiners import REFINERS, Identity, Langevin, computed_part, refine, refine_until_still
from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick

B, N, STEPS = 8, 6, 12
# From wells in which a step goes far to wells in which it goes nowhere: observations stop at different steps
CURVATURES = th.logspace(1.3, -2.0, B, dtype=th.float64)
CENTRES = th.linspace(-1.0, 1.0, B, dtype=th.float64)
START = th.randn((B, N, 2), dtype=th.float64, generator=th.Generator().manual_seed(0))


class Counted:
    """Wells of eight observations, or some of them, and for how many observations their energy was asked."""

    def __init__(self):
        self.asked = []

    def target(self, index):
        def energy(x):
            assert len(x) == len(index)
            self.asked.append(len(x))
            return 0.5 * CURVATURES[index, None] * (x - CENTRES[index, None, None]).square().sum(-1)

        return Target(energy)


def until_still(refiner, tolerance, infos=None, start=START, n_steps=STEPS):
    wells = Counted()
    everyone = wells.target(th.arange(B))
    return refine_until_still(
        refiner, start, everyone, target_of=wells.target, n_steps=n_steps, tolerance=tolerance, infos=infos
    ), wells.asked


def expected(refiner, tolerance):
    """All steps of all observations, and where each of them should have stopped."""
    wells = Counted()
    goal = wells.target(th.arange(B))
    states = [refiner.init(START, goal)]
    for k in range(STEPS):
        states.append(refiner.step(states[-1], goal, Tick(k, STEPS))[0])
    lowest = th.stack([state.energies.amin(1) for state in states])
    still = (lowest[:-1] - lowest[1:] <= tolerance).double()
    still[-1] = 1.0
    last = still.argmax(dim=0) + 1
    rows = range(B)
    return last, th.stack([states[last[b]].particles[b] for b in rows]), th.stack([states[last[b]].energies[b] for b in rows])


# snis has one step, and what has been learned is bound to all observations: a policy refuses both
MOVING = sorted(name for name in set(REFINERS) - {"none", "snis"} if REFINERS[name].head is None)


@pytest.mark.parametrize("tolerance", [0.0, 0.01])
@pytest.mark.parametrize("name", MOVING)
def test_each_observation_stops_where_its_energy_stands_still(name, tolerance):
    refiner = REFINERS[name]().deterministic()
    last, particles, energies = expected(refiner, tolerance)
    state, asked = until_still(refiner, tolerance)
    th.testing.assert_close(state.particles, particles)
    th.testing.assert_close(state.energies, energies)
    if tolerance > 0.0:
        assert len(last.unique()) > 1 and sum(asked) < 0.9 * B * (STEPS + 1)


def test_who_stops_has_what_fewer_steps_give_and_who_does_not_has_what_all_give():
    refiner = Langevin(0.1, noise_scale=0.0)
    last = expected(refiner, 3e-4)[0]
    assert last.min() < STEPS // 2 and last.max() == STEPS
    state, _ = until_still(refiner, 3e-4)
    goal = Counted().target(th.arange(B))
    for b in range(B):
        shorter = refine(refiner, START, goal, n_steps=int(last[b]))
        th.testing.assert_close(state.particles[b], shorter.particles[b])


def test_the_batch_shrinks_when_a_quarter_has_left_and_the_infos_say_so():
    infos = []
    _, asked = until_still(Langevin(0.1, noise_scale=0.0), 0.01, infos)
    assert len(infos) == STEPS
    sizes = [int(info.computed.sum()) for info in infos]
    assert asked[1:] == [size for size in sizes if size > 0], "one evaluation a step, after the one at the start"
    assert sizes[0] == B and sizes[-1] < B and sizes == sorted(sizes, reverse=True)
    assert all(after == before or after <= 0.75 * before for before, after in pairwise(sizes))
    assert computed_part(infos) == pytest.approx(sum(sizes) / (B * STEPS))
    last = expected(Langevin(0.1, noise_scale=0.0), 0.01)[0]
    for k, info in enumerate(infos):
        assert info.displacement.shape == info.acceptance.shape == (B, N)
        assert th.equal(info.displacement.amax(1) > 0.0, last > k)
        assert (info.energy_drop[last <= k] == 0.0).all() and (info.energy_drop[last > k] != 0.0).all()


def test_the_energy_drops_of_the_steps_add_up():
    infos, goal = [], Counted().target(th.arange(B))
    state, _ = until_still(Langevin(0.1, noise_scale=0.0), 0.01, infos)
    expected_drop = (goal.energy(START) - state.energies).mean(1)
    th.testing.assert_close(sum(info.energy_drop for info in infos), expected_drop)


def test_steps_that_nobody_takes_cost_nothing():
    infos = []
    state, asked = until_still(Langevin(0.1, noise_scale=0.0), 1e9, infos)
    assert asked == [B, B] and len(infos) == STEPS
    assert computed_part(infos) == pytest.approx(1.0 / STEPS)
    goal = Counted().target(th.arange(B))
    first = Langevin(0.1, noise_scale=0.0)
    th.testing.assert_close(state.particles, first.step(first.init(START, goal), goal, Tick(0, STEPS))[0].particles)


def test_without_steps_it_is_the_start():
    state, asked = until_still(Langevin(), 0.1, n_steps=0)
    assert th.equal(state.particles, START) and asked == [B]


def test_the_plan_of_every_observation_is_its_own():
    state, _ = until_still(REFINERS["mppi"]().deterministic(), 0.01)
    assert state.extra.mean.shape == (B, 1, 2)
    near = (state.extra.mean - state.particles[:, :1]).abs()
    assert (near < 1e-12).all(), "the first of the fixed quantiles is the Gaussian's mean"


@dataclass(frozen=True)
class Carrying(Identity):
    """Carries what it is given."""

    what: object = None

    def init(self, particles, target):
        return RefinerState(particles, target.energy(particles), self.what)

    def step(self, state, target, tick, generator=None):
        moved = state.particles * 0.9
        info = RefinerInfo(th.ones_like(state.energies), th.ones_like(state.energies), th.ones(len(moved)))
        return RefinerState(moved, target.energy(moved), state.extra), info


def test_tuples_of_tensors_keep_their_rows():
    extra = (th.arange(B), (th.arange(2 * B).reshape(B, 2), None))
    state, _ = until_still(Carrying(extra), 0.05)
    assert th.equal(state.extra[0], extra[0]) and th.equal(state.extra[1][0], extra[1][0]) and state.extra[1][1] is None


@pytest.mark.parametrize("what, found", [(dict(a=1), "dict"), (th.zeros(3), r"a tensor of shape \(3,\)"), (th.zeros(()), "a")])
def test_what_has_no_rows_is_refused(what, found):
    with pytest.raises(TypeError, match=rf"one row for each of the 8 observations, .*, got {found}"):
        until_still(Carrying(what), 0.01)


@pytest.mark.parametrize("value, where", [(math.nan, "before the first step"), (None, "at step 3 of 12")])
def test_an_observation_that_leaves_the_numbers_is_named_as_the_caller_names_it(value, where):
    calls = []

    def target_of(index):
        def energy(x):
            calls.append(None)
            broken = math.nan if value is not None or len(calls) > 3 else 0.0
            energies = (x - 1.0).square().sum(-1) * (index >= 6)[:, None]  # the others stop at once
            return energies + th.where(index == 7, broken, 0.0)[:, None]

        return Target(energy)

    refiner = Langevin(0.1, noise_scale=0.0)
    with pytest.raises(
        FloatingPointError, match=rf"{where} while Langevin refined the actions of observation 7 of a batch of 8"
    ):
        refine_until_still(refiner, START, target_of(th.arange(B)), target_of=target_of, n_steps=STEPS, tolerance=0.0)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"tolerance must be at least 0, got -0\.1"):
        until_still(Langevin(), -0.1)
    with pytest.raises(ValueError, match=r"particles must have shape \(B, N, \*event\)"):
        until_still(Langevin(), 0.1, start=START[:, 0])
    with pytest.raises(ValueError, match="computed_part needs the infos"):
        computed_part([])
    assert computed_part([RefinerInfo(th.ones(1, 1), th.ones(1, 1))]) == 1.0
