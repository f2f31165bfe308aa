"""Many actions through an ensemble at once, with gradients for the actions alone."""

from functools import partial

import pytest
import torch as th
from torch import nn

from sb3_energy.energies import aggregate_q_values, weighed_q_values
from sb3_energy.matmul import MatmulPrecision
from sb3_energy.networks import BACKBONES, BoundEnsemble, make_backbone
from sb3_energy.networks.by_hand import ensembles
from tests.batches import with_statistics

F, A = 5, 3


def networks(backbone, n_outputs=1, n_critics=3, dtype=th.float64):
    th.manual_seed(0)
    trunks = [make_backbone(backbone, F + A, [16, 16], nn.SiLU) for _ in range(n_critics)]
    return [with_statistics(nn.Sequential(*trunk, nn.Linear(width, n_outputs)).to(dtype)) for trunk, width in trunks]


def by_autograd(nets, features, actions, aggregate):
    points = actions.clone().requires_grad_(True)
    inputs = th.cat([features.unsqueeze(1).expand(-1, actions.shape[1], -1), points], dim=-1)
    q_values = th.stack([net(inputs).mean(-1) for net in nets])
    values = aggregate_q_values(q_values, aggregate, 0.7)
    return values, th.autograd.grad(values.sum(), points)[0]


@pytest.mark.parametrize("aggregate", ["mean", "min", "lcb"])
@pytest.mark.parametrize("n_outputs", [1, 4])
@pytest.mark.parametrize("shape", [(100, 1), (7, 30), (1, 70), (3, 1), (1, 1)])
@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_values_and_gradients(monkeypatch, backbone, shape, n_outputs, aggregate):
    monkeypatch.setattr(ensembles, "ROWS_IN_CACHE", 32)  # several blocks, of observations and of their particles
    nets = networks(backbone, n_outputs)
    features, actions = th.randn(shape[0], F, dtype=th.float64), th.randn(*shape, A, dtype=th.float64)
    ensemble = BoundEnsemble(BoundEnsemble.stacks_of(nets), features)
    expected, expected_gradients = by_autograd(nets, features, actions, aggregate)
    th.testing.assert_close(aggregate_q_values(ensemble.values(actions).mean(-1), aggregate, 0.7), expected)
    weigh = partial(weighed_q_values, aggregate=aggregate, coefficient=0.7)
    for sparse in {False, aggregate == "min"}:
        values, gradients = ensemble.value_and_gradient(actions, weigh, sparse)
        th.testing.assert_close(values, expected)
        th.testing.assert_close(gradients, expected_gradients, rtol=1e-9, atol=1e-12)
        assert not values.requires_grad and not gradients.requires_grad


@pytest.mark.parametrize("aggregate", ["mean", "min", "lcb"])
def test_in_32_bits_and_with_fast_products(aggregate):
    nets = networks("plain", dtype=th.float32)
    features, actions = th.randn(300, F), th.randn(300, 1, A)
    _, expected = by_autograd(nets, features, actions, aggregate)
    for precision in ("highest", "medium"):
        with MatmulPrecision(precision):
            ensemble = BoundEnsemble(BoundEnsemble.stacks_of(nets), features)
            weigh = partial(weighed_q_values, aggregate=aggregate, coefficient=0.7)
            _, gradients = ensemble.value_and_gradient(actions, weigh, aggregate == "min")
        assert (gradients - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_little_goes_back_through_members_that_are_not_the_lowest(monkeypatch):
    nets, shape = networks("plain", n_critics=8), (600, 1)
    features, actions = th.randn(shape[0], F, dtype=th.float64), th.randn(*shape, A, dtype=th.float64)
    ensemble, weigh = BoundEnsemble(BoundEnsemble.stacks_of(nets), features), partial(weighed_q_values, aggregate="min")
    rows, backward = [], ensembles._Member.backward

    def counted(member, dy, tape):
        rows.append(len(dy))
        return backward(member, dy, tape)

    monkeypatch.setattr(ensembles._Member, "backward", counted)
    gradients = [ensemble.value_and_gradient(actions, weigh, sparse)[1] for sparse in (True, False)]
    th.testing.assert_close(*gradients)
    assert sum(rows[8:]) == 8 * 600
    assert sum(rows[:8]) < 2 * 600 and all(n % ensembles.FEWEST_TO_GATHER == 0 or n == 600 for n in rows[:8])


@pytest.mark.parametrize("n_particles", [1, 4])
def test_the_first_call_and_all_others_agree(n_particles):
    nets, shape = networks("layer_norm"), (9, n_particles)
    features, actions = th.randn(9, F, dtype=th.float64), th.randn(*shape, A, dtype=th.float64)
    ensemble = BoundEnsemble(BoundEnsemble.stacks_of(nets), features)
    found = [ensemble.value_and_gradient(actions, partial(weighed_q_values, aggregate="mean")) for _ in range(3)]
    for again in found[1:]:
        th.testing.assert_close(again, found[0])
    th.testing.assert_close(ensemble.values(actions).mean(-1).mean(0), found[0][0])
    assert (ensemble._members is not None) and ensemble._was_asked == (n_particles == 1)


def test_unknown_members_have_no_stacks():
    odd = nn.Sequential(nn.Linear(F + A, 8), nn.Dropout(), nn.Linear(8, 1))
    assert BoundEnsemble.stacks_of([*networks("plain"), odd]) is None
    assert BoundEnsemble.stacks_of([nn.Sequential(nn.LayerNorm(F + A), nn.Linear(F + A, 1))]) is None


def test_no_particles():
    ensemble = BoundEnsemble(BoundEnsemble.stacks_of(networks("plain")), th.randn(4, F, dtype=th.float64))
    assert ensemble.values(th.zeros(4, 0, A, dtype=th.float64)).shape == (3, 4, 0, 1)
