"""Implicit behavioral cloning's autoregressive optimiser: one coordinate after the other, by energies of prefixes."""

import math

import pytest
import torch as th
from torch import nn

from sb3_energy.energies import squashed
from sb3_energy.losses import prefix_loss
from sb3_energy.networks import PrefixEnergies
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.proposals import draw_coordinates, draw_proposals
from sb3_energy.refiners import AutoregressiveDerivativeFree, refine, select
from sb3_energy.refiners.autoregressive_derivative_free import smoothed
from sb3_energy.types import Target, Tick
from tests.laws import frequencies, modes_energy, total_variation

FOUR_MODES = modes_energy([[0.6, 0.6], [-0.6, 0.6], [0.6, -0.6], [-0.6, -0.6]], 0.3, [1.0, 2.0, 2.0, 4.0])
PRECISION = th.linalg.inv(th.tensor([[0.09, 0.081], [0.081, 0.09]], dtype=th.float64))
CELLS = 400
each_target = pytest.mark.parametrize("target", ["four modes", "correlated"])


def correlated(a):
    y = a - th.tensor([0.2, -0.1], dtype=a.dtype)
    return 0.5 * ((y @ PRECISION.to(a.dtype)) * y).sum(-1)


def swapped(a):
    return correlated(a.flip(-1))


TARGETS = {"four modes": FOUR_MODES, "correlated": correlated, "swapped": swapped}


def centres():
    return (th.arange(CELLS, dtype=th.float64) + 0.5) / CELLS * 2.0 - 1.0


def interpolated(table, a):
    """The table ``(CELLS,)`` of a function of one action at the actions."""
    place = ((a.double() + 1.0) / 2.0 * CELLS - 0.5).clamp(0.0, CELLS - 1.001)
    left = place.floor().long()
    return (table[left] + (place - left) * (table[left + 1] - table[left])).to(a.dtype)


def marginal(energy):
    """``-log ∫ exp(-E(a)) da_2`` of a target in two dimensions, by the midpoint rule."""
    grid = th.stack(th.meshgrid(centres(), centres(), indexing="ij"), dim=-1)
    table = -(-energy(grid)).logsumexp(1)
    return lambda prefix: interpolated(table, prefix[..., 0])


def no_idea(prefix):
    return 0.0 * prefix.sum(-1)


def slope(prefix):
    return prefix[..., 0]


def uniform(shape, seed=0):
    box = 2.0 * th.rand(shape, generator=th.Generator().manual_seed(seed)) - 1.0
    return th.atanh(box.clamp(-1.0 + 1e-6, 1.0 - 1e-6))


def draws(energy, prefix, n_steps=1, start=None, infos=None):
    particles = uniform((400, 250, 2)) if start is None else start
    target = Target(squashed(energy), prefix_energy=squashed(prefix))
    generator = th.Generator().manual_seed(1)
    state = refine(AutoregressiveDerivativeFree(), particles, target, n_steps=n_steps, generator=generator, infos=infos)
    return th.tanh(state.particles).flatten(0, 1)


@each_target
def test_one_round_follows_the_gibbs_density(target):
    energy = TARGETS[target]
    assert total_variation(draws(energy, marginal(energy)), energy, 20) < 0.05
    assert total_variation(th.tanh(uniform((100_000, 2))), energy, 20) > 0.25  # the start does not


@each_target
@pytest.mark.parametrize("prefix", [no_idea, slope])
def test_the_last_weight_takes_back_what_prefix_energies_got_wrong(target, prefix):
    assert total_variation(draws(TARGETS[target], prefix), TARGETS[target], 20) < 0.05


def test_good_prefix_energies_are_worth_particles():
    informed, blind = [], []
    draws(correlated, marginal(correlated), infos=informed)
    draws(correlated, no_idea, infos=blind)
    assert informed[0].effective_sample_size.mean() > 1.5 * blind[0].effective_sample_size.mean()


def test_particles_may_start_anywhere():
    # half narrow and beside the mode, half wide: no product of densities, and no density is told
    base = Gaussian(th.full((400, 2), -0.7), th.full((400, 2), 0.1))
    start = draw_proposals(base, 250, 0.5, generator=th.Generator().manual_seed(0)).particles
    assert total_variation(draws(correlated, marginal(correlated), start=start), correlated, 20) < 0.05


