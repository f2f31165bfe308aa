"""Batch normalisation of the last axis, and which statistics it uses."""

import copy

import pytest
import torch as th
from torch import nn

from sb3_energy.networks import BatchNorm, batch_norms, batch_statistics, make_backbone, running_statistics


def test_it_is_torchs_on_rows_and_on_particles():
    ours, theirs, x = BatchNorm(5), nn.BatchNorm1d(5, momentum=0.01), 3.0 * th.randn(6, 7, 5) + 1.0
    for _ in range(3):
        th.testing.assert_close(ours(x), theirs(x.reshape(-1, 5)).reshape(x.shape))
        th.testing.assert_close(ours(x[:, 0]), theirs(x[:, 0]))
    assert th.equal(ours.running_mean, theirs.running_mean) and th.equal(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    th.testing.assert_close(ours(x), theirs(x.reshape(-1, 5)).reshape(x.shape))


def test_running_statistics_are_averages_of_the_batches():
    norm, mean, var = BatchNorm(3), th.zeros(3), th.ones(3)
    for _ in range(20):
        x = 2.0 * th.randn(50, 3) + 1.0
        norm(x)
        mean, var = 0.99 * mean + 0.01 * x.mean(0), 0.99 * var + 0.01 * x.var(0)
    th.testing.assert_close(norm.running_mean, mean)
    th.testing.assert_close(norm.running_var, var)


def test_a_single_row_has_no_variance():
    with pytest.raises(ValueError, match="more than 1 value"):
        BatchNorm(3)(th.randn(1, 3))


def network():
    trunk, _ = make_backbone("flash", 4, [8], nn.ReLU)
    return nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), *trunk)


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_those_of_before_afterwards(training):
    net, x = network().train(training), th.randn(9, 4)
    before = copy.deepcopy(net.state_dict())
    assert len(batch_norms(net)) == 4
    with running_statistics(net):
        assert not any(layer.training for layer in batch_norms(net)) and net[1].training == training
        net(x)
        assert all(th.equal(value, before[name]) for name, value in net.state_dict().items())
        with batch_statistics(net):
            assert all(layer.training for layer in batch_norms(net)) and net[1].training == training
            net(x)
        assert not any(layer.training for layer in batch_norms(net))
    assert all(
        th.equal(value, before[name]) != ("running" in name) for name, value in net.state_dict().items() if "num" not in name
    )
    assert all(module.training == training for module in net.modules())


def test_modes_come_back_after_an_error():
    net = network().eval()
    with pytest.raises(RuntimeError), batch_statistics(net):
        net(th.randn(9, 5))
    assert not any(layer.training for layer in batch_norms(net))
