"""Energies of prefixes: a network for each length, bound to features."""

import copy
import pickle

import pytest
import torch as th
from torch import nn

from sb3_energy.networks import PrefixEnergies, default_activation
from tests.batches import ALONE

B, N, F, D = 3, 4, 5, 4


def make(backbone="plain", event_dim=D, net_arch=(32, 32)):
    th.manual_seed(0)
    return PrefixEnergies(F, event_dim, list(net_arch), default_activation(backbone), backbone)


def inputs(length):
    generator = th.Generator().manual_seed(length)
    return th.randn(B, F, generator=generator), th.randn(B, N, length, generator=generator)


@pytest.mark.parametrize("backbone", ALONE)
@pytest.mark.parametrize("length", range(1, D))
def test_each_length_has_its_network(backbone, length):
    networks, (features, prefix) = make(backbone), inputs(length)
    energies = networks(features, prefix)
    repeated = th.cat([features.unsqueeze(1).expand(-1, N, -1), prefix], dim=2)
    th.testing.assert_close(energies, networks.networks[length - 1](repeated).squeeze(-1))
    energies.square().sum().backward()
    for place, network in enumerate(networks.networks):
        learns = [parameter.grad is not None and bool(parameter.grad.abs().sum() > 0) for parameter in network.parameters()]
        assert all(learns) if place == length - 1 else not any(learns)


def test_without_layers_it_is_linear():
    networks, (features, prefix) = make(net_arch=()), inputs(2)
    (layer,) = networks.networks[1]
    expected = features @ layer.weight[0, :F] + layer.bias
    th.testing.assert_close(networks(features, prefix), expected.unsqueeze(1) + prefix @ layer.weight[0, F:])


def test_what_is_bound_can_be_pickled_and_copied():
    networks, (features, prefix) = make(), inputs(2)
    bound = networks.bind(features)
    for twin in (bound, pickle.loads(pickle.dumps(bound)), copy.deepcopy(networks).bind(features)):
        assert th.equal(twin(prefix), networks(features, prefix))
    with th.no_grad():
        networks.networks[1][0].bias.add_(1.0)
    assert th.equal(bound(prefix), networks(features, prefix)), "it follows what is learned"


def test_one_coordinate_has_no_network():
    assert list(make(event_dim=1).parameters()) == []


@pytest.mark.parametrize("length", [0, D, D + 1])
def test_there_is_no_network_for_other_lengths(length):
    with pytest.raises(ValueError, match=rf"prefix must have shape \(B, N, j\) with 1 <= j < 4, got \(3, 4, {length}\)"):
        make()(*inputs(length))


def test_bad_arguments_are_refused_at_construction():
    with pytest.raises(ValueError, match="event_dim must be at least 1, got 0"):
        make(event_dim=0)
    with pytest.raises(ValueError, match="backbone must be one of"):
        PrefixEnergies(F, D, [32], nn.ReLU, "resnet")
    with pytest.raises(ValueError, match="net_arch of backbone 'simba'"):
        make("simba", net_arch=(32, 16))