@each_target
def test_more_rounds_are_sharper(target, record_property):
    energy = TARGETS[target]
    after = {n: draws(energy, marginal(energy), n) for n in (1, 2, AutoregressiveDerivativeFree.default_steps)}
    bias = total_variation(after[AutoregressiveDerivativeFree.default_steps], energy, 20)
    record_property("total_variation", bias)
    assert not AutoregressiveDerivativeFree.exact and bias > 0.1
    energies = [energy(actions).mean() for actions in after.values()]
    assert energies[0] > energies[1] > energies[2]


@pytest.mark.parametrize("n_steps", [1, 3])
def test_the_order_of_the_coordinates_does_not_matter(n_steps):
    first = draws(correlated, marginal(correlated), n_steps)
    second = draws(swapped, marginal(swapped), n_steps).flip(-1)
    distance = 0.5 * (frequencies(first, 20) - frequencies(second, 20)).abs().sum()
    assert distance < 0.05


def trained(energy, dimension, batch, n_updates):
    """Networks whose observation is the number of the target, after some updates by the loss."""
    th.manual_seed(0)
    generator, features = th.Generator().manual_seed(0), th.eye(batch)
    networks = PrefixEnergies(batch, dimension, [64, 64], nn.SiLU, "layer_norm")
    optimizer = th.optim.Adam(networks.parameters(), lr=3e-3)
    schedule = th.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, n_updates)
    base = Gaussian(th.zeros(batch, dimension), th.full((batch, dimension), 0.6))
    for _ in range(n_updates):
        points = draw_proposals(base, 32, 0.5, generator=generator).particles
        proposals = draw_coordinates(base, 16, 0.5, generator=generator)
        prefix_energy = squashed(networks.bind(features))
        loss = prefix_loss(squashed(energy), prefix_energy, points, *proposals)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return networks


def test_prefix_energies_that_were_learned_in_a_second_do():
    def both(a):
        return th.stack([FOUR_MODES(a[0]), correlated(a[1])])

    networks = trained(both, 2, batch=2, n_updates=300)
    for energy, features in zip((FOUR_MODES, correlated), th.eye(2), strict=True):
        learned, known, start = [], [], uniform((1600, 64, 2))
        actions = draws(energy, networks.bind(features.expand(1600, -1)), start=start, infos=learned)
        draws(energy, marginal(energy), start=start, infos=known)
        assert total_variation(actions, energy, 20) < 0.05
        ratio = learned[0].effective_sample_size.mean() / known[0].effective_sample_size.mean()
        assert ratio > 0.85


def chain(a):
    """Two modes of the first of four coordinates; each of the others lies near the one before."""
    return 0.5 * (((a[..., 0].abs() - 0.5) / 0.2).square() + ((a[..., 1:] - a[..., :-1]) / 0.15).square().sum(-1))


def chain_prefix():
    """The marginals of the chain backwards, by the midpoint rule: what follows depends on a prefix's last number alone."""
    step = 0.5 * ((centres() - centres().unsqueeze(1)) / 0.15).square()
    tables = [th.zeros(CELLS, dtype=th.float64)]
    for _ in range(3):
        tables.append(-(-step - tables[-1]).logsumexp(1))
    return lambda prefix: chain(prefix) + interpolated(tables[4 - prefix.shape[-1]], prefix[..., -1])


def test_in_four_dimensions_few_particles_need_to_know_what_follows():
    networks, start = trained(chain, 4, batch=1, n_updates=500), uniform((500, 64, 4))
    learned = networks.bind(th.ones(500, 1))
    known, found, blind = (chain(draws(chain, p, start=start)).mean() for p in (chain_prefix(), learned, no_idea))
    assert abs(known - 1.83) < 0.15  # what 2 million weighted draws from the box say
    assert found < known + 0.35 and blind > known + 1.0


def quadratic(x):
    return 200.0 * (x - th.tensor([0.4, -0.7, 0.1])[: x.shape[-1]]).square().sum(-1)


@pytest.mark.parametrize("refiner", [AutoregressiveDerivativeFree(), AutoregressiveDerivativeFree().deterministic()])
def test_the_optimum_of_a_quadratic_is_found_without_gradients(refiner):
    start = th.randn(20, 64, 3, generator=th.Generator().manual_seed(0))
    target = Target(quadratic, prefix_energy=quadratic)
    ends = refine(refiner, start, target, n_steps=5, generator=th.Generator().manual_seed(1))
    assert ends.energies.amin(1).mean() < 0.05 * quadratic(start).amin(1).mean()


