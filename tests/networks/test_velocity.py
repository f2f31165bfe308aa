"""Networks of particles and times."""

import math
import pickle

import pytest
import torch as th
from torch import nn

from sb3_energy.networks import FieldNetwork, VelocityNetwork
from tests.batches import ALONE

F, A = 5, 3


def inputs(batch=2, n=4, dimension=A):
    generator = th.Generator().manual_seed(0)
    x = 2.0 * th.randn((batch, n, dimension), generator=generator)
    t, r = th.rand((2, batch, n), generator=generator).sort(dim=0).values
    return th.randn((batch, F), generator=generator), x, t, r


def trained(network):
    """As if it had learned something: no parameter is zero."""
    th.manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def velocity(**kwargs):
    return VelocityNetwork(F, A, **dict(net_arch=[16, 16]) | kwargs)


@pytest.mark.parametrize("backbone", ALONE)
@pytest.mark.parametrize("two_times", [False, True])
@pytest.mark.parametrize("n_frequencies", [0, 4])
def test_it_stands_still_at_first(backbone, two_times, n_frequencies):
    features, x, t, r = inputs()
    network = velocity(backbone=backbone, two_times=two_times, n_frequencies=n_frequencies)
    found = network(features, x, t, r) if two_times else network(features, x, t)
    assert th.equal(found, th.zeros_like(x))


def test_it_learns_from_the_first_step():
    """Only the last layer's weights are zero: the loss has a gradient there, and after one step everywhere."""
    features, x, t, _ = inputs()
    network = velocity()
    optimizer = th.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (network(features, x, t) - 1.0).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad.abs().sum() > 0.0 for parameter in network.parameters())


def test_a_gated_one_is_nearly_still_and_goes_toward_a_place():
    features, x, t, _ = inputs()
    network = velocity(gated=True)
    th.testing.assert_close(network(features, x, t), -x / (1.0 + math.exp(4.0)))


def test_a_gated_step_stays_between_the_particle_and_the_place():
    features, x, t, _ = inputs(batch=8, n=50)
    network = trained(velocity(gated=True))
    place, _ = FieldNetwork.forward(network, features, x, t).chunk(2, dim=-1)
    moved = x + network(features, x, t)
    assert (moved >= th.minimum(x, place) - 1e-5).all() and (moved <= th.maximum(x, place) + 1e-5).all()
    assert (moved - x).abs().amax() > 0.1


@pytest.mark.parametrize("backbone", ALONE)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("batch, n, dimension", [(2, 4, 3), (1, 1, 1), (3, 1, 2)])
def test_shapes(backbone, gated, batch, n, dimension):
    features, x, t, r = inputs(batch, n, dimension)
    for two_times, times in ((False, (t,)), (True, (t, r))):
        network = trained(VelocityNetwork(F, dimension, [16, 16], backbone=backbone, two_times=two_times, gated=gated))
        assert network(features, x, *times).shape == x.shape
    assert FieldNetwork(F, dimension, 7, [8])(features, x, t).shape == (batch, n, 7)


@pytest.mark.parametrize("backbone", ALONE)
def test_particles_and_observations_do_not_meet(backbone):
    features, x, t, _ = inputs()
    network = trained(velocity(backbone=backbone)).eval()
    found = network(features, x, t)
    for b in range(2):
        for k in range(4):
            alone = network(features[b : b + 1], x[b : b + 1, k : k + 1], t[b : b + 1, k : k + 1])
            th.testing.assert_close(alone[0, 0], found[b, k], rtol=1e-4, atol=1e-5)


def test_it_asks_for_everything_it_is_given():
    features, x, t, r = inputs()
    network = trained(velocity(two_times=True))
    found = network(features, x, t, r)
    for changed in (
        (features + 0.1, x, t, r),
        (features, x + 0.1, t, r),
        (features, x, t - 0.1, r),
        (features, x, t, r + 0.1),
    ):
        assert ((network(*changed) - found).abs().amax(-1) > 1e-6).all()


def test_features_enter_once_for_all_particles():
    features, x, t, _ = inputs(n=100)
    network = trained(velocity())
    rows, linear = [], nn.functional.linear
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "linear", lambda i, w, b=None: rows.append(i.shape) or linear(i, w, b))
        found = network.bind(features)(x, t)
    assert rows[0] == (2, F) and found.shape == x.shape
    th.testing.assert_close(found, network(features, x, t))


def test_bound_ones_are_the_network_at_these_observations():
    features, x, t, r = inputs()
    one, two = trained(velocity()), trained(velocity(two_times=True))
    assert th.equal(one.bind(features)(x, t), one(features, x, t))
    assert th.equal(two.bind_average(features)(x, t, r), two(features, x, t, r))


def test_waves_are_those_of_the_action():
    """Of the network's inputs, by a first layer that picks one of them."""
    features, x, t, _ = inputs()
    network = FieldNetwork(F, A, 1, [], n_frequencies=2)
    picks = {F: x[..., 0], F + A: th.cos(math.pi / 2 * th.tanh(x[..., 0])), F + A + 1: th.cos(math.pi * th.tanh(x[..., 0]))}
    picks |= {F + 3 * A: th.sin(math.pi / 2 * th.tanh(x[..., 0])), F + 5 * A: t, F + 5 * A + 1: th.cos(math.pi * t)}
    for index, expected in picks.items():
        nn.init.zeros_(network.network[-1].weight)
        network.network[-1].weight.data[0, index] = 1.0
        th.testing.assert_close(network(features, x, t).squeeze(-1), expected)


def test_it_can_be_pickled():
    features, x, t, _ = inputs()
    network = trained(velocity(gated=True, n_frequencies=2))
    copy = pickle.loads(pickle.dumps(network))
    assert th.equal(copy(features, x, t), network(features, x, t))


ERRORS = [
    (dict(n_frequencies=-1), ValueError, "n_frequencies must be at least 0, got -1"),
    (dict(n_frequencies=2.0), TypeError, "n_frequencies must be an integer, got 2.0"),
    (dict(n_frequencies=True), TypeError, "n_frequencies must be an integer, got True"),
    (dict(gated=1), TypeError, "gated must be True or False, got 1"),
    (dict(backbone="resnet"), ValueError, "backbone must be one of .*, got 'resnet'"),
]


@pytest.mark.parametrize("kwargs, error, match", ERRORS, ids=str)
def test_bad_arguments_are_refused(kwargs, error, match):
    with pytest.raises(error, match=match):
        velocity(**kwargs)
