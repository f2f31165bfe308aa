"""What heads learn from a fixed energy: flows whose draws follow its Gibbs density."""

import functools

import pytest
import torch as th

from benchmarks.sampler_draws import fitted_base
from sb3_energy.autodiff import jacobian
from sb3_energy.policies.heads import AverageVelocityHead, HeadBatch, HeadTraining, VelocityHead
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refiners import Flow, MeanFlow, refine
from sb3_energy.types import Target, Tick
from tests.laws import modes_energy, total_variation

FOUR_MODES = modes_energy([[0.6, 0.6], [-0.6, 0.6], [0.6, -0.6], [-0.6, -0.6]], 0.3, [1.0, 2.0, 2.0, 4.0])
N_DRAWS, BINS = 100_000, 20


@functools.cache
def base(name):
    return fitted_base(FOUR_MODES) if name == "one mode" else Gaussian(th.zeros(1, 2), th.ones(1, 2))


@functools.cache
def taught(head_class, base_name, n_updates):
    """A head after so many updates at 64 observations that are all the same."""
    th.manual_seed(0)
    head = head_class(3, 2, net_arch=[256, 256], backbone="layer_norm")
    head_batch = HeadBatch(th.ones(64, 3), Gaussian(*(part.repeat(64, 1) for part in base(base_name))), FOUR_MODES, None)
    optimizer = th.optim.Adam(head.parameters(), lr=2e-3)
    decay = th.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, n_updates)
    for _ in range(n_updates):
        loss, _ = head.loss(head_batch, HeadTraining(n_candidates=32, n_points=8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return head


def starts(base_name, n=N_DRAWS):
    mean, std = base(base_name)
    return (mean + std * th.randn((n, 2), generator=th.Generator().manual_seed(7))).unsqueeze(0)


def bias(head, refiner, n_steps, base_name):
    with th.no_grad():
        target = Target(lambda x: 0.0 * x.sum(-1), **head.bind(th.ones(1, 3))._asdict())
    ends = refine(refiner, starts(base_name), target, n_steps=n_steps).particles[0]
    return total_variation(th.tanh(ends), FOUR_MODES, BINS)


@pytest.mark.parametrize("base_name", ["wide", "one mode"])
def test_draws_of_a_flow_follow_the_gibbs_density(base_name, record_property):
    found = bias(taught(VelocityHead, base_name, 400), Flow("heun"), 4, base_name)
    record_property("total_variation", found)
    assert found <= 0.08
    untrained = bias(VelocityHead(3, 2, net_arch=[8]), Flow("heun"), 4, base_name)
    assert untrained > 0.2, "the base is not there already"


@pytest.mark.parametrize("base_name", ["wide", "one mode"])
def test_a_short_training_brings_one_step_of_a_mean_flow_near_it(base_name, record_property):
    found = bias(taught(AverageVelocityHead, base_name, 400), MeanFlow(), 1, base_name)
    record_property("total_variation", found)
    assert found <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize("base_name", ["wide", "one mode"])
def test_draws_of_one_step_of_a_mean_flow_follow_the_gibbs_density(base_name, record_property):
    head = taught(AverageVelocityHead, base_name, 3200)
    found = bias(head, MeanFlow(), 1, base_name)
    record_property("total_variation", found)
    assert found <= 0.08
    assert bias(head, MeanFlow(), 4, base_name) <= 0.08


def test_the_learned_divergence_follows_the_exact_one_of_the_step(record_property):
    error, spread = divergence_error(taught(AverageVelocityHead, "wide", 400), "wide")
    record_property("divergence_error", error)
    record_property("divergence_spread", spread)
    assert error < 0.6 * spread


def divergence_error(head, base_name):
    """By how much the learned divergence of the whole way differs from the exact logarithm of the step's determinant."""
    with th.no_grad():
        bound = head.bind(th.ones(1, 3))
    x, tick = starts(base_name, 4000), Tick(0, 1)
    target = Target(lambda x: 0.0 * x.sum(-1), **bound._asdict())
    exact = th.linalg.slogdet(jacobian(lambda x: MeanFlow().transport(x, target, tick), x)).logabsdet
    with th.no_grad():
        learned = bound.average_divergence(x, *MeanFlow().times(x, tick))
    return (learned - exact).abs().median().item(), exact.std().item()