@pytest.mark.parametrize("tick", [Tick(0, 2), Tick(1, 2)], ids=["a round", "the last round"])
def test_without_noise_the_last_proposals_are_all_kept(tick):
    """The first coordinate is resampled by its prefix; the second not, in the last round, so that the lowest may be chosen."""
    target = Target(lambda x: 8.0 * x.square().sum(-1), prefix_energy=lambda prefix: 8.0 * prefix[..., 0].square())
    refiner = AutoregressiveDerivativeFree().deterministic()
    start = th.randn(3, 64, 2, generator=th.Generator().manual_seed(0))
    state, _ = refiner.step(refiner.init(start, target), target, tick)
    th.testing.assert_close(state.energies, target.energy(state.particles))
    for particles in state.particles:
        assert len(particles[:, 0].unique()) < 50
        assert (len(particles[:, 1].unique()) == 64) == tick.is_last


def test_a_plan_is_its_coordinates():
    start = th.randn(2, 16, 2, 2, generator=th.Generator().manual_seed(0))
    plan = Target(lambda x: x.square().flatten(2).sum(-1), prefix_energy=lambda x: x.square().sum(-1))
    flat = Target(lambda x: x.square().sum(-1), prefix_energy=plan.prefix_energy)
    refiner = AutoregressiveDerivativeFree()
    ends = refine(refiner, start, plan, n_steps=3, generator=th.Generator().manual_seed(1)).particles
    assert th.equal(
        ends.flatten(2), refine(refiner, start.flatten(2), flat, n_steps=3, generator=th.Generator().manual_seed(1)).particles
    )


def test_a_round_costs_each_particle_one_energy_and_one_of_each_prefix():
    calls = []

    def counted(x):
        calls.append(tuple(x.shape))
        return x.square().sum(-1)

    start = th.randn(2, 8, 3, generator=th.Generator().manual_seed(0))
    refine(AutoregressiveDerivativeFree(), start, Target(counted, prefix_energy=counted), n_steps=2)
    assert calls == [(2, 8, 3)] + 2 * [(2, 8, 1), (2, 8, 2), (2, 8, 3)]


def test_the_noise_shrinks_from_round_to_round():
    flat, start = Target(no_idea, prefix_energy=no_idea), th.zeros(1, 20_000, 2)
    refiner = AutoregressiveDerivativeFree(0.4, 0.5)
    for step, std in ((1, 0.4), (2, 0.2), (3, 0.1)):
        state, _ = refiner.step(refiner.init(start, flat), flat, Tick(step, 4), th.Generator().manual_seed(0))
        th.testing.assert_close(state.particles[0].std(0), th.full((2,), std), rtol=0.03, atol=0.0)


def test_the_density_of_smoothed_proposals_is_that_of_their_kernels():
    generator = th.Generator().manual_seed(0)
    pool = th.cat([0.01 * th.randn(3, 500, generator=generator), 3.0 * th.randn(3, 500, generator=generator)], dim=1).double()
    noise = th.randn(3, 1000, generator=generator, dtype=th.float64)
    proposals, log_density = smoothed(pool, noise, 0.3)
    widths = (proposals - pool) / noise
    kernels = th.distributions.Normal(pool.unsqueeze(1), widths.unsqueeze(1))
    th.testing.assert_close(log_density, kernels.log_prob(proposals.unsqueeze(2)).exp().mean(2).log())
    assert widths[:, :500].median() < 0.01 < 0.1 < widths[:, 500:].median(), "either half keeps its width"
    # E_q[p / q] = 1 for any density p
    weights = (th.distributions.Normal(0.5, 1.0).log_prob(proposals) - log_density).exp()
    assert weights.mean().item() == pytest.approx(1.0, abs=0.1)


