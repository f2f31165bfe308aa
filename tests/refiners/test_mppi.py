"""MPPI's rounds against their formulas in numpy: elites, weights, the fitted Gaussian and its bounds."""

import numpy as np
import pytest
import torch as th

from sb3_energy.refiners import MPPI
from sb3_energy.stats import normal_quantiles
from sb3_energy.types import Target, Tick

ENERGY = Target(lambda x: (x - 0.3).square().sum(-1))


def candidates(n=16):
    return th.randn(3, n, 2, dtype=th.float64, generator=th.Generator().manual_seed(0))


def fitted(x, n_elites, temperature, low, high):
    """Mean and standard deviation of the elites of each observation, one after the other."""
    found = []
    for particles in x.numpy():
        energies = ((particles - 0.3) ** 2).sum(-1)
        best = np.argsort(energies)[:n_elites]
        weights = np.exp(-(energies[best] - energies[best].min()) / temperature)
        weights /= weights.sum()
        mean = weights @ particles[best]
        std = np.sqrt(weights @ (particles[best] - mean) ** 2)
        found.append((mean, std.clip(low, high), 1.0 / (weights**2).sum()))
    return [th.as_tensor(np.array(part)) for part in zip(*found, strict=True)]


@pytest.mark.parametrize(
    ("n", "kwargs", "n_elites"),
    [
        (16, dict(n_elites=3), 3),
        (16, dict(n_elites=1), 1),
        (16, dict(n_elites=15, temperature=0.3), 15),
        (16, dict(n_elites=16), 16),
        (16, dict(n_elites=40), 16),
        (16, dict(), 4),
        (80, dict(), 10),
        (16, dict(n_elites=6, min_std=0.4), 6),
        (16, dict(n_elites=6, max_std=0.2), 6),
    ],
)
def test_a_round_fits_the_elites(n, kwargs, n_elites):
    refiner, x = MPPI(quasi_random=True, **kwargs), candidates(n)
    state, info = refiner.step(refiner.init(x, ENERGY), ENERGY, Tick(0, 2))
    mean, std, size = fitted(x, n_elites, refiner.temperature, refiner.min_std, refiner.max_std)
    th.testing.assert_close(state.extra.mean.squeeze(1), mean)
    th.testing.assert_close(state.extra.std.squeeze(1), std)
    th.testing.assert_close(info.effective_sample_size, size)
    quantiles = normal_quantiles(n, x[:, 0])
    th.testing.assert_close(state.particles, mean.unsqueeze(1) + std.unsqueeze(1) * quantiles)
    th.testing.assert_close(state.energies, ENERGY.energy(state.particles))


@pytest.mark.parametrize("tick", [Tick(0, 2), Tick(1, 2)])
def test_only_the_last_round_resamples(tick):
    """By the weights of the new candidates: what comes out is as good as the best of them, in few places."""
    refiner, x = MPPI(n_elites=2, temperature=1e-3), candidates(64)
    state, _ = refiner.step(refiner.init(x, ENERGY), ENERGY, tick, th.Generator().manual_seed(0))
    th.testing.assert_close(state.energies, ENERGY.energy(state.particles))
    places = [len(particles.unique(dim=0)) for particles in state.particles]
    assert max(places) <= 2 if tick.is_last else min(places) == 64
