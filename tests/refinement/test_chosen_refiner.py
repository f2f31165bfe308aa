"""A list of refiners as one, in a refinement: what is made of its arguments, and what it draws."""

import pytest
import torch as th

from sb3_energy.energies import on_box, squashed
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.proposals import draws_unseen, is_flow
from sb3_energy.refiners import REFINERS, Flow, Langevin, MetropolisAdjustedLangevin, RefinerSequence, refine
from sb3_energy.types import Head, Target
from tests.laws import modes_energy

ENERGY = modes_energy([[0.5, -0.3]], 0.3)
BASE = Gaussian(th.full((5, 2), 0.2, dtype=th.float64), th.full((5, 2), 0.4, dtype=th.float64))


def velocity(x, t):
    """Not the same in all coordinates, so that a wrong unit shows."""
    return th.stack([th.sin(2.0 * x[..., 0]) + t, 0.5 * x[..., 1] * x[..., 0] - t], dim=-1)


def average_velocity(x, t, r):
    return velocity(x, 0.5 * (t + r))


def average_divergence(x, t, r):
    return x.square().sum(-1) + t - r


HEAD = Head(velocity, average_velocity, average_divergence)


def refinement(refiner, **kwargs):
    return RefinementArguments(refiner, **kwargs).make_refinement()


@pytest.mark.parametrize("name", sorted(set(REFINERS) - {"none"}))
def test_a_list_of_one_is_that_refiner(name):
    assert refinement([name]) == refinement(name)
    if REFINERS[name].max_steps is None:
        assert refinement([name], refiner_steps=[3], refiner_kwargs=[None]) == refinement(name, refiner_steps=3)


def test_a_list_is_a_sequence_with_the_defaults_of_each():
    made = refinement(["flow", "mala"])
    mala = MetropolisAdjustedLangevin()
    assert made.refiner == RefinerSequence((Flow(), mala), (4, mala.default_steps))
    assert (made.n_steps, made.n_particles, made.initial_particles) == (4 + mala.default_steps, 8, "base")
    assert made.precondition
    made = refinement(("mean_flow", Langevin), refiner_kwargs=(None, dict(step_size=0.1)), refiner_steps=[2, None])
    assert made.refiner.members[1] == Langevin(0.1) and made.refiner.steps == (2, 3)
    made = refinement(["langevin", "mala"])
    assert (made.n_particles, made.initial_particles, made.precondition) == (128, "mixture", True)
    assert [part.n_steps for part in made.parts()] == [3, mala.default_steps] and made.parts()[1].refiner == mala


def test_what_begins_with_a_flow_looks_at_the_energy_if_another_follows():
    flow, both = refinement("flow").refiner, refinement(["flow", "langevin"]).refiner
    assert is_flow(flow) and is_flow(both) and draws_unseen(flow) and not draws_unseen(both)
    assert not is_flow(refinement(["langevin", "mala"]).refiner)


@pytest.mark.parametrize("name", ["flow", "mean_flow"])
@pytest.mark.parametrize("looked_at", [False, True])
def test_a_flow_goes_the_same_way_in_preconditioned_coordinates(name, looked_at):
    """By hand: the flow pre-tanh, then the chain in units of the base's standard deviation."""
    made, infos = refinement([name, "langevin"], refiner_kwargs=[None, dict(step_size=0.2)]), [] if looked_at else None
    found = made.sample(BASE, ENERGY, head=HEAD, generator=th.Generator().manual_seed(0), infos=infos, is_finite=infos is None)
    generator = th.Generator().manual_seed(0)
    target = Target(squashed(ENERGY), **HEAD._asdict())
    flow, chain = made.refiner.members
    arrived = refine(flow, BASE.sample(1, generator), target, n_steps=made.refiner.steps[0])
    mean, std = BASE.mean.unsqueeze(1), BASE.std.unsqueeze(1)
    scaled = Target(lambda z: squashed(ENERGY)(mean + std * z))
    z = refine(chain, (arrived.particles - mean) / std, scaled, n_steps=3, generator=generator).particles
    th.testing.assert_close(found, (mean + std * z)[:, 0])
    assert infos is None or len(infos) == made.n_steps


