"""Events of any shape: plans and states take the same path as actions, for every refiner."""

import pytest
import torch as th

from sb3_energy.entropy import DivergenceEntropy, MixtureEntropy, PathEntropy, TraceEntropy
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.boxes import BOXES
from sb3_energy.refinement.sliceable_energy import bind_sliceable
from sb3_energy.refinement.warm_start import Plans
from sb3_energy.refiners import REFINERS
from sb3_energy.types import EntropyContext, Head

NAMES = sorted(REFINERS)
PLAN, STATE = (4, 2), (5,)
CENTRES = 0.3 * th.linspace(-1.0, 1.0, 8)


def spread(time, x):
    return time.reshape(*time.shape, *[1] * (x.dim() - 2))


def head_of(event):
    """Velocities that contract, and the exact energies of prefixes: coordinates are independent."""
    return Head(
        velocity=lambda x, t: 0.2 - x,
        average_velocity=lambda x, t, r: (0.2 - x) * th.exp(-spread(r - t, x)),
        prefix_energy=wells,
    )


def wells(a):
    """A Gaussian of each coordinate, about a centre of its own: of whole events, or of their first coordinates."""
    flat = a.flatten(2)
    return 8.0 * (flat - CENTRES[: flat.shape[2]].to(a)).square().sum(-1)


def base(n, event):
    mean = 0.1 * th.randn((n, *event), generator=th.Generator().manual_seed(3))
    return Gaussian(mean, th.full_like(mean, 0.6))


def flat(gaussian):
    return Gaussian(*(part.flatten(1) for part in gaussian))


def make(name, **kwargs):
    return RefinementArguments(name, **kwargs).make_refinement()


@pytest.mark.parametrize("box", sorted(BOXES))
@pytest.mark.parametrize("event", [PLAN, STATE])
@pytest.mark.parametrize("name", NAMES)
def test_an_event_is_drawn_and_found_as_its_flattened_self(name, event, box):
    if box == "reflect" and (name == "none" or REFINERS[name].head in ("velocity", "average_velocity")):
        pytest.skip("takes box='tanh' only")
    way, gaussian = make(name, box=box), base(3, event)
    infos = []
    found = way.sample(gaussian, wells, generator=th.Generator().manual_seed(0), head=head_of(event), infos=infos)
    best = way.best(gaussian, wells, head=head_of(event))
    assert found.shape == best.shape == (3, *event)
    assert all(info.displacement.shape[0] == 3 for info in infos)
    expected = way.sample(flat(gaussian), wells, generator=th.Generator().manual_seed(0), head=head_of(event))
    th.testing.assert_close(found.flatten(1), expected, rtol=1e-5, atol=1e-5)
    expected = way.best(flat(gaussian), wells, head=head_of(event))
    th.testing.assert_close(best.flatten(1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if REFINERS[name].exact])
def test_an_exact_refiner_has_the_moments_of_the_energy_over_plans(name):
    """``exp(-8 |a - c|²)`` is a Gaussian of standard deviation 1/4, which the box hardly cuts off."""
    way = make(name, refiner_steps=40) if REFINERS[name].max_steps is None else make(name, n_particles=4096)
    if REFINERS[name].max_steps is None and REFINERS[name].resamples:  # exact as their number grows
        way = make(name, n_particles=128)
    gaussian = Gaussian(*(th.atanh(CENTRES.reshape(1, *PLAN)).expand(8000, *PLAN), th.full((8000, *PLAN), 0.35)))
    if REFINERS[name].max_steps is not None:
        gaussian = Gaussian(gaussian.mean[:400], gaussian.std[:400])
    draws = th.tanh(way.sample(gaussian, wells, generator=th.Generator().manual_seed(0))).flatten(1)
    th.testing.assert_close(draws.mean(0), CENTRES, rtol=0, atol=0.01 if len(draws) > 1000 else 0.05)
    th.testing.assert_close(draws.std(0), th.full((8,), 0.25), rtol=0.05 if len(draws) > 1000 else 0.15, atol=0)


