"""Mixture densities against torch's own distributions, and what a network learns of a law with two modes."""

import pytest
import torch as th
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from sb3_energy.networks import GaussianMixture, MixtureDensityNetwork


def mixture(b=3, k=4, a=2, seed=0):
    rng = th.Generator().manual_seed(seed)
    logits, means, stds = (
        th.randn(b, k, generator=rng),
        th.randn(b, k, a, generator=rng),
        th.rand(b, k, a, generator=rng) + 0.2,
    )
    return GaussianMixture(logits.log_softmax(1), means, stds), logits


def test_the_density_is_torchs():
    found, logits = mixture()
    theirs = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(found.means, found.stds), 1))
    x = th.randn(3, 5, 2)
    assert th.allclose(found.log_prob(x), theirs.log_prob(x.transpose(0, 1)).T, atol=1e-5)


def test_draws_have_its_moments():
    found, logits = mixture(b=2)
    theirs = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(found.means, found.stds), 1))
    draws = found.sample(200_000, th.Generator().manual_seed(0))
    assert draws.shape == (2, 200_000, 2) and not draws.requires_grad
    assert th.allclose(draws.mean(1), theirs.mean, atol=0.02) and th.allclose(draws.var(1), theirs.variance, rtol=0.03)
    assert th.equal(found.sample(5, th.Generator().manual_seed(1)), found.sample(5, th.Generator().manual_seed(1)))


def test_the_mode_is_where_the_density_is_highest_and_not_the_heaviest_component():
    means, stds = th.tensor([[[0.0], [2.0], [2.1]]]), th.tensor([[[1.0], [0.1], [0.1]]])
    found = GaussianMixture(th.tensor([[0.5, 0.25, 0.25]]).log(), means, stds)
    grid = th.linspace(-4, 4, 8001).reshape(1, -1, 1)
    best = grid[0, found.log_prob(grid)[0].argmax(), 0]
    assert found.mode().item() in (2.0, pytest.approx(2.1)) and abs(found.mode().item() - best.item()) < 0.06


@pytest.mark.parametrize("backbone", ["plain", "layer_norm"])
def test_a_network_learns_both_modes_and_their_shares(backbone):
    th.manual_seed(0)
    network = MixtureDensityNetwork(1, 1, [32], th.nn.Tanh, n_components=4, backbone=backbone)
    optimizer = th.optim.Adam(network.parameters(), 1e-2)
    for _ in range(400):
        x = th.rand(256, 1)
        right = th.rand(256, 1) < 0.3  # 0.5 + x / 5 with probability 0.3, else -0.5
        y = th.where(right, 0.5 + x / 5.0, -0.5) + 0.05 * th.randn(256, 1)
        loss = -network(x).log_prob(y.unsqueeze(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    draws = network(th.tensor([[0.5]])).sample(4000)
    assert abs((draws > 0.0).float().mean().item() - 0.3) < 0.06
    assert abs(draws[draws > 0.0].mean().item() - 0.6) < 0.03 and abs(draws[draws < 0.0].std().item() - 0.05) < 0.02
    entropy = -(0.3 * th.log(th.tensor(0.3)) + 0.7 * th.log(th.tensor(0.7))) + 0.5 * th.log(
        2 * th.pi * th.e * th.tensor(0.05**2)
    )
    assert abs(loss.item() - entropy.item()) < 0.15, "near the entropy of the data, which no model beats"
