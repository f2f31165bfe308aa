"""One test over the whole registry: a new refiner is tested by its line in ``REFINERS``."""

import dataclasses
import math
import pickle

import pytest
import torch as th
from torch import nn

from sb3_energy.energies import squashed, tempered
from sb3_energy.energies.transforms import log_tanh_jacobian
from sb3_energy.refinement.proposals import is_flow
from sb3_energy.refiners import REFINERS, refine
from sb3_energy.types import Refiner, Target, Tick
from tests.laws import modes_energy, total_variation

NAMES = sorted(REFINERS)
SHAPES = [(3, 1, 2), (3, 6, 2), (1, 5, 1), (2, 6, 4, 2), (2, 1, 4, 2)]
FLOWS = [name for name in NAMES if is_flow(REFINERS[name]())]
each_refiner = pytest.mark.parametrize("name", NAMES)


def start(shape, dtype=th.float64):
    return th.randn(shape, dtype=dtype, generator=th.Generator().manual_seed(0))


def quadratic(x):
    """Of particles, and of their first coordinates: these are independent, so each prefix has its own sum."""
    return 0.5 * (x - 0.3).square().flatten(2).sum(-1)


def spread(time, x):
    return time.reshape(*time.shape, *[1] * (x.dim() - 2))


def velocity(x, t):
    """Of ``x_t = .3 + (x_0 - .3) exp(-t)``, the same at all times."""
    assert t.shape == x.shape[:2]
    return 0.3 - x


def average_velocity(x, t, r):
    step = spread(r - t, x)
    return (0.3 - x) * -th.expm1(-step) / th.where(step > 0.0, step, 1.0)


def proposal(x):
    """Minus the logarithm of a density of the particles."""
    return 0.5 * x.square().flatten(2).sum(-1)


def target(particles, energy=quadratic):
    return Target(
        energy,
        velocity=velocity,
        proposal_log_prob=-proposal(particles),
        proposal=proposal,
        prefix_energy=quadratic,
        average_velocity=average_velocity,
    )


def steps(refiner):
    return 3 if refiner.max_steps is None else refiner.max_steps


def run(refiner, particles, seed=1, energy=quadratic):
    generator = None if seed is None else th.Generator().manual_seed(seed)
    return refine(refiner, particles, target(particles, energy), n_steps=steps(refiner), generator=generator)


@each_refiner
def test_it_says_what_it_is(name):
    refiner = REFINERS[name]()
    assert isinstance(refiner, Refiner)
    cls = type(refiner)
    assert isinstance(cls.exact, bool) and isinstance(cls.resamples, bool)
    assert isinstance(cls.default_steps, int) and cls.default_steps >= 0
    assert isinstance(cls.default_particles, int) and cls.default_particles >= 1
    assert cls.max_steps is None or cls.max_steps >= cls.default_steps


@each_refiner
def test_it_is_a_frozen_value(name):
    refiner = REFINERS[name]()
    assert dataclasses.is_dataclass(refiner)
    assert pickle.loads(pickle.dumps(refiner)) == refiner and hash(refiner) == hash(REFINERS[name]())
    assert pickle.loads(pickle.dumps(refiner.deterministic())) == refiner.deterministic()
    with pytest.raises(dataclasses.FrozenInstanceError):
        refiner.anything = 1


@each_refiner
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_shapes_hold_and_energies_belong_to_the_particles_after_every_step(name, shape, deterministic):
    refiner, particles = REFINERS[name](), start(shape)
    refiner = refiner.deterministic() if deterministic else refiner
    goal, n_steps = target(particles), max(steps(refiner), 1)
    state = refiner.init(particles, goal)
    assert th.equal(state.particles, particles)
    for k in range(n_steps):
        th.testing.assert_close(state.energies, quadratic(state.particles))
        state, info = refiner.step(state, goal, Tick(k, n_steps), th.Generator().manual_seed(k))
        assert state.particles.shape == shape and state.energies.shape == shape[:2]
        assert info.acceptance.shape == info.displacement.shape == shape[:2]
        assert (info.displacement >= 0.0).all() and ((info.acceptance >= 0.0) & (info.acceptance <= 1.0)).all()
    th.testing.assert_close(state.energies, quadratic(state.particles))
    assert state.particles.dtype == state.energies.dtype == th.float64