@pytest.mark.parametrize("name", ["langevin", "svgd"])
def test_a_trust_region_and_several_chains_are_of_the_whole_event(name):
    gaussian = base(3, PLAN)
    kwargs = dict(trust_region=0.1) if name == "langevin" else {}
    way = make(name, **kwargs)
    chains, expected = (
        way.simulate(start, wells, n_chains=4, generator=th.Generator().manual_seed(0)) for start in (gaussian, flat(gaussian))
    )
    assert chains.particles.shape[2:] == PLAN
    th.testing.assert_close(chains.particles.flatten(2), expected.particles)
    th.testing.assert_close(chains.target.energy(chains.particles), expected.target.energy(expected.particles))
    th.testing.assert_close(chains.log_jacobian(chains.particles), expected.log_jacobian(expected.particles))
    th.testing.assert_close(chains.target.proposal_log_prob, expected.target.proposal_log_prob)
    best = way.best(gaussian, wells)
    th.testing.assert_close(best.flatten(1), way.best(flat(gaussian), wells))


class Wells:
    """An energy of plans without networks."""

    def bind(self, networks, obs):
        return lambda a: obs * wells(a)


def test_observations_leave_a_plan_s_descent_one_by_one():
    from sb3_energy.types import Networks

    gaussian, scales = base(6, PLAN), th.logspace(-3.0, 1.0, 6).unsqueeze(1)
    way = make("langevin", tolerance=1e-3, refiner_steps=12, n_particles=3)
    infos = []
    found = way.best(gaussian, bind_sliceable(Wells(), Networks(_NoCritic()), scales), infos=infos)
    expected = way.best(flat(gaussian), bind_sliceable(Wells(), Networks(_NoCritic()), scales))
    assert found.shape == (6, *PLAN) and not all(bool(info.computed.all()) for info in infos)
    th.testing.assert_close(found.flatten(1), expected, rtol=1e-4, atol=1e-4)


class _NoCritic:
    def encode(self, obs):
        raise AssertionError("not asked")


def test_a_warm_start_hands_plans_on():
    way, gaussian = make("mppi", refiner_kwargs=dict(warm_start=True), n_particles=16), base(3, PLAN)
    plans = Plans()
    way.best(gaussian, wells, plans=plans)
    (means,) = plans.state
    assert means.shape == (3, *PLAN)
    following = Plans(plans.state)
    assert th.isfinite(way.sample(gaussian, wells, plans=following, generator=th.Generator().manual_seed(0))).all()
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        way.best(base(3, STATE), wells, plans=Plans(plans.state))


ESTIMATES = [
    ("langevin", MixtureEntropy(n_chains=8), dict(refiner_steps=3)),
    ("langevin", PathEntropy(n_chains=2), dict(n_particles=1)),
    ("svgd", TraceEntropy(self_term=True), dict(refiner_kwargs=dict(step_size=0.01))),
    ("svgd", TraceEntropy(determinant=True), dict(refiner_kwargs=dict(step_size=0.01))),
    ("flow", DivergenceEntropy(), {}),
    ("flow", DivergenceEntropy("hutchinson", n_probes=2), {}),
    ("mean_flow", DivergenceEntropy(), {}),
]


@pytest.mark.parametrize("name, estimator, kwargs", ESTIMATES)
def test_entropies_of_plans_are_those_of_their_flattened_selves(name, estimator, kwargs):
    way, found = make(name, **kwargs), []
    for start in (base(3, PLAN), flat(base(3, PLAN))):

        def simulate(n_chains, start=start):
            return way.simulate(start, wells, n_chains=n_chains, head=head_of(PLAN), generator=th.Generator().manual_seed(0))

        th.manual_seed(0)
        context = EntropyContext(th.zeros(3, 1), lambda n, f: None, simulate, lambda x, remaining: 0.1 * x)
        found.append(estimator.estimate(context))
    assert found[0].log_prob.shape == (3, 1) and th.isfinite(found[0].log_prob).all()
    th.testing.assert_close(found[0].log_prob, found[1].log_prob, rtol=1e-4, atol=1e-4)
