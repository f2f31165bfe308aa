import math
import pickle
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch as th

from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.proposals import squashed_log_prob
from sb3_energy.refinement.records import refinement_records
from sb3_energy.refiners import REFINERS, Langevin, refine
from sb3_energy.stats import normal_quantiles
from sb3_energy.types import Head, RefinerInfo
from tests.laws import frequencies, modes_energy, total_variation

FOUR_MODES = modes_energy([[0.6, 0.6], [-0.6, 0.6], [0.6, -0.6], [-0.6, -0.6]], 0.25)
ONE = th.tensor(1.0)
MOVING = sorted(set(REFINERS) - {"none"})
FLOWS = ("flow", "mean_flow")


def refinement(refiner="langevin", **kwargs):
    return RefinementArguments(refiner, **kwargs).make_refinement()


def still(x, *times):
    return th.zeros_like(x)


def no_prefix(x):
    return 0.0 * x.sum(-1)


# Of refiners that learn, before they have: nothing moves, and a prefix says nothing
HEAD = Head(velocity=still, average_velocity=still, prefix_energy=no_prefix)


def narrow(n=1, dimension=2, mean=0.7, std=0.3):
    return Gaussian(th.full((n, dimension), mean), th.full((n, dimension), std))


def rough(a):
    """Many local minima, to be beaten by none of the shortcuts."""
    return (3.0 * (a - 0.2).square() + th.sin(25.0 * a)).sum(-1)


def flat(a):
    return 0.0 * a.sum(-1)


def test_the_default_reaches_all_modes_from_a_base_that_covers_one():
    base = narrow(100_000)
    draws = th.tanh(refinement().sample(base, FOUR_MODES, ONE, generator=th.Generator().manual_seed(0)))
    assert total_variation(draws, FOUR_MODES, 20) < 0.05
    assert (frequencies(draws, 2) - 0.25).abs().max() < 0.03  # finitely many candidates favour the base's own mode a little
    assert frequencies(th.tanh(base.mean + base.std * th.randn(100_000, 2)), 2)[3] > 0.95


@pytest.mark.parametrize("std", [0.05, 1.0, math.e**2])
def test_a_flat_energy_gives_the_uniform_distribution_from_any_base(std):
    base = narrow(60_000, mean=0.0, std=std)
    draws = th.tanh(refinement().sample(base, flat, ONE, generator=th.Generator().manual_seed(0)))
    for share in (draws.abs() > 0.99).double().mean(0):
        assert 0.008 < share < 0.012
    assert total_variation(draws, flat, 10) < 0.05


def test_preconditioning_changes_the_path_and_not_the_law():
    shares = []
    for precondition in (True, False):
        way = refinement(precondition=precondition, refiner_steps=60, refiner_kwargs=dict(step_size=0.04))
        draws = way.sample(
            narrow(20_000, 1, 0.0, 0.8), modes_energy([[0.3]], 0.5), ONE, generator=th.Generator().manual_seed(0)
        )
        shares.append(th.tanh(draws))
        assert total_variation(shares[-1], modes_energy([[0.3]], 0.5), 20) < 0.05
    assert not th.equal(*shares)


@pytest.mark.parametrize("refiner", MOVING)
@pytest.mark.parametrize("n_particles", [1, 16])
def test_best_is_never_worse_than_the_base_s_mean(refiner, n_particles):
    generator = th.Generator().manual_seed(0)
    base = Gaussian(th.randn(200, 2, generator=generator), th.rand(200, 2, generator=generator) + 0.01)
    best = refinement(refiner, n_particles=n_particles).best(base, rough, head=HEAD)
    at_best, at_mean = (rough(th.tanh(u).unsqueeze(1)) for u in (best, base.mean))
    assert (at_best <= at_mean).all()
    if n_particles > 1 or hasattr(REFINERS[refiner](), "step_size"):
        assert (at_best < at_mean).double().mean() > 0.5


@pytest.mark.parametrize("refiner", MOVING)
def test_best_is_repeatable_and_asks_no_random_numbers(refiner):
    before = th.random.get_rng_state()
    first = refinement(refiner).best(narrow(5), rough, head=HEAD)
    assert th.equal(first, refinement(refiner).best(narrow(5), rough, head=HEAD))
    assert th.equal(before, th.random.get_rng_state())
    assert all(th.equal(first[0], row) for row in first)


def test_best_follows_the_raw_energy():
    # Where the energy is flat nothing pulls: neither the Jacobian (to the middle) nor the temperature
    base = narrow(3, mean=1.5)
    assert th.equal(refinement().best(base, flat), base.mean)