@each_refiner
def test_the_generator_decides(name):
    refiner, particles = REFINERS[name](), start((3, 6, 2))
    global_state = th.random.get_rng_state()
    first, again, other = (run(refiner, particles, seed).particles for seed in (1, 1, 2))
    assert th.equal(first, again)
    assert th.equal(global_state, th.random.get_rng_state())
    assert th.equal(first, other) == (name == "none" or name in FLOWS)  # all the randomness of a flow is in its start
    th.manual_seed(5)
    first = run(refiner, particles, None).particles
    th.manual_seed(5)
    assert th.equal(first, run(refiner, particles, None).particles)


@each_refiner
@pytest.mark.parametrize("shape", SHAPES)
def test_deterministic_asks_no_random_numbers(name, shape):
    refiner, particles = REFINERS[name]().deterministic(), start(shape)
    generator = th.Generator().manual_seed(1)
    before, global_before = generator.get_state(), th.random.get_rng_state()
    first = refine(refiner, particles, target(particles), n_steps=steps(refiner), generator=generator)
    assert th.equal(before, generator.get_state()) and th.equal(global_before, th.random.get_rng_state())
    assert th.equal(first.particles, run(refiner, particles, seed=None).particles)
    assert refiner.deterministic() == refiner


@each_refiner
@pytest.mark.parametrize("grad_enabled", [True, False])
def test_no_graph_and_no_gradient_is_left(name, grad_enabled):
    net = nn.Linear(2, 1).double()
    for parameter in net.parameters():
        parameter.grad = th.ones_like(parameter)
    particles = start((3, 6, 2)).requires_grad_(True)
    with th.set_grad_enabled(grad_enabled):
        state = run(REFINERS[name](), particles, energy=lambda x: net(x).squeeze(-1).square())
        assert th.is_grad_enabled() == grad_enabled
    assert not state.particles.requires_grad and not state.energies.requires_grad
    assert particles.grad is None
    assert all(th.equal(p.grad, th.ones_like(p)) for p in net.parameters())


@each_refiner
def test_the_start_is_not_changed_in_place(name):
    particles = start((3, 6, 2))
    copy = particles.clone()
    run(REFINERS[name](), particles)
    assert th.equal(particles, copy)


@each_refiner
def test_no_steps_leave_the_particles(name):
    particles = start((3, 6, 2))
    state = refine(REFINERS[name](), particles, target(particles), n_steps=0)
    assert th.equal(state.particles, particles) and th.equal(state.energies, quadratic(particles))


@each_refiner
def test_observations_do_not_meet(name):
    particles = start((3, 6, 2))
    moved = particles.clone()
    moved[1:] += 1.0
    refiner = REFINERS[name]().deterministic()
    assert th.equal(run(refiner, particles).particles[0], run(refiner, moved).particles[0])


# Flows follow what they have learned at one temperature, and mppi the best of its candidates, whatever it is
FOLLOWS_THE_ENERGY = sorted(set(NAMES) - {"none", "flow", "mean_flow", "mppi"})


@pytest.mark.parametrize("name", FOLLOWS_THE_ENERGY)
def test_each_observation_s_own_temperature_is_followed(name):
    """.1 and 10 side by side, from one cloud of particles: what is cold ends lower and closer together."""
    temperatures = th.tensor([[0.1], [10.0]], dtype=th.float64)
    particles = 1.5 * start((1, 200, 1)).repeat(2, 1, 1)
    energy = tempered(quadratic, temperatures)
    density = tempered(proposal, 1.5**2)
    refiner = REFINERS[name]()
    n_steps = 60 if refiner.max_steps is None and not refiner.resamples else steps(refiner)
    state = refine(
        refiner,
        particles,
        Target(energy, proposal_log_prob=-density(particles), proposal=density),
        n_steps=n_steps,
        generator=th.Generator().manual_seed(1),
    )
    cold, hot = quadratic(state.particles)
    assert cold.mean() < 0.5 * hot.mean()
    assert state.particles[0].std() < 0.7 * state.particles[1].std()


@each_refiner
def test_32_bits_stay_32_bits_and_say_the_same(name):
    single, double = (run(REFINERS[name]().deterministic(), start((3, 6, 2)).to(dtype)) for dtype in (th.float32, th.float64))
    assert single.particles.dtype == single.energies.dtype == th.float32
    if name in ("derivative_free", "autoregressive_derivative_free", "mppi"):  # which compare: a tie may fall otherwise
        assert th.isfinite(single.particles).all()
    else:
        th.testing.assert_close(single.particles.double(), double.particles, rtol=1e-3, atol=1e-3)


