"""What PGAC is where it is something else: gradient ascent, the Gibbs density, optimal transport, the JKO scheme."""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_energy import PGAC
from sb3_energy.energies import tempered
from sb3_energy.networks import PotentialNetwork
from sb3_energy.pgac.jko import jko_members
from sb3_energy.pgac.potential_learner import weighted_transport_loss
from sb3_energy.pgac.potential_policy import PotentialPolicy
from sb3_energy.pgac.q_scale import QScale
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refiners import jko_langevin, refine, refined_particles
from sb3_energy.types import Networks, Target, Tick
from tests.laws import modes_energy, total_variation

DOUBLE = th.float64


def ascent(q_value, a, step, n_steps):
    """Gradient ascent between walls, in the plainest way."""
    for _ in range(n_steps):
        a = a.detach().requires_grad_(True)
        a = (a + step * th.autograd.grad(q_value(a).sum(), a)[0]).detach()
        while (a.abs() > 1.0).any():
            a = th.where(a > 1.0, 2.0 - a, th.where(a < -1.0, -2.0 - a, a))
    return a


@pytest.mark.parametrize("by_hand", [True, False], ids=["by hand", "autograd"])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_without_noise_and_potential_it_climbs_q(monkeypatch, by_hand, deterministic, temperature):
    """The temperature is no part of it: the step of a is Δt ∇Q. Without a draw the best of start and end is taken."""
    n_steps, time = 7, 0.5
    policy_kwargs = dict(
        net_arch=[16],
        activation_fn=nn.SiLU,
        refiner_steps=n_steps,
        refiner_kwargs=dict(max_displacement=None),
        sampling_time=time,
        transport_time=time,
        n_particles=1,
        initial_particles="base",
        energy_kwargs=dict(guidance=1.0, temperature=temperature, normalize_q=False),
    )
    model = PGAC("MlpPolicy", "Pendulum-v1", buffer_size=10, seed=0, policy_kwargs=policy_kwargs)
    policy = model.policy.double()
    policy.critic.by_hand = policy.potential.by_hand = by_hand
    monkeypatch.setattr(policy.critic, "encode", lambda obs: obs)  # SB3 makes 32 bits of observations
    with th.no_grad():
        for network in policy.critic.q_networks:  # so steep that some bounce off the walls
            network[-1].weight *= 20.0
    generator = th.Generator().manual_seed(0)
    obs = th.randn(40, 3, dtype=DOUBLE, generator=generator)
    starts = 2.0 * th.rand(40, 1, dtype=DOUBLE, generator=generator) - 1.0
    base = Gaussian(th.atanh(starts), th.zeros_like(starts))

    def q_value(a):
        return th.stack([network(th.cat([obs, a], dim=1)) for network in policy.critic.q_networks]).mean(0)

    expected = ascent(q_value, starts, time / n_steps, n_steps)
    free = starts
    for _ in range(n_steps):
        a = free.detach().requires_grad_(True)
        free = (a + time / n_steps * th.autograd.grad(q_value(a).sum(), a)[0]).detach()
    assert (free.abs() > 1.0).any() and (expected.abs() < 0.9).any(), "some meet a wall and some do not"
    if deterministic:
        expected = th.where(q_value(starts) > q_value(expected), starts, expected)
    if by_hand:
        monkeypatch.setattr(th.autograd, "grad", None)
    found = th.tanh(policy.refine(obs, deterministic, base=base))
    th.testing.assert_close(found, expected.clamp(-1.0 + 1e-6, 1.0 - 1e-6), rtol=0.0, atol=1e-6)


class KnownCritic(nn.Module):
    """``Q(a) = 3 sin(3 a) + a``, the same at all observations."""

    def encode(self, obs):
        return obs

    def evaluate(self, features, actions):
        a = actions.squeeze(-1)
        return (3.0 * th.sin(3.0 * a) + a).unsqueeze(0)


@pytest.mark.parametrize("normalize_q, guidance, temperature", [(True, 1.5, 0.5), (False, 1.0, 2.5)])
def test_without_a_potential_it_samples_the_gibbs_density(normalize_q, guidance, temperature):
    policy_kwargs = dict(
        net_arch=[8],
        refiner_steps=300,
        refiner_kwargs=dict(max_displacement=None),
        sampling_time=8.0 / temperature,
        transport_time=0.0,
        n_particles=1,
        initial_particles="uniform",
        energy_kwargs=dict(guidance=guidance, temperature=temperature, normalize_q=normalize_q),
        box="reflect",
    )
    policy = PGAC("MlpPolicy", "Pendulum-v1", buffer_size=10, seed=0, policy_kwargs=policy_kwargs).policy
    critic, q_scale, obs = KnownCritic(), QScale(), th.zeros(1, 3)
    q_scale.update(critic.evaluate(None, th.linspace(-1.0, 1.0, 1000).reshape(1, -1, 1))[0])
    energy = policy.energy.bind(Networks(critic, potential=PotentialNetwork(3, 1, [8]), q_scale=q_scale.spread), obs)
    th.manual_seed(0)
    base = Gaussian(th.zeros(1, 1), th.ones(1, 1))
    chains = policy.simulate(obs, 100_000, base=base, energy=energy)
    ends = refined_particles(chains.refiner, chains.particles, chains.target, n_steps=chains.n_steps)
    draws = policy.refinement.actions(base, ends).reshape(-1, 1)

    def gibbs(scale):
        return lambda a: -scale * critic.evaluate(None, a)[0]

    scale = guidance / temperature / (q_scale.spread.item() if normalize_q else 1.0)
    assert total_variation(draws, gibbs(scale), 40) < 0.05
    for other in (0.7 * scale, 1.4 * scale):
        assert total_variation(draws, gibbs(other), 40) > 0.05
    box = policy.refinement.actions(base, chains.particles).reshape(-1, 1)
    assert total_variation(box, gibbs(scale), 40) > 0.2