def test_the_first_start_is_the_mean_and_others_are_spread_like_the_base():
    assert th.equal(normal_quantiles(1, th.zeros(1, 3)), th.zeros(1, 1, 3))
    points = normal_quantiles(255, th.zeros(1, 3, dtype=th.float64))[0]
    assert th.equal(points[0], th.zeros(3, dtype=th.float64))
    th.testing.assert_close(points.mean(0), th.zeros(3).double(), rtol=0, atol=0.01)
    th.testing.assert_close(points.T @ points / 255, th.eye(3).double(), rtol=0, atol=0.05)


def test_what_is_forbidden_is_never_chosen():
    def energy(a):
        return th.where(a[..., 0] > 0.5, math.inf, (a - 1.0).square().sum(-1))

    base = narrow(4, mean=0.3, std=0.5)
    assert (th.tanh(refinement("snis").best(base, energy))[:, 0] <= 0.5).all()
    assert (th.tanh(refinement().best(base, energy))[:, 0] <= 0.5).all()
    draws = refinement("snis").sample(narrow(100, mean=0.3, std=0.5), energy, ONE, generator=th.Generator().manual_seed(0))
    assert (th.tanh(draws)[:, 0] <= 0.5).all()


def test_a_trust_region_pulls_toward_the_start():
    distances = []
    for trust_region in (None, 1.0, 0.01):
        way = refinement(n_particles=1, refiner_steps=20, trust_region=trust_region)
        base = narrow(2000, mean=0.0, std=0.5)
        seeds = [th.Generator().manual_seed(0) for _ in range(2)]
        draws = way.sample(base, lambda a: -5.0 * a.sum(-1), ONE, generator=seeds[0])
        start = base.mean + base.std * th.randn(2000, 1, 2, generator=seeds[1])[:, 0]
        distances.append((th.tanh(draws) - th.tanh(start)).norm(dim=-1).mean().item())
    assert distances[0] > distances[1] > 2.0 * distances[2]
    base = narrow(3, mean=0.0)
    free, held = (refinement(n_particles=1, trust_region=t).best(base, lambda a: -a.sum(-1)) for t in (None, 0.05))
    assert (free > held).all() and (held > base.mean).all()


@pytest.mark.parametrize("refiner", MOVING)
@pytest.mark.parametrize("log_std", [-20.0, 2.0])
@pytest.mark.parametrize("mean", [0.0, 12.0, -50.0])
def test_32_bits_hold_the_actor_s_extremes(refiner, log_std, mean):
    base = narrow(20, 3, mean, math.exp(log_std))
    for way in (refinement(refiner), refinement(refiner, n_particles=1)):
        assert th.isfinite(way.sample(base, rough, th.tensor(0.01), head=HEAD)).all()
        assert th.isfinite(way.best(base, rough, head=HEAD)).all()


@pytest.mark.parametrize("refiner", MOVING)
def test_energies_that_are_no_numbers_fail(refiner):
    for use in ("sample", "best"):
        arguments = dict(temperature=ONE, infos=[]) if use == "sample" else {}  # a flow asks for energies where somebody looks
        with pytest.raises(FloatingPointError, match="non-finite energy"):
            getattr(refinement(refiner), use)(narrow(2), lambda a: a.sum(-1) * math.nan, **arguments, head=HEAD)


@pytest.mark.parametrize("refiner", FLOWS)
def test_a_flow_draws_without_the_energy(refiner):
    def never(a):
        raise AssertionError("asked")

    draws = refinement(refiner).sample(narrow(5), never, ONE, generator=th.Generator().manual_seed(0), head=HEAD)
    base = narrow(5)
    assert th.equal(draws, base.mean + base.std * th.randn(5, 1, 2, generator=th.Generator().manual_seed(0))[:, 0])
    lost = HEAD._replace(velocity=lambda x, *t: x * math.nan, average_velocity=lambda x, *t: x * math.nan)
    with pytest.raises(FloatingPointError, match="non-finite energy"):
        refinement(refiner).sample(narrow(5), never, ONE, head=lost)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(initial_particles="mixture"), "initial_particles must be 'base' with refiner='flow'.*got 'mixture'"),
        (dict(precondition=True), "precondition must be False with refiner='flow'.*got True"),
        (dict(trust_region=1.0), "trust_region must be None with refiner='flow'.*got 1.0"),
        (dict(box="reflect"), "box must be 'tanh' with refiner='flow'.*got 'reflect'"),
        (dict(tolerance=0.1), "tolerance needs a refiner whose steps descend the energy, got 'flow'"),
    ],
)
def test_a_flow_takes_no_start_but_the_base(kwargs, message):
    with pytest.raises(ValueError, match=message):
        refinement("flow", **kwargs)