def of_box(x):
    """Minus the log-density of the uniform distribution on the box, pre-tanh."""
    return math.log(2.0) - log_tanh_jacobian(x)


@pytest.mark.parametrize("name", [name for name in NAMES if REFINERS[name].exact])
def test_who_calls_itself_exact_reproduces_a_density(name):
    density = modes_energy([[0.5]], 0.5)
    box = 2.0 * th.rand(100, 1000, 1, generator=th.Generator().manual_seed(0)) - 1.0
    particles = th.atanh(box.clamp(-1.0 + 1e-6, 1.0 - 1e-6))
    refiner = REFINERS[name]()
    n_steps = 100 if refiner.max_steps is None else refiner.max_steps
    goal = Target(squashed(density), proposal_log_prob=-of_box(particles), proposal=of_box)
    state = refine(refiner, particles, goal, n_steps=n_steps, generator=th.Generator().manual_seed(1))
    assert total_variation(box.reshape(-1, 1), density, 40) > 0.15
    assert total_variation(th.tanh(state.particles).reshape(-1, 1), density, 40) < 0.05


BAD_ARGUMENTS = [
    ("langevin", dict(step_size=0.0), ValueError, "step_size must be above 0"),
    ("langevin", dict(step_size=-1), ValueError, "step_size must be above 0"),
    ("langevin", dict(step_size=math.nan), ValueError, "step_size must be finite"),
    ("langevin", dict(step_size="big"), TypeError, "step_size must be a number or a schedule"),
    ("langevin", dict(step_size=True), TypeError, "step_size must be a number or a schedule"),
    ("langevin", dict(step_size=lambda r: r - 0.5), ValueError, r"step_size\(0.0\) must be at least 0"),
    ("langevin", dict(noise_scale=-0.1), ValueError, "noise_scale must be at least 0"),
    ("langevin", dict(noise_scale=None), TypeError, "noise_scale must be a number or a schedule"),
    ("langevin", dict(max_grad_norm=0.0), ValueError, "max_grad_norm must be above 0"),
    ("langevin", dict(max_grad_norm=math.inf), ValueError, "max_grad_norm must be finite"),
    ("langevin", dict(max_displacement=-1.0), ValueError, "max_displacement must be above 0"),
    ("langevin", dict(differentiable=1), TypeError, "differentiable must be True or False, got 1"),
    ("mala", dict(step_size=0.0), ValueError, "step_size must be above 0"),
    ("mala", dict(max_displacement=0), ValueError, "max_displacement must be above 0"),
    ("mala", dict(max_grad_norm="long"), TypeError, "max_grad_norm must be a number or None"),
    ("mala", dict(target_acceptance=0.0), ValueError, r"target_acceptance must lie in \(0, 1\], got 0"),
    ("mala", dict(target_acceptance=1.0), ValueError, "target_acceptance must be below 1"),
    ("hmc", dict(target_acceptance="high"), TypeError, "target_acceptance must be a number, got 'high'"),
    ("hmc", dict(step_size=-0.1), ValueError, "step_size must be above 0"),
    ("hmc", dict(n_leapfrogs=0), ValueError, "n_leapfrogs must be at least 1"),
    ("hmc", dict(n_leapfrogs=2.5), TypeError, "n_leapfrogs must be an integer"),
    ("smc", dict(ladder="steep"), ValueError, r"ladder must be one of \['adaptive', 'fixed'\], got 'steep'"),
    ("smc", dict(ess_fraction=0.0), ValueError, r"ess_fraction must lie in \(0, 1\), got 0.0"),
    ("smc", dict(ess_fraction=1.0), ValueError, r"ess_fraction must lie in \(0, 1\), got 1.0"),
    ("smc", dict(moves=0), ValueError, "moves must be at least 1, got 0"),
    ("smc", dict(moves=2.5), TypeError, "moves must be an integer, got 2.5"),
    ("smc", dict(groups=0), ValueError, "groups must be at least 1, got 0"),
    ("smc", dict(target_acceptance=1.0), ValueError, r"target_acceptance must lie in \(0, 1\), got 1.0"),
    ("smc", dict(step_size=0.0), ValueError, "step_size must be above 0, got 0.0"),
    ("svgd", dict(step_size=math.inf), ValueError, "step_size must be finite"),
    ("svgd", dict(bandwidth=0.0), ValueError, "bandwidth must be above 0"),
    ("svgd", dict(max_step_norm=0.0), ValueError, "max_step_norm must be above 0"),
    ("svgd", dict(differentiable="yes"), TypeError, "differentiable must be True or False, got 'yes'"),
    ("svgd", dict(shuffle=1), TypeError, "shuffle must be True or False, got 1"),
    ("annealed_gradient", dict(step_size=0.0), ValueError, "step_size must be above 0, got 0.0"),
    ("annealed_gradient", dict(step_size=None), TypeError, "step_size must be a number or a schedule, got None"),
    ("annealed_gradient", dict(noise_scale=-1.0), ValueError, "noise_scale must be at least 0, got -1.0"),
    ("annealed_gradient", dict(max_displacement=0.0), ValueError, "max_displacement must be above 0, got 0.0"),
    ("derivative_free", dict(noise_std=0), ValueError, "noise_std must be above 0"),
    ("derivative_free", dict(noise_std=None), TypeError, "noise_std must be a number, got None"),
    ("derivative_free", dict(noise_decay=1.5), ValueError, r"noise_decay must lie in \(0, 1\], got 1.5"),
    ("derivative_free", dict(noise_decay="fast"), TypeError, "noise_decay must be a number"),
    ("derivative_free", dict(quasi_random=0), TypeError, "quasi_random must be True or False"),
    ("autoregressive_derivative_free", dict(noise_std=0.0), ValueError, "noise_std must be above 0"),
    ("autoregressive_derivative_free", dict(noise_std=None), TypeError, "noise_std must be a number, got None"),
    ("autoregressive_derivative_free", dict(noise_decay=0.0), ValueError, r"noise_decay must lie in \(0, 1\], got 0.0"),
    ("autoregressive_derivative_free", dict(noise_decay=None), TypeError, "noise_decay must be a number"),
    ("autoregressive_derivative_free", dict(quasi_random="yes"), TypeError, "quasi_random must be True or False"),
    ("flow", dict(solver="midpoint"), ValueError, r"solver must be one of \['euler', 'heun', 'rk4'\], got 'midpoint'"),
    ("flow", dict(solver=["heun"]), ValueError, r"solver must be one of .*, got \['heun'\]"),
    ("flow", dict(solver=None), ValueError, "solver must be one of .*, got None"),
    ("mppi", dict(n_elites=0), ValueError, "n_elites must be at least 1"),
    ("mppi", dict(n_elites=2.0), TypeError, "n_elites must be an integer"),
    ("mppi", dict(temperature=0.0), ValueError, "temperature must be above 0"),
    ("mppi", dict(temperature=None), TypeError, "temperature must be a number"),
    ("mppi", dict(warm_start=1), TypeError, "warm_start must be True or False, got 1"),
    ("mppi", dict(quasi_random=None), TypeError, "quasi_random must be True or False, got None"),
    ("mppi", dict(min_std=0.0), ValueError, "min_std must be above 0"),
    ("mppi", dict(min_std=0.5, max_std=0.4), ValueError, "max_std must be at least min_std=0.5"),
]


