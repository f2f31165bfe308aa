"""Bases: each one's draws follow its density, and a refinement takes any of them."""

import math

import pytest
import torch as th

from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.bases import Base, FlowBase, Gaussian, MixtureBase, NoisyActions, UniformBase, latent
from sb3_energy.refinement.proposals import INITIAL_PARTICLES, draw_proposals
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refiners import Langevin, SelfNormalizedImportanceSampling
from sb3_energy.types import VelocityFn
from tests.laws import modes_energy, total_variation

SEED = th.Generator
DOUBLE = dict(dtype=th.float64)


def towards(mean, rate=1.0) -> VelocityFn:
    """``dx/dt = rate (mean - x)``, which takes ``N(m, s²)`` to ``N(mean + (m - mean) e^-rate, (s e^-rate)²)``."""
    return lambda x, t: rate * (mean - x)


def bases(n=1, event=(1,)) -> dict[str, Base]:
    mean = th.full((n, *event), 0.4, **DOUBLE)
    gaussian = Gaussian(mean, th.full_like(mean, 0.5))
    return {
        "gaussian": gaussian,
        "uniform": UniformBase(mean),
        "noisy_actions": NoisyActions(0.9 * th.ones_like(mean), 0.3),
        "noisy_actions_at_the_wall": NoisyActions(th.ones_like(mean), 0.5),
        "mixture": MixtureBase((gaussian, Gaussian(mean - 2.0, th.full_like(mean, 0.2))), (1.0, 3.0)),
        "flow": FlowBase(gaussian, towards(-0.5), n_steps=4),
    }


NAMES = sorted(bases())


@pytest.mark.parametrize("name", NAMES)
def test_the_density_integrates_to_one_and_the_draws_follow_it(name):
    base = bases()[name]
    line = th.linspace(-12.0, 12.0, 6001, **DOUBLE)
    density = base.log_prob(line.reshape(1, -1, 1))[0].exp()
    cumulative = (density * (line[1] - line[0])).cumsum(0)
    assert cumulative[-1].item() == pytest.approx(1.0, abs=1e-4)
    draws = base.sample(40_000, SEED().manual_seed(0))[0, :, 0].sort().values
    empirical = th.searchsorted(draws, line, right=True) / len(draws)
    assert (empirical - cumulative).abs().max() < 0.01  # Kolmogorov and Smirnov's distance


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("event", [(3,), (2, 3)])
def test_shapes_generators_and_extra_coordinates(name, event):
    base, alone = bases(4, event)[name], bases()[name]
    before = th.random.get_rng_state()
    first, again, other = (base.sample(5, SEED().manual_seed(seed)) for seed in (0, 0, 1))
    assert first.shape == (4, 5, *event) and base.sample(0).shape == (4, 0, *event)
    assert th.equal(first, again) and not th.equal(first, other)
    assert base.quantiles(7).shape == (4, 7, *event) and th.equal(base.quantiles(7), base.quantiles(7))
    assert th.equal(before, th.random.get_rng_state())
    log_prob = base.log_prob(first)
    if not name.startswith("mixture"):  # coordinates are independent
        each = alone.log_prob(first.reshape(1, -1, 1)).reshape(4, 5, -1)
        th.testing.assert_close(log_prob, each.sum(-1), rtol=1e-9, atol=1e-9)
    assert log_prob.shape == (4, 5)


def test_a_flow_has_the_law_that_it_has_in_closed_form():
    start = Gaussian(th.full((1, 2), 1.0, **DOUBLE), th.full((1, 2), 0.5, **DOUBLE))
    flow = FlowBase(start, towards(-0.5, 2.0), n_steps=16)
    shrunk = math.exp(-2.0)
    expected = Gaussian(-0.5 + 1.5 * shrunk * th.ones(1, 2, **DOUBLE), 0.5 * shrunk * th.ones(1, 2, **DOUBLE))
    points = expected.sample(200, SEED().manual_seed(0))
    th.testing.assert_close(flow.log_prob(points), expected.log_prob(points), rtol=1e-4, atol=1e-3)
    assert th.equal(flow.quantiles(3)[:, 0], flow._moved(start.mean.unsqueeze(1))[:, 0])


def test_the_first_quantile_is_the_most_central_one():
    found = bases()
    assert th.equal(found["gaussian"].quantiles(3)[:, 0], found["gaussian"].mean)
    assert th.equal(found["noisy_actions"].quantiles(3)[:, 0], latent(found["noisy_actions"].actions))
    assert found["uniform"].quantiles(3)[0, 0, 0] == 0.0
    th.testing.assert_close(th.tanh(found["uniform"].quantiles(255)).var(), th.tensor(1.0 / 3.0, **DOUBLE), rtol=0.02, atol=0)
    mixture = found["mixture"]
    assert th.equal(mixture.quantiles(4)[:, :2, 0], th.stack([part.mean[:, 0] for part in mixture.bases], dim=1))


