"""The projection of C51 against loops over its definition, and the cross-entropy against its own."""

import numpy as np
import pytest
import torch as th

from sb3_energy.losses import categorical_loss, categorical_projection


def looped(values, probabilities, support):
    """Bellemare, Dabney and Munos 2017, equation 7, as it is written: each bin from all values."""
    width = (support[-1] - support[0]) / (len(support) - 1)
    found = np.zeros((len(values), len(support)))
    for b in range(len(values)):
        for i, center in enumerate(support):
            for value, probability in zip(values[b], probabilities[b], strict=True):
                clipped = min(max(value, support[0]), support[-1])
                found[b, i] += min(max(1.0 - abs(clipped - center) / width, 0.0), 1.0) * probability
    return found


@pytest.mark.parametrize("n_bins, m", [(2, 3), (11, 11), (101, 7)])
@pytest.mark.parametrize("spread", [0.5, 3.0, 30.0])
def test_projection(n_bins, m, spread):
    rng = np.random.default_rng(n_bins)
    support = np.linspace(-2.0, 3.0, n_bins)
    values, weights = spread * rng.standard_normal((5, m)), rng.random((5, m))
    values[0, 0], values[1, 1], values[2, 0] = support[0], support[-1], support[n_bins // 2]
    probabilities = weights / weights.sum(1, keepdims=True)
    found = categorical_projection(*map(th.as_tensor, (values, probabilities, support))).numpy()
    np.testing.assert_allclose(found, looped(values, probabilities, support), atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1.0)
    inside = np.clip(values, support[0], support[-1])
    np.testing.assert_allclose(found @ support, (inside * probabilities).sum(1), atol=1e-12)


def test_the_support_itself_stays():
    support, probabilities = th.linspace(-5.0, 5.0, 101), th.softmax(th.randn(4, 101), dim=1)
    found = categorical_projection(support.expand(4, -1), probabilities, support)
    th.testing.assert_close(found, probabilities, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden_or_is_an_end(bad):
    found = categorical_projection(th.tensor([[bad, 0.0]]), th.tensor([[0.5, 0.5]]), th.linspace(-1.0, 1.0, 3))
    assert found.isnan().any() if bad != bad else th.equal(found, th.tensor([[0.0, 0.5, 0.5]]))


def test_loss_is_the_mean_cross_entropy():
    logits, targets = th.randn(6, 2, 9, dtype=th.float64, requires_grad=True), th.softmax(th.randn(6, 9).double(), dim=1)
    loss = categorical_loss(logits, targets)
    expected = 0.0
    for b in range(6):
        for c in range(2):
            p = np.exp(logits[b, c].detach().numpy())
            expected -= (targets[b].numpy() * np.log(p / p.sum())).sum() / 12
    assert loss.item() == pytest.approx(expected)
    (gradient,) = th.autograd.grad(loss, logits)
    th.testing.assert_close(gradient, (th.softmax(logits, -1) - targets.unsqueeze(1)).detach() / 12)