def test_the_greedy_action_of_the_published_settings_is_aligned_with_its_energy():
    """2^14 samples, three rounds, noise of .33 halved; the weights of one coordinate are those of a quadratic."""
    optimum = th.tensor([0.37])
    target = Target(lambda x: 20.0 * (x - optimum).square().sum(-1))
    start = 2.0 * th.rand(1, 2**14, 1, generator=th.Generator().manual_seed(0)) - 1.0
    refiner = AutoregressiveDerivativeFree(noise_std=0.33, noise_decay=0.5)
    state = refine(refiner, start, target, n_steps=3, generator=th.Generator().manual_seed(1))
    assert (select(state, deterministic=True) - optimum).abs().max() < 1e-3
    th.testing.assert_close(state.energies, target.energy(state.particles))


def test_many_numbers_share_kernels_and_their_density_is_still_that_of_the_proposals():
    """Of 5000, of which 1024 is no divisor: against a histogram of the proposals, and importance sampling."""
    generator = th.Generator().manual_seed(0)
    pool = th.cat([0.05 * th.randn(4, 2500, generator=generator), 2.0 * th.rand(4, 2500, generator=generator) - 1.0], dim=1)
    noise = th.randn(4, 5000, generator=generator, dtype=th.float64)
    proposals, log_density = smoothed(pool.double(), noise, 0.3)
    for low, high in ((-0.8, -0.6), (-0.05, 0.05), (0.2, 0.4)):
        inside = (proposals > low) & (proposals < high)
        width = (log_density.neg().exp() * inside).mean().item()  # E_q[1 / q] over an interval is its length
        assert width == pytest.approx(high - low, rel=0.05)
    weights = (th.distributions.Normal(0.2, 0.3).log_prob(proposals) - log_density).exp()
    assert weights.mean().item() == pytest.approx(1.0, abs=0.02)
    moved = smoothed(pool.double().flip(1), noise.flip(1), 0.3)[0]
    th.testing.assert_close(moved.flip(1), proposals)


def test_who_has_no_neighbours_is_smoothed_by_the_noise_s_width():
    noise = th.randn(2, 5, generator=th.Generator().manual_seed(0))
    for pool in (th.full((2, 5), 0.7), th.full((2, 1), 0.7)):
        proposals, log_density = smoothed(pool, noise[:, : pool.shape[1]], 0.3)
        th.testing.assert_close(proposals, pool + 0.3 * noise[:, : pool.shape[1]])
        th.testing.assert_close(log_density, th.distributions.Normal(pool, 0.3).log_prob(proposals))


def test_of_one_coordinate_no_prefix_is_asked():
    energy = modes_energy([[0.6], [-0.5]], 0.25, [1.0, 2.0])
    state = refine(AutoregressiveDerivativeFree(), uniform((200, 500, 1)), Target(squashed(energy)), n_steps=1)
    assert total_variation(th.tanh(state.particles).flatten(0, 1), energy, 40) < 0.05


@pytest.mark.parametrize("shape", [(2, 5, 2), (2, 5, 1, 3)])
def test_of_more_coordinates_prefix_energies_are_asked_for(shape):
    message = (
        rf"autoregressive_derivative_free needs Target\.prefix_energy, .* of {math.prod(shape[2:])} coordinates, got None"
    )
    with pytest.raises(ValueError, match=message):
        refine(AutoregressiveDerivativeFree(), th.zeros(shape), Target(lambda x: x.flatten(2).sum(-1)), n_steps=1)


def test_a_prefix_energy_of_the_wrong_shape_is_refused():
    target = Target(no_idea, prefix_energy=lambda prefix: prefix)
    with pytest.raises(ValueError, match=r"a prefix energy of \(2, 5\) particles must be \(B, N\), got \(2, 5, 1\)"):
        refine(AutoregressiveDerivativeFree(), th.zeros(2, 5, 2), target, n_steps=1)


def test_what_is_forbidden_is_never_drawn_and_what_is_no_energy_fails():
    def wall(value):
        return lambda x: th.where(x[..., 0] > 0.0, value, x.square().sum(-1))

    start = uniform((5, 200, 2))
    for target in (Target(wall(math.inf), prefix_energy=no_idea), Target(wall(0.0), prefix_energy=wall(math.inf))):
        assert (refine(AutoregressiveDerivativeFree(), start, target, n_steps=2).particles[..., 0] <= 0.0).all()
    for target in (Target(wall(math.nan), prefix_energy=no_idea), Target(no_idea, prefix_energy=wall(math.nan))):
        with pytest.raises(FloatingPointError, match="non-finite energy"):
            refine(AutoregressiveDerivativeFree(), start, target, n_steps=2)
