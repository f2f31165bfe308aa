"""How steep an energy is, and descents that end at the conditional mean."""

import pytest
import torch as th
from torch import nn

from sb3_energy.losses import descent_loss, gradient_penalty
from sb3_energy.refiners import Langevin, refine
from sb3_energy.types import Target

DOUBLE = th.float64


def test_the_penalty_counts_the_largest_slope_beyond_the_margin():
    slopes = th.tensor([[0.5, -0.9], [0.2, -3.0], [2.0, 1.5], [0.0, 0.0]], dtype=DOUBLE)
    points = th.zeros(1, 4, 2, dtype=DOUBLE)
    found = gradient_penalty(lambda x: (x * slopes).sum(-1), points, margin=1.0)
    th.testing.assert_close(found.detach(), th.tensor([(0.0 + 4.0 + 1.0 + 0.0) / 4.0], dtype=DOUBLE))
    th.testing.assert_close(
        gradient_penalty(lambda x: (x * slopes).sum(-1), points, margin=0.0).detach(),
        th.tensor([(0.81 + 9.0 + 4.0) / 4.0], dtype=DOUBLE),
    )


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_training_by_it_flattens_an_energy_to_the_margin(activation):
    th.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 32), activation(), nn.Linear(32, 1))
    with th.no_grad():
        network[-1].weight *= 20.0
    points = 2.0 * th.rand(1, 200, 2) - 1.0
    optimizer = th.optim.Adam(network.parameters(), 1e-2)

    def penalty():
        return gradient_penalty(lambda x: network(x).squeeze(-1), points, margin=0.5).mean()

    before = penalty().item()
    for _ in range(500):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    assert before > 1.0 and penalty().item() < 1e-2 * before
    # the last bias has no slope
    assert network[-1].bias.grad is None or not network[-1].bias.grad.any()


def test_the_penalty_of_a_plan_is_over_all_of_its_numbers():
    points = th.zeros(2, 3, 4, 2, dtype=DOUBLE)
    slopes = th.zeros(4, 2, dtype=DOUBLE)
    slopes[2, 1] = 3.0
    found = gradient_penalty(lambda x: (x * slopes).sum((-1, -2)), points)
    th.testing.assert_close(found.detach(), th.full((2,), 4.0, dtype=DOUBLE))


def test_the_loss_is_the_squared_distance_of_each_end():
    ends = th.tensor([[[0.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]]])
    actions = th.tensor([[1.0, 1.0], [0.0, 0.0]])
    th.testing.assert_close(descent_loss(ends, actions), th.tensor([1.0, 2.0]))
    plans = th.stack([ends, ends], dim=2)
    th.testing.assert_close(descent_loss(plans, th.stack([actions, actions], dim=1)), th.tensor([2.0, 4.0]))


def test_descents_end_at_the_conditional_mean_where_there_are_two_right_actions():
    """Half of the examples are at ``+h(x)``, half at ``-h(x)`` with ``h = .3 + .3 x``, a quarter of them moved by .2."""
    generator = th.Generator().manual_seed(0)
    th.manual_seed(0)
    x = th.rand(256, 1, generator=generator)
    signs = th.where(th.rand(256, 1, generator=generator) < 0.75, 1.0, -1.0)
    actions = signs * (0.3 + 0.3 * x)
    network = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))
    optimizer = th.optim.Adam(network.parameters(), 3e-3)
    refiner = Langevin(0.5, noise_scale=0.0, differentiable=True)

    def ends(x, n_starts):
        def energy(a):
            return network(th.cat([x.unsqueeze(1).expand(-1, a.shape[1], -1), a], dim=-1)).squeeze(-1)

        starts = 2.0 * th.rand(len(x), n_starts, 1, generator=generator) - 1.0
        return refine(refiner, starts, Target(energy), n_steps=6).particles

    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = descent_loss(ends(x, 2), actions).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    where = th.linspace(0.1, 0.9, 9).unsqueeze(1)
    with th.no_grad():
        found = ends(where, 20)
    mean = 0.5 * (0.3 + 0.3 * where)  # .75 h - .25 h
    assert found.std(dim=1).max() < 0.1, "the start does not matter"
    th.testing.assert_close(found.mean(dim=1), mean, atol=0.1, rtol=0.0)
    assert ((found.mean(dim=1) - (0.3 + 0.3 * where)).abs() > 0.1).all(), "neither of the right actions"
    # what is left is the variance of the examples, .75 h²
    assert losses[-1] == pytest.approx(0.75 * (0.3 + 0.3 * x).square().mean().item(), rel=0.15)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: gradient_penalty(lambda x: x.sum(-1), th.zeros(1, 1, 1), -1.0), "margin must be at least 0, got -1.0"),
        (
            lambda: descent_loss(th.zeros(2, 3, 4), th.zeros(2, 3)),
            r"ends must be \(B, N, \*E\) and actions \(B, \*E\), got \(2, 3, 4\) and \(2, 3\)",
        ),
        (lambda: descent_loss(th.zeros(2, 3), th.zeros(2)), "ends must be"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