class Valleys(nn.Module):
    """``Q(a) = -E(a)``, the same at all observations."""

    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def encode(self, obs):
        return obs

    def evaluate(self, features, actions):
        return -self.energy(actions).unsqueeze(0)


WORLDS = {
    "double well": modes_energy([[-0.5], [0.5]], 0.3, [1.0, 1.5]),
    "a narrow and a wide well": lambda a: -th.logaddexp(-0.5 * ((a - 0.6) / 0.08) ** 2, -0.5 * ((a + 0.4) / 0.3) ** 2)[..., 0],
    "a quartic": lambda a: 10.0 * (a[..., 0] ** 2 - 0.36) ** 2 + 0.3 * a[..., 0],
    "four modes": modes_energy([[0.6, 0.0], [-0.6, 0.0], [0.0, 0.6], [0.0, -0.6]], 0.25),
}
BASES = {"on one mode": (0.55, 0.3), "wide": (0.0, 1.0), "narrow": (0.2, 0.05)}


@pytest.mark.parametrize("base", sorted(BASES))
@pytest.mark.parametrize("world", sorted(WORLDS))
def test_at_the_defaults_draws_follow_the_law_and_no_worse_than_starts(world, base):
    energy, dimension = WORLDS[world], 2 if world == "four modes" else 1
    space = spaces.Box(-1.0, 1.0, (dimension,), np.float32)
    policy = PotentialPolicy(spaces.Box(-1.0, 1.0, (3,), np.float32), space, lambda _: 1e-3, net_arch=[8])
    obs, (mean, std), bins = th.zeros(500, 3), BASES[base], 40 if dimension == 1 else 20
    th.manual_seed(0)
    policy.q_scale.update(-energy(2.0 * th.rand(1, 100_000, dimension) - 1.0))
    networks = Networks(Valleys(energy), potential=policy.potential, q_scale=policy.q_scale.spread)
    gaussian, starts, ends = Gaussian(th.full((500, dimension), mean), th.full((500, dimension), std)), [], []
    for _ in range(10):
        chains = policy.simulate(obs, 20, base=gaussian, energy=policy.energy.bind(networks, obs))
        found = refined_particles(chains.refiner, chains.particles, chains.target, n_steps=chains.n_steps)
        for x, into in ((chains.particles, starts), (found, ends)):
            into.append(policy.refinement.actions(gaussian, x).reshape(-1, dimension))
    temperature = policy.temperature_of_q()

    def law(a):
        return energy(a) / temperature

    of_starts, of_draws = (total_variation(th.cat(draws), law, bins) for draws in (starts, ends))
    assert of_draws < max(0.05, of_starts + 0.01) and of_draws < of_starts + 0.01, (of_starts, of_draws)


def trained(network, pairs, n_updates, learning_rate=5e-3):
    """A potential that has learned from ``pairs()``: starts and ends ``(B, N, A)``."""
    optimizer = th.optim.Adam(network.parameters(), lr=learning_rate)
    for k in range(n_updates):
        optimizer.param_groups[0]["lr"] = learning_rate * 0.5 * (1.0 + math.cos(math.pi * k / n_updates))
        optimizer.zero_grad()
        starts, ends = pairs()
        weighted_transport_loss(network, th.zeros(len(starts), 0), starts, ends).backward()
        optimizer.step()
    return network


