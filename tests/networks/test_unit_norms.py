"""Lengths of parameters after a projection, against their formulas."""

import copy

import pytest
import torch as th
from torch import nn

from sb3_energy.networks import BatchNorm, initialize_head, make_backbone, project_to_unit_norms

WIDTH = 12


def moved():
    trunk, _ = make_backbone("flash", 5, [WIDTH, WIDTH], nn.ReLU)
    network = nn.Sequential(*trunk, nn.Linear(WIDTH, 3))
    for parameter in network.parameters():
        parameter.data += 0.3 * th.randn_like(parameter)
    return network


def test_lengths():
    network = moved()
    before = copy.deepcopy(network)
    project_to_unit_norms(network)
    n_norms = 0
    for (name, layer), old in zip(network.named_modules(), before.modules(), strict=True):
        if isinstance(layer, nn.Linear):
            assert th.allclose(layer.weight.norm(dim=1), th.ones(layer.out_features)), name
            directions = old.weight / old.weight.norm(dim=1, keepdim=True)
            assert th.allclose(layer.weight, directions, atol=1e-6), "rows keep their directions"
            assert layer.bias is None or th.equal(layer.bias, old.bias), "a head's bias is free"
        if isinstance(layer, (BatchNorm, nn.RMSNorm)):
            n_norms += 1
            together = th.cat([parameter.detach() for parameter in layer.parameters()])
            assert together.norm().item() == pytest.approx(len(layer.weight) ** 0.5, rel=1e-5), name
            ratios = layer.weight / old.weight
            assert th.allclose(ratios, ratios[0].expand_as(ratios), rtol=1e-4), "one factor"
            if isinstance(layer, BatchNorm):
                assert th.allclose(layer.bias, ratios[0] * old.bias, atol=1e-5), "scale and bias by the same factor"
    widths = {len(layer.weight) for layer in network.modules() if isinstance(layer, BatchNorm)}
    assert n_norms == 6 and widths == {5, WIDTH, 4 * WIDTH}, "each by its own width"


def test_twice_is_once():
    network = moved()
    project_to_unit_norms(network)
    once = copy.deepcopy(network.state_dict())
    project_to_unit_norms(network)
    assert all(th.allclose(value, once[name], atol=1e-6) for name, value in network.state_dict().items())


def test_frozen_layers_and_other_types_stay():
    class Own(nn.Linear):
        pass

    frozen, norm, own = nn.Linear(4, 4), BatchNorm(4), Own(4, 4)
    frozen.weight.requires_grad_(False)
    norm.weight.requires_grad_(False)
    norm.bias.data.fill_(3.0)
    network = nn.Sequential(frozen, norm, own, nn.LayerNorm(4))
    before = copy.deepcopy(network.state_dict())
    project_to_unit_norms(network)
    assert all(th.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_row_of_zeros_stays_finite():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    project_to_unit_norms(nn.Sequential(layer))
    assert th.equal(layer.weight, th.zeros(2, 3))


def test_heads():
    head = nn.Linear(WIDTH, 5)
    initialize_head("flash", head)
    assert th.allclose(head.weight @ head.weight.T, th.eye(5), atol=1e-5) and (head.bias == 0).all()
    before = copy.deepcopy(head.state_dict())
    initialize_head("bro", head)
    assert th.equal(head.weight, before["weight"])
