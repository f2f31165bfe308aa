"""The running average of parameters against its closed form."""

import copy

import pytest
import torch as th
from torch import nn

from sb3_energy.offline.averaging import update_average


def test_a_constant_is_approached_as_the_product_of_the_decays():
    network = nn.Linear(1, 1, bias=False).double()
    average = copy.deepcopy(network)
    with th.no_grad():
        average.weight.fill_(0.0)
        network.weight.fill_(1.0)
    left = 1.0
    for n in range(1, 60):
        update_average(average, network, 0.7, n)
        left *= min(0.7, n / (10 + n))
        assert average.weight.item() == pytest.approx(1.0 - left, abs=1e-12)
    assert 23 / 33 < 0.7 < 24 / 34, "both the young average and the constant decay were tested"


def test_a_straight_line_is_followed_at_the_distance_of_the_decay():
    network, decay = nn.Linear(1, 1, bias=False).double(), 0.9
    average = copy.deepcopy(network)
    for n in range(1, 600):
        with th.no_grad():
            network.weight.fill_(float(n))
        update_average(average, network, decay, n)
    # average = (1 - d) Σ d^k (n - k) = n - d / (1 - d)
    assert network.weight.item() - average.weight.item() == pytest.approx(decay / (1.0 - decay), abs=1e-9)


def test_buffers_are_copied():
    network = nn.BatchNorm1d(2)
    average = copy.deepcopy(network)
    network(th.randn(8, 2))
    update_average(average, network, 0.9, 1)
    assert th.equal(average.running_mean, network.running_mean) and average.num_batches_tracked == 1