def test_the_potential_learns_the_conditional_mean():
    """From N(0, 1) to N(2, .5²), where the shortest ways are those of ranks; what is best at y comes from quadrature."""
    y = th.linspace(-0.5, 2.2, 12, dtype=DOUBLE)
    t = (th.arange(4000, dtype=DOUBLE) + 0.5) / 4000
    slope = 1.0 - t / 2.0  # a_t = (1 - t) a_0 + t (2 + a_0 / 2)
    start = (y[:, None] - 2.0 * t) / slope
    density = th.exp(-0.5 * start.square()) / slope
    exact = (density * (2.0 - start / 2.0)).sum(1) / density.sum(1)

    def pairs():
        return th.randn(4, 64, 1), 2.0 + 0.5 * th.randn(4, 64, 1)

    th.manual_seed(0)
    network = trained(PotentialNetwork(0, 1, [32, 32]), pairs, 400)
    points = y.float().reshape(1, -1, 1).requires_grad_(True)
    (gradients,) = th.autograd.grad(network(th.zeros(1, 0), points).sum(), points)
    error = (-gradients.flatten().double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 0.05
    assert (exact.max() - exact.min()) / exact.abs().mean() > 0.3, "which no constant would meet"


def test_the_potential_of_a_translation_translates():
    shift = th.tensor([0.8, -0.5])

    def pairs():
        starts = th.randn(1, 64, 2)
        return starts, (starts + shift)[:, th.randperm(64)]

    th.manual_seed(0)
    network = trained(PotentialNetwork(0, 2, [32]), pairs, 250)
    starts = 0.7 * th.randn(1, 200, 2)
    refiner = jko_langevin(10, 0.3, sampling_time=1.0, transport_time=1.0)
    with th.no_grad():
        target = Target(tempered(network.bind(th.zeros(1, 0)), 0.3))
    ends = refine(refiner, starts, target, n_steps=10).particles
    assert (ends - starts - shift).abs().max() < 0.1 and (ends - starts - shift).square().mean().sqrt() < 0.03


@pytest.mark.parametrize("transport_time", [0.0, 0.4, 1.0, 3.0])
def test_its_steps_are_those_of_the_jko_scheme(transport_time):
    """``a - Δt ∇U + √(2 ε(t) Δt) ξ`` with ε(t) = 0 until τ* and then a straight line up to ε, with the same noise."""
    n_steps, temperature, time = 9, 0.35, 2.0
    dt, part = time / n_steps, transport_time / time

    def potential(x):
        return (0.7 * x).cos().sum(-1) + 0.3 * x.square().sum(-1)

    def gradient(x):
        return -0.7 * (0.7 * x).sin() + 0.6 * x

    refiner = jko_langevin(n_steps, temperature, time, transport_time, max_displacement=None)
    target = Target(tempered(potential, temperature))
    a = th.randn(3, 4, 2, dtype=DOUBLE, generator=th.Generator().manual_seed(1))
    state, temperatures = refiner.init(a, target), []
    mine, its = th.Generator().manual_seed(2), th.Generator().manual_seed(2)
    for k in range(n_steps):
        elapsed = k / (n_steps - 1)
        now = temperature * max(0.0, (elapsed - part) / (1.0 - part)) if part < 1.0 else 0.0
        temperatures.append(now)
        noise = th.randn(a.shape, dtype=DOUBLE, generator=mine) if now > 0.0 else 0.0
        a = a - dt * gradient(a) + math.sqrt(2.0 * now * dt) * noise
        state, _ = refiner.step(state, target, Tick(k, n_steps), its)
        th.testing.assert_close(state.particles, a, rtol=0.0, atol=1e-12)
    assert temperatures[-1] == pytest.approx(temperature if part < 1.0 else 0.0)
    assert th.equal(th.randn(3, generator=mine), th.randn(3, generator=its)), "where there is no noise none is drawn"


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_the_proximal_term_is_in_units_of_the_potential(make_model, temperature):
    """``U(a) + |a - a_start|² / (2 Δt)``, all of it over ε: a trust region does not become narrower as ε falls."""
    step, obs = 0.3, th.randn(5, 3)
    energy_kwargs = dict(temperature=temperature)
    policies = [
        make_model(policy_kwargs=dict(energy_kwargs=energy_kwargs, trust_region=trust_region)).policy
        for trust_region in (None, step)
    ]
    x = 1.6 * th.rand(5, 2, 1) - 0.8
    energies = []
    for policy in policies:
        th.manual_seed(0)
        chains = policy.simulate(obs, 2)
        energies.append(chains.target.energy(x) * temperature)
    distance = (x - chains.particles).square().sum(-1)
    assert distance.min() > 0.0
    th.testing.assert_close(energies[1] - energies[0], distance / (2.0 * step), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "n_steps, sampling_time, transport_time, expected",
    [
        (9, 0.3, 0.1, 3),
        (6, 0.6, 0.2, 2),
        (7, 0.7, 0.1, 1),
        (6, 1.0, 0.5, 3),
        (6, 1.0, 0.51, 4),
        (5, 1.0, 0.0, 0),
        (4, 1.0, 3.0, 4),
    ],
)
def test_as_many_steps_without_noise_as_begin_before_the_time(n_steps, sampling_time, transport_time, expected):
    found = jko_members("mala", None, n_steps, temperature=0.1, sampling_time=sampling_time, transport_time=transport_time)
    assert dict(zip(found.refiners, found.steps, strict=True)).get("langevin", 0) == expected and sum(found.steps) == n_steps


def test_an_acceptance_to_aim_at_needs_steps_that_are_tested():
    times = dict(temperature=0.1, sampling_time=1.0, transport_time=1.0)
    with pytest.raises(ValueError, match="target_acceptance needs steps with noise, transport_time below"):
        jko_members("mala", dict(target_acceptance=0.5), 6, **times)