@pytest.mark.parametrize("precondition", [True, False])
@pytest.mark.parametrize("n_particles", [1, 8])
def test_simulated_chains_are_those_that_are_sampled(precondition, n_particles):
    way, base = refinement(precondition=precondition, n_particles=n_particles), narrow(3000)
    chains = way.simulate(base, FOUR_MODES, ONE, n_chains=6, generator=th.Generator().manual_seed(0))
    assert chains.particles.shape == (3000, 6, 2) and (chains.log_prob is None) == (n_particles > 1)
    ends = refine(
        chains.refiner, chains.particles, chains.target, n_steps=chains.n_steps, generator=th.Generator().manual_seed(1)
    ).particles
    actions = way.actions(base, ends)
    sampled = th.tanh(way.sample(narrow(18_000), FOUR_MODES, ONE, generator=th.Generator().manual_seed(2)))
    assert 0.5 * (frequencies(actions.reshape(-1, 2), 10) - frequencies(sampled, 10)).abs().sum() < 0.06
    # each chain has proposals of its own: chains of an observation differ as those of different ones do
    within = (actions[:, 0] - actions[:, 1]).square().sum(-1).mean()
    assert within.item() == pytest.approx((actions[1:, 0] - actions[:-1, 1]).square().sum(-1).mean().item(), rel=0.1)


def test_the_density_of_a_simulated_start_is_that_of_its_action():
    base, way = narrow(2000), refinement(n_particles=1)
    chains = way.simulate(base, FOUR_MODES, ONE, n_chains=1, generator=th.Generator().manual_seed(0))
    log_prob = chains.log_prob - chains.log_jacobian(chains.particles)
    expected = squashed_log_prob(base, way.coordinates(base).end(chains.particles)[:, 0])
    th.testing.assert_close(log_prob[:, 0], expected, rtol=0, atol=1e-3)


def test_a_refinement_is_a_value():
    way = refinement("mppi", n_particles=8)
    assert pickle.loads(pickle.dumps(way)) == way
    assert refinement("none").is_identity and not way.is_identity
    assert (refinement().n_steps, refinement().n_particles) == (Langevin.default_steps, Langevin.default_particles)


class NoRefiner:
    pass


@dataclass(frozen=True)
class Own(Langevin):
    default_particles: ClassVar[int] = 3


def test_a_class_of_one_s_own():
    assert refinement(Own).n_particles == 3
    assert th.isfinite(refinement(Own, refiner_kwargs=dict(step_size=0.2)).sample(narrow(2), rough, ONE)).all()


BAD = [
    (dict(refiner="langevni"), ValueError, r"refiner must be one of \[.*'langevin'.*\] or a class, got 'langevni'"),
    (dict(refiner=Langevin()), TypeError, r"refiner must be one of .* or a class, got Langevin"),
    (dict(refiner=NoRefiner), TypeError, "refiner must have init, step, deterministic.* NoRefiner lacks"),
    (dict(refiner_kwargs=dict(speed=1)), TypeError, r"refiner_kwargs of Langevin must be among .*got \['speed'\]"),
    (dict(refiner_kwargs=dict(step_size=-1.0)), ValueError, "step_size must be above 0"),
    (dict(refiner_steps=-1), ValueError, "refiner_steps must be at least 0, got -1"),
    (dict(refiner_steps=1.5), TypeError, r"refiner_steps must be an integer, got 1\.5"),
    (dict(refiner="snis", refiner_steps=2), ValueError, "refiner_steps must be at most 1 with refiner='snis', got 2"),
    (dict(refiner="none", refiner_steps=1), ValueError, "refiner_steps must be at most 0 with refiner='none', got 1"),
    (dict(n_particles=0), ValueError, "n_particles must be at least 1, got 0"),
    (dict(n_particles="many"), TypeError, "n_particles must be an integer, got 'many'"),
    (dict(refiner="none", n_particles=2), ValueError, "refiner='none' leaves actions as they are"),
    (dict(refiner="none", trust_region=1.0), ValueError, "refiner='none' leaves actions as they are"),
    (
        dict(initial_particles="box"),
        ValueError,
        r"initial_particles must be one of \['base', 'mixture', 'uniform'\], got 'box'",
    ),
    (dict(precondition=1), TypeError, "precondition must be True or False, got 1"),
    (dict(trust_region=0.0), ValueError, "trust_region must be above 0, got 0"),
    (dict(trust_region="near"), TypeError, "trust_region must be a number or None, got 'near'"),
    (dict(tolerance=-0.1), ValueError, r"tolerance must be at least 0, got -0\.1"),
    (dict(tolerance=math.nan), ValueError, "tolerance must be finite, got nan"),
    (dict(tolerance="small"), TypeError, "tolerance must be a number or None, got 'small'"),
    (
        dict(refiner="none", tolerance=0.1),
        ValueError,
        "tolerance .* needs refiner_steps of at least 2, got 0 with refiner='none'",
    ),
    (dict(refiner="snis", tolerance=0.1), ValueError, "refiner_steps of at least 2, got 1 with refiner='snis'"),
    (dict(refiner="mppi", trust_region=1.0), ValueError, "trust_region needs a refiner that moves each particle alone"),
    (dict(refiner="snis", trust_region=1.0), ValueError, "trust_region needs a refiner that moves each particle alone"),
]


