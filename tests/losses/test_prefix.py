"""How energies of prefixes are learned."""

import math

import pytest
import torch as th

from sb3_energy.losses import prefix_loss, soft_marginal

B, M, K, D = 2, 5, 7, 3


def numbers(*shape, seed=0):
    return th.randn(shape, dtype=th.float64, generator=th.Generator().manual_seed(seed))


def normal(x):
    return th.distributions.Normal(th.zeros((), dtype=x.dtype), 1.0).log_prob(x)


def energy(x):
    """Of a chain, each coordinate beside the one before: its marginals are its own prefixes, up to constants."""
    return 0.5 * x[..., 0].square() + 0.5 * (x[..., 1:] - x[..., :-1]).square().sum(-1)


def test_the_soft_marginal_is_the_logarithm_of_a_mean():
    energies, log_prob = numbers(B, M, K), numbers(B, M, K, seed=1)
    expected = -(th.exp(-energies) / log_prob.exp()).mean(-1).log()
    th.testing.assert_close(soft_marginal(energies, log_prob), expected)
    assert soft_marginal(energies + 500.0, log_prob).isfinite().all()
    forbidden = th.full((1, K), math.inf)
    assert soft_marginal(forbidden, th.zeros(1, K)).isposinf().all()


def test_the_soft_marginal_is_the_integral_s_and_lies_above_it_in_the_mean():
    x = 2.0 * numbers(100_000, 16)
    log_prob = normal(x / 2.0) - math.log(2.0)
    excess = soft_marginal(0.5 * x.square(), log_prob) + 0.5 * math.log(2.0 * math.pi)
    weights = (-0.5 * x.square() - log_prob).softmax(1)
    predicted = (weights.square().sum(1) - 1.0 / 16).mean() / 2.0  # (K / ess - 1) / (2 K)
    assert 0.01 < excess.mean() == pytest.approx(predicted.item(), rel=0.15)


def test_the_loss_is_huber_s_over_all_prefixes():
    points, proposals, log_prob = numbers(B, M, D), numbers(B, K, D, seed=1), numbers(B, K, D, seed=2)

    def prefix_energy(x):
        return 3.0 * x.sum(-1)

    expected = 0.0
    for b in range(B):
        for m in range(M):
            for j in range(1, D):
                total = 0.0
                for k in range(K):
                    x = th.cat([points[b, m, :j], proposals[b, k, j : j + 1]])
                    following = energy(x) if j + 1 == D else prefix_energy(x)
                    total += math.exp(-following - log_prob[b, k, j]) / K
                error = abs(prefix_energy(points[b, m, :j]).item() + math.log(total))
                expected += (0.5 * error**2 if error < 1.0 else error - 0.5) / (B * M)
    assert prefix_loss(energy, prefix_energy, points, proposals, log_prob).item() == pytest.approx(expected)


def test_the_true_marginals_are_left_where_they_are():
    points, proposals = numbers(B, M, D), 2.0 * numbers(B, 4000, D, seed=1)
    log_prob = normal(proposals / 2.0) - math.log(2.0)
    offset = th.zeros(D, dtype=th.float64, requires_grad=True)

    def prefix_energy(x):  # the constants are those of the coordinates that were integrated out
        return energy(x) - 0.5 * (D - x.shape[-1]) * math.log(2.0 * math.pi) + offset[x.shape[-1]]

    loss = prefix_loss(energy, prefix_energy, points, proposals, log_prob)
    loss.backward()
    assert loss < 0.01 and offset.grad.abs().max() < 0.1
    assert prefix_loss(energy, lambda x: 2.0 * prefix_energy(x), points, proposals, log_prob) > 0.1


def test_what_is_learned_toward_is_held_fixed():
    scale, whole = th.ones(D, dtype=th.float64, requires_grad=True), th.ones((), dtype=th.float64, requires_grad=True)

    def prefix_energy(x):
        return scale[x.shape[-1]] * x.square().sum(-1)

    args = numbers(B, M, D), numbers(B, K, D, seed=1), numbers(B, K, D, seed=2)
    prefix_loss(lambda x: whole * energy(x), prefix_energy, *args).backward()
    assert whole.grad is None and scale.grad[1] != 0.0 and scale.grad[2] != 0.0
    only_last = scale.grad[2].item()
    scale.grad = None
    prefix_loss(energy, lambda x: prefix_energy(x) if x.shape[-1] == 2 else prefix_energy(x).detach(), *args).backward()
    assert scale.grad[2].item() == pytest.approx(only_last), "nothing came to it by the target of the one before"


@pytest.mark.parametrize(
    "points, proposals, log_prob, message",
    [
        ((B, D), (B, K, D), (B, K, D), r"points must be \(B, M, D\), .* got \(2, 3\)"),
        ((B, M, D), (B, K, D - 1), (B, K, D - 1), r"got \(2, 5, 3\), \(2, 7, 2\) and \(2, 7, 2\)"),
        ((B, M, D), (B + 1, K, D), (B + 1, K, D), r"\(3, 7, 3\)"),
        ((B, M, D), (B, K, D), (B, K), r"and \(2, 7\)"),
        ((B, M, 1), (B, K, 1), (B, K, 1), r"points must have at least 2 coordinates .* got \(2, 5, 1\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(points, proposals, log_prob, message):
    with pytest.raises(ValueError, match=message):
        prefix_loss(energy, energy, numbers(*points), numbers(*proposals), numbers(*log_prob))