def test_the_velocities_of_coordinates():
    coordinates = refinement(["flow", "mala"]).coordinates(BASE)
    u = th.randn(5, 3, 2, dtype=th.float64, generator=th.Generator().manual_seed(0))
    x, t, r = coordinates.start(u), th.full((5, 3), 0.2), th.full((5, 3), 0.7)
    found = coordinates.velocities(HEAD)
    std = BASE.std.unsqueeze(1)
    th.testing.assert_close(found.velocity(x, t), velocity(u, t) / std)
    th.testing.assert_close(found.average_velocity(x, t, r), average_velocity(u, t, r) / std)
    th.testing.assert_close(found.average_divergence(x, t, r), average_divergence(u, t, r))
    assert coordinates.velocities(Head()) == Head()
    assert refinement("flow").coordinates(BASE).velocities(HEAD) == HEAD


def test_a_flow_alone_does_not_ask_the_energy_and_with_a_chain_it_is_asked():
    def unknown(actions):
        raise AssertionError("asked")

    assert refinement("flow").sample(BASE, unknown, head=HEAD).shape == (5, 2)
    with pytest.raises(AssertionError, match="asked"):
        refinement(["flow", "mala"]).sample(BASE, unknown, head=HEAD)


def test_without_noise_it_is_never_worse_than_the_starts_and_the_same_again():
    made = refinement(["flow", "mala"])
    state = th.random.get_rng_state()
    best = made.best(BASE, ENERGY, head=HEAD)
    assert th.equal(best, made.best(BASE, ENERGY, head=HEAD)) and th.equal(state, th.random.get_rng_state())
    flowed = refinement("flow").best(BASE, ENERGY, head=HEAD)
    energies = [on_box(ENERGY)(u.unsqueeze(1)) for u in (best, flowed, BASE.mean)]
    assert (energies[0] < energies[2]).all() and (energies[0] <= energies[1]).all()


def test_members_that_compare_particles_get_all_of_them():
    made, infos = refinement(["flow", "svgd"], n_particles=7), []
    found = made.sample(BASE, ENERGY, head=HEAD, infos=infos)
    assert found.shape == (5, 2) and infos[-1].displacement.shape == (5, 7) and made.thinned(2) is made
    chains = made.simulate(BASE, ENERGY, head=HEAD)
    assert chains.particles.shape == (5, 7, 2)


def test_particles_that_are_compared_once_and_then_move_alone_may_be_fewer():
    made = refinement(["snis", "mala"], n_particles=32)
    assert made.thinned(4).n_particles == 4 and made.thinned(4).refiner == made.refiner
    assert refinement(["langevin", "svgd"], n_particles=32).thinned(4).n_particles == 32


def test_importance_comes_before_the_chain():
    infos = []
    refinement(["snis", "mala"], n_particles=32).sample(BASE, ENERGY, infos=infos)
    assert infos[0].effective_sample_size.min() > 1.0 and infos[1].effective_sample_size is None


