"""Implicit behavioral cloning's derivative-free optimiser: its rounds, its limits, its bias."""

import math

import pytest
import torch as th

from sb3_energy.energies import squashed
from sb3_energy.energies.transforms import log_tanh_jacobian
from sb3_energy.refiners import DerivativeFree, refine, select
from sb3_energy.stats import systematic_resample
from sb3_energy.types import Target
from tests.laws import modes_energy, total_variation

TWO_D = modes_energy([[0.6, 0.6], [-0.6, 0.6], [0.6, -0.6], [-0.6, -0.6]], 0.3, [1.0, 2.0, 2.0, 4.0])


def uniform(shape, seed=0):
    box = 2.0 * th.rand(shape, generator=th.Generator().manual_seed(seed)) - 1.0
    return th.atanh(box.clamp(-1.0 + 1e-6, 1.0 - 1e-6))


def draws(refiner, n_steps):
    particles = uniform((200, 500, 2))
    target = Target(squashed(TWO_D), proposal_log_prob=log_tanh_jacobian(particles) - 2 * math.log(2.0))
    state = refine(refiner, particles, target, n_steps=n_steps, generator=th.Generator().manual_seed(1))
    return th.tanh(state.particles).reshape(-1, 2)


def test_one_round_is_importance_resampling_and_more_are_sharper(record_property):
    assert total_variation(draws(DerivativeFree(), 1), TWO_D, 20) < 0.05
    bias = total_variation(draws(DerivativeFree(), 3), TWO_D, 20)
    record_property("total_variation", bias)
    assert not DerivativeFree.exact and bias > 0.05
    energies = [TWO_D(draws(DerivativeFree(0.1), n).unsqueeze(0)).mean() for n in (1, 2, 4)]
    assert energies[0] > energies[1] > energies[2]


@pytest.mark.parametrize("refiner", [DerivativeFree(), DerivativeFree().deterministic()])
def test_the_optimum_of_a_quadratic_is_found_without_gradients(refiner):
    optimum = th.tensor([0.4, -0.7])
    target = Target(lambda x: 200.0 * (x.detach() - optimum).square().sum(-1))
    start = th.randn(20, 64, 2, generator=th.Generator().manual_seed(0))
    ends = refine(refiner, start, target, n_steps=6, generator=th.Generator().manual_seed(1))
    assert ends.energies.amin(1).mean() < 0.1 * target.energy(start).amin(1).mean()


@pytest.mark.parametrize("steepness", [1.0, 20.0, 200.0])
@pytest.mark.parametrize("refiner", [DerivativeFree(), DerivativeFree().deterministic()])
def test_the_greedy_action_of_the_published_settings_is_aligned_with_its_energy(refiner, steepness):
    """
    2^14 samples, three evaluations, noise of .33 halved. The energies that choose are those of the particles that are chosen
    from: with those of the set before the last resampling the error would be some hundredths.
    """
    optimum = th.tensor([0.37])
    target = Target(lambda x: steepness * (x - optimum).square().sum(-1))
    start = 2.0 * th.rand(8, 2**14, 1, generator=th.Generator().manual_seed(0)) - 1.0
    state = refine(refiner, start, target, n_steps=3, generator=th.Generator().manual_seed(1))
    assert (select(state, deterministic=True) - optimum).abs().max() < 1e-3
    th.testing.assert_close(state.energies, target.energy(state.particles))
    shuffled = state._replace(energies=state.energies.roll(1, dims=1))
    assert (select(shuffled, deterministic=True) - optimum).abs().mean() > 1e-2


def test_the_noise_shrinks_from_round_to_round():
    target, infos = Target(lambda x: 0.0 * x.sum(-1)), []
    start = th.zeros(1, 20_000, 1)
    refine(DerivativeFree(0.4, 0.5), start, target, n_steps=1, generator=th.Generator().manual_seed(0), infos=infos)
    assert infos[0].displacement.max() == 0.0, "the last round only resamples"
    # all weights are equal, so what is resampled has the variance of what was there
    moved = refine(DerivativeFree(0.4, 0.5), start, target, n_steps=3, generator=th.Generator().manual_seed(0)).particles
    assert moved.var().item() == pytest.approx(0.4**2 + 0.2**2, rel=0.03)


def test_without_a_density_the_weights_are_the_energy_s():
    particles = th.tensor([0.0, 1.0]).repeat(1000).reshape(1, 2000, 1)
    energy = Target(lambda x: x.sum(-1) * math.log(3.0))
    known = energy._replace(proposal_log_prob=-particles[..., 0] * math.log(3.0))
    plain = refine(DerivativeFree(), particles, energy, n_steps=1, generator=th.Generator().manual_seed(0)).particles.mean()
    corrected = refine(DerivativeFree(), particles, known, n_steps=1, generator=th.Generator().manual_seed(0)).particles.mean()
    assert plain.item() == pytest.approx(0.25, abs=0.03) and corrected.item() == pytest.approx(0.5, abs=0.03)


def test_systematic_resampling_takes_each_particle_as_often_as_it_weighs():
    weights = th.tensor([[0.5, 0.125, 0.0, 0.375], [0.0, 0.0, 1.0, 0.0]])
    particles = th.arange(8.0).reshape(2, 4, 1)
    taken, index = systematic_resample(particles, weights.log(), 8)
    assert index.tolist() == [[0, 0, 0, 0, 1, 3, 3, 3], [2] * 8]
    assert th.equal(taken[..., 0], particles[..., 0].gather(1, index))
    many, _ = systematic_resample(th.zeros(1, 1000, 1), th.randn(1, 1000, generator=th.Generator().manual_seed(0)), 1000)
    assert many.shape == (1, 1000, 1)
    with pytest.raises(FloatingPointError, match="non-finite energy"):
        systematic_resample(particles, weights.log() * math.nan, 4)