def test_the_frame_of_a_mixture_has_its_moments():
    base = bases()["mixture"]
    draws, frame = base.sample(200_000, SEED().manual_seed(0)), base.frame()
    th.testing.assert_close(draws.mean(1), frame.mean, rtol=0, atol=0.01)
    th.testing.assert_close(draws.std(1), frame.std, rtol=0.01, atol=0)
    assert MixtureBase((base, bases()["flow"])).frame() is None


MODES = modes_energy([[0.5], [-0.5]], 0.3)


@pytest.mark.parametrize("initial_particles", sorted(INITIAL_PARTICLES))
@pytest.mark.parametrize("refiner", [Langevin(), SelfNormalizedImportanceSampling()])
@pytest.mark.parametrize("name", NAMES)
def test_the_law_is_the_energy_s_whatever_the_base(name, refiner, initial_particles):
    base = bases(4000)[name]
    if initial_particles == "base" and name != "gaussian":  # the base alone need not reach both modes
        base = MixtureBase((base, bases(4000)["uniform"]))
    if initial_particles == "base" and name == "gaussian":
        base = Gaussian(0.0 * base.mean, 2.0 * base.std)
    way = Refinement(
        refiner, refiner.default_steps, 64, initial_particles=initial_particles, precondition=base.frame() is not None
    )
    draws = th.tanh(way.sample(base, MODES, generator=SEED().manual_seed(0)))
    assert total_variation(draws, MODES, 10) < 0.08
    best = th.tanh(way.best(base, MODES))
    assert (MODES(best.unsqueeze(1)) <= MODES(th.tanh(base.quantiles(1))) + 1e-9).all()


def test_a_base_of_one_s_own_needs_to_sample_and_to_say_its_density():
    class Laplace(Base):
        def sample(self, n, generator=None):
            signs = 2.0 * th.randint(0, 2, (3, n, 1), generator=generator) - 1.0
            return signs * th.empty(3, n, 1).exponential_(generator=generator)

        def log_prob(self, particles):
            return (-particles.abs() - math.log(2.0)).flatten(2).sum(-1)

    base, way = Laplace(), Refinement(Langevin(), 2, 8, precondition=False)
    before = th.random.get_rng_state()
    assert th.equal(way.best(base, MODES), way.best(base, MODES)) and th.equal(before, th.random.get_rng_state())
    assert way.sample(base, MODES).shape == (3, 1)
    with pytest.raises(ValueError, match="precondition=True needs a base with a frame, Laplace has none"):
        Refinement(Langevin(), 2, 8).sample(base, MODES)


def test_a_base_without_a_density_moves_what_it_draws_and_weighs_nothing():
    start = bases(3)["gaussian"]
    base = FlowBase(start, towards(0.0), has_density=False)
    way = Refinement(Langevin(), 2, 1, precondition=False)
    assert way.sample(base, MODES).shape == way.best(base, MODES).shape == (3, 1)
    assert way.simulate(base, MODES, n_chains=2).log_prob is None
    with pytest.raises(ValueError, match=r"no density \(has_density=False\)"):
        draw_proposals(base, 4, 0.5)
    with pytest.raises(ValueError, match="n_particles above 1 weighs proposals by their density"):
        Refinement(Langevin(), 2, 8, precondition=False).sample(base, MODES)
    with pytest.raises(ValueError, match="snis needs Target"):
        Refinement(SelfNormalizedImportanceSampling(), 1, 8, precondition=False).sample(base, MODES)
    mppi = RefinementArguments("mppi", n_particles=8, precondition=False, initial_particles="base").make_refinement()
    assert mppi.sample(base, MODES).shape == (3, 1), "it only compares energies"


@pytest.mark.parametrize("make, message", [
    (lambda mean: NoisyActions(mean, 0.0), "std must be positive and finite, got 0.0"),
    (lambda mean: MixtureBase(()), "weights must be one positive number for each of 0 bases"),
    (lambda mean: MixtureBase((UniformBase(mean),), (-1.0,)), "weights must be one positive number"),
    (lambda mean: MixtureBase((UniformBase(mean),), (1.0, 1.0)), "weights must be one positive number"),
    (lambda mean: FlowBase(UniformBase(mean), towards(0.0), n_steps=0), "n_steps must be at least 1"),
    (lambda mean: FlowBase(UniformBase(mean), towards(0.0), solver="midpoint"), "solver must be one of"),
])  # fmt: skip
def test_bad_arguments_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make(th.zeros(2, 1))