REFUSED = [
    (dict(refiner=[]), ValueError, "refiner must name at least one refiner, got an empty list"),
    (dict(refiner=["flow", "none"]), ValueError, "a list of refiners must be without 'none', which moves nothing"),
    (dict(refiner=["none"]), ValueError, "must be without 'none'"),
    (dict(refiner=["flow", ["mala"]]), TypeError, r"refiner must be one of .* or a class, got \['mala'\]"),
    (dict(refiner=["flow", "mola"]), ValueError, "refiner must be one of .*, got 'mola'; did you mean 'mala'"),
    (dict(refiner=["mala", "flow"]), ValueError, "Flow transports the base and must be the first refiner of a sequence"),
    (dict(refiner=["flow", "snis"]), ValueError, "must be the first refiner of a sequence, got it after Flow"),
    (dict(refiner=["flow", "smc"]), ValueError, "must be the first refiner of a sequence, got it after Flow"),
    (dict(refiner=["flow", "mean_flow"]), ValueError, "MeanFlow transports the base and must be the first"),
    (dict(refiner=["flow", "mala"], refiner_kwargs=dict(step_size=1.0)), TypeError, "refiner_kwargs must be a list with one"),
    (dict(refiner=["flow", "mala"], refiner_kwargs=[None]), ValueError, "with one dict or None for each of refiner="),
    (dict(refiner=["flow", "mala"], refiner_kwargs=[None, dict(step=1)]), TypeError, "refiner_kwargs of Metropolis.* among"),
    (dict(refiner=["flow", "mala"], refiner_kwargs=[None, 3]), TypeError, "refiner_kwargs must be a dict of the arguments"),
    (dict(refiner=["flow", "mala"], refiner_steps=5), TypeError, "refiner_steps must be a list with one number or None"),
    (dict(refiner=["flow", "mala"], refiner_steps=[5]), ValueError, "refiner_steps must be a list with one number or None"),
    (dict(refiner=["flow", "mala"], refiner_steps=[5, 0]), ValueError, "a number of refiner_steps must be at least 1, got 0"),
    (dict(refiner=["flow", "mala"], refiner_steps=[5, 1.5]), TypeError, "a number of refiner_steps must be an integer"),
    (dict(refiner=["snis", "mala"], refiner_steps=[2, 1]), ValueError, "must be at most 1 with refiner='snis', got 2"),
    (dict(refiner="mala", refiner_steps=[2, 1]), TypeError, r"refiner_steps must be an integer, got \[2, 1\]"),
    (dict(refiner="mala", refiner_kwargs=[None, None]), TypeError, "refiner_kwargs must be a dict of the arguments"),
    (
        dict(refiner=["flow", "mala"], initial_particles="mixture"),
        ValueError,
        "initial_particles must be 'base' with refiner=",
    ),
    (dict(refiner=["flow", "mala"], box="reflect"), ValueError, "box must be 'tanh' with refiner="),
    (dict(refiner=["flow", "mala"], trust_region=1.0), ValueError, "trust_region must be None with refiner="),
    (dict(refiner=["flow", "mala"], tolerance=1.0), ValueError, "tolerance needs a refiner whose steps descend the energy"),
    (dict(refiner=["mppi", "mala"], trust_region=1.0), ValueError, "trust_region needs a refiner that moves each"),
    (dict(refiner=["flow", "svgd"], deterministic_particles=2), ValueError, "deterministic_particles needs a refiner"),
    (dict(refiner=["langevin", "mala"], head_kwargs={}), ValueError, "head_kwargs needs a refiner that learns"),
    (
        dict(refiner=["mppi", "mala"], refiner_kwargs=[dict(warm_start=True), None]),
        ValueError,
        "warm_start=True needs MPPI as the only refiner",
    ),
]


@pytest.mark.parametrize("arguments, error, message", REFUSED, ids=lambda value: str(value)[:70])
def test_lists_without_a_use_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        RefinementArguments(**arguments).make_refinement()


def test_a_trust_region_holds_members_that_move_each_particle_alone():
    loose, tight = (refinement(["langevin", "mala"], n_particles=1, trust_region=step) for step in (None, 1e-3))
    found = [made.sample(BASE, ENERGY, generator=th.Generator().manual_seed(0)) for made in (loose, tight)]
    start = BASE.sample(1, th.Generator().manual_seed(0))[:, 0]
    moved = [(th.tanh(u) - th.tanh(start)).norm(dim=1).mean() for u in found]
    assert moved[1] < 0.5 * moved[0]