@pytest.mark.parametrize("name, kwargs, error, message", BAD_ARGUMENTS)
def test_bad_arguments_are_refused_at_construction(name, kwargs, error, message):
    with pytest.raises(error, match=message):
        REFINERS[name](**kwargs)


def test_flows_ask_for_their_velocities():
    assert FLOWS == ["flow", "mean_flow"]
    particles = start((3, 6, 2))
    with pytest.raises(ValueError, match=r"flow needs Target\.velocity, .*, got None"):
        refine(REFINERS["flow"](), particles, target(particles)._replace(velocity=None), n_steps=1)
    with pytest.raises(ValueError, match=r"mean_flow needs Target\.average_velocity, .*, got None"):
        refine(REFINERS["mean_flow"](), particles, target(particles)._replace(average_velocity=None), n_steps=1)


@each_refiner
def test_the_loop_refuses_wrong_shapes_and_steps(name):
    refiner, particles = REFINERS[name](), start((3, 6, 2))
    with pytest.raises(ValueError, match=r"particles must have shape \(B, N, \*event\), got \(3, 6\)"):
        refine(refiner, particles[..., 0], target(particles), n_steps=1)
    for n_steps in (-1, 1.0, True):
        with pytest.raises(ValueError, match="n_steps must be an integer of at least 0, got"):
            refine(refiner, particles, target(particles), n_steps=n_steps)
    with pytest.raises(ValueError, match=r"must be \(B, N\), got"):
        refine(refiner, particles, Target(lambda x: x.sum(-1, keepdim=True)), n_steps=0)