@pytest.mark.parametrize("kwargs, error, message", BAD)
def test_bad_arguments_are_answered_in_one_sentence(kwargs, error, message):
    with pytest.raises(error, match=message) as raised:
        refinement(**kwargs)
    assert "\n" not in str(raised.value)


def test_what_a_refinement_did_is_recorded():
    def records(refiner, energy, temperature=1.0, **kwargs):
        infos = []
        base = narrow(4000, 1, 0.0, 0.5)
        way = refinement(refiner, **kwargs)
        u = way.sample(base, energy, th.tensor(temperature), generator=th.Generator().manual_seed(0), infos=infos)
        assert len(infos) == way.n_steps
        return refinement_records(infos, th.tanh(u))

    even = records("langevin", flat, initial_particles="uniform")
    assert even["refiner_effective_sample_size"] == pytest.approx(128.0)  # all weights are equal
    assert even["refiner_acceptance"] == 1.0
    assert even["refined_at_edge"] == pytest.approx(0.01, abs=0.006)
    peaked = records("langevin", lambda a: 500.0 * (a - 0.3).square().sum(-1))
    assert 1.0 <= peaked["refiner_effective_sample_size"] < 20.0
    alone = records("langevin", flat, n_particles=1)
    assert "refiner_effective_sample_size" not in alone
    one_step = records("langevin", flat, n_particles=1, refiner_steps=1, refiner_kwargs=dict(step_size=0.04))
    assert one_step["refiner_displacement"] == pytest.approx(0.2 * math.sqrt(2.0 / math.pi), rel=0.1)
    careful, bold = (records("mala", rough, refiner_kwargs=dict(step_size=e))["refiner_acceptance"] for e in (0.001, 1.0))
    assert careful > 0.95 > 0.8 > bold
    for refiner in ("snis", "mppi", "derivative_free"):
        assert 1.0 <= records(refiner, rough)["refiner_effective_sample_size"] <= 128.0
    assert refinement_records([], th.tensor([[0.995, 0.0], [0.0, -1.0]])) == {"refined_at_edge": 0.5}


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_the_energy_drop_is_that_of_the_tempered_energy_with_its_jacobian(temperature):
    kwargs = dict(n_particles=1, refiner_steps=7, precondition=False, refiner_kwargs=dict(step_size=0.05))
    base, infos, energy = narrow(50), [], lambda a: (a - 0.2).square().sum(-1)
    way = refinement(**kwargs)
    ends = way.sample(base, energy, th.tensor(temperature), generator=th.Generator().manual_seed(0), infos=infos)
    starts = base.mean + base.std * th.randn((50, 1, 2), generator=th.Generator().manual_seed(0))[:, 0]

    def negative_log_density(u):
        return energy(th.tanh(u)) / temperature - (1.0 - th.tanh(u).square()).log().sum(-1)

    expected = (negative_log_density(starts) - negative_log_density(ends)).mean().item()
    assert abs(expected) > 0.05
    record = refinement_records(infos, th.tanh(ends))["refiner_energy_drop"]
    assert record == pytest.approx(expected, rel=1e-3)


def test_a_forbidden_start_does_not_hide_the_energy_drop_of_the_others():
    def step(*drops):
        return RefinerInfo(th.ones(3, 1), th.ones(3, 1), energy_drop=th.tensor(drops))

    assert refinement_records([step(1.0, math.inf, 2.0), step(0.5, 0.0, -1.0)], th.zeros(3, 1))["refiner_energy_drop"] == 1.25
    assert math.isnan(refinement_records([step(math.inf, math.nan, math.inf)], th.zeros(3, 1))["refiner_energy_drop"])
