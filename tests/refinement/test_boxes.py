"""Two exact ways to keep particles in the box: both leave the same law, and neither leaves mass on the walls."""

import math

import numpy as np
import pytest
import torch as th

from sb3_energy import EnergySAC
from sb3_energy.energies import folded, reflected
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.boxes import BOXES
from sb3_energy.refinement.proposals import draw_proposals
from sb3_energy.refiners import REFINERS, Langevin, refine
from sb3_energy.types import Target
from tests.laws import modes_energy, total_variation

each_box = pytest.mark.parametrize("box", sorted(BOXES))
ONE = th.tensor(1.0)
AT_THE_WALL = modes_energy([[1.0, 0.2], [-0.5, -1.0]], 0.3, [1.0, 2.0])


def refinement(box, refiner="langevin", **kwargs):
    defaults = dict(initial_particles="mixture", precondition=True)
    return RefinementArguments(refiner, **(defaults | kwargs), box=box).make_refinement()


def base(n=1, mean=0.7, std=0.5):
    return Gaussian(th.full((n, 2), mean), th.full((n, 2), std))


def test_mirrors():
    x = th.tensor([-5.25, -3.0, -1.5, -1.0, -0.3, 0.0, 0.8, 1.0, 1.2, 2.9, 3.0, 3.5, 7.0], dtype=th.float64)
    expected = [0.75 - 2.0 + 0.5, 1.0, -0.5, -1.0, -0.3, 0.0, 0.8, 1.0, 0.8, -0.9, -1.0, -0.5, -1.0]
    expected[0] = -0.75  # -5.25 -> (wall at -1) 3.25 -> (wall at 1) -1.25 -> (wall at -1) -0.75
    th.testing.assert_close(folded(x), th.tensor(expected, dtype=th.float64))
    moving = th.tensor([0.3, 1.2, 2.9, 3.2], dtype=th.float64, requires_grad=True)
    folded(moving).sum().backward()
    assert moving.grad.tolist() == [1.0, -1.0, -1.0, 1.0]


def test_a_reflected_energy_goes_on_as_its_mirror_image():
    energy = reflected(AT_THE_WALL)
    inside = th.tensor([[[0.9, 0.1], [-0.4, -0.95]]])
    behind = th.tensor([[[1.1, 0.1], [-0.4, -1.05]]])
    th.testing.assert_close(energy(inside), AT_THE_WALL(inside))
    th.testing.assert_close(energy(behind), AT_THE_WALL(inside))


@each_box
def test_there_and_back(box):
    chart = BOXES[box]
    u = 1.5 * th.randn((4, 50, 2), generator=th.Generator().manual_seed(0)).double()
    th.testing.assert_close(chart.end(chart.start(u)), u, rtol=1e-5, atol=1e-6)


@each_box
def test_the_density_is_that_of_the_coordinates(box):
    """The mean of 1/density over draws is the volume they fill: of the whole box where the coordinates are actions."""
    proposals = draw_proposals(base(1, 0.3, 0.8), 400_000, 1.0, generator=th.Generator().manual_seed(0))
    log_prob = BOXES[box].log_prob(*proposals)
    if box == "reflect":
        th.testing.assert_close(log_prob.exp(), th.full_like(log_prob, 0.25))
    else:
        assert th.equal(log_prob, proposals.log_prob)


@each_box
@pytest.mark.parametrize("refiner, kwargs", [("langevin", dict(step_size=0.05)), ("mala", {}), ("hmc", {}), ("snis", {})])
def test_draws_follow_the_density_up_to_the_walls(box, refiner, kwargs):
    steps = dict(langevin=40, mala=30, hmc=15).get(refiner)
    # many proposals, so that what is wrong would be the chain's fault
    way = refinement(box, refiner, refiner_kwargs=kwargs, refiner_steps=steps, n_particles=128)
    n = 20_000
    draws = th.tanh(way.sample(base(n), AT_THE_WALL, ONE, generator=th.Generator().manual_seed(0)))
    assert total_variation(draws, AT_THE_WALL, 10) < 0.05
    assert total_variation(th.tanh(base(n).mean + 0.5 * th.randn(n, 2)), AT_THE_WALL, 10) > 0.4


@each_box
def test_a_flat_energy_gives_the_uniform_distribution(box):
    way = refinement(box, "langevin", refiner_steps=20)
    draws = th.tanh(way.sample(base(100_000), lambda a: 0.0 * a.sum(-1), ONE, generator=th.Generator().manual_seed(0)))
    for share in (draws.abs() > 0.99).double().mean(0):
        assert 0.008 < share < 0.012


def test_clipping_would_leave_mass_on_the_walls():
    start = 2.0 * th.rand((1, 20_000, 1), generator=th.Generator().manual_seed(0)) - 1.0
    moved = refine(
        Langevin(0.05), start, Target(lambda x: 0.0 * x.sum(-1)), n_steps=20, generator=th.Generator().manual_seed(1)
    ).particles
    assert (moved.clamp(-1.0, 1.0).abs() > 0.99).double().mean() > 0.3
    assert 0.008 < (folded(moved).abs() > 0.99).double().mean() < 0.012


@each_box
@pytest.mark.parametrize("refiner", sorted(name for name in REFINERS if REFINERS[name].head is None and name != "none"))
def test_best_finds_an_optimum_at_a_wall(box, refiner):
    way = refinement(box, refiner, refiner_steps=None if refiner == "snis" else 12)
    best = th.tanh(way.best(base(3), lambda a: 20.0 * (a - th.tensor([1.0, 0.2])).square().sum(-1)))
    assert (best[:, 0] > 0.8).all() and (best.abs() < 1.0).all()
    assert th.equal(best, th.tanh(way.best(base(3), lambda a: 20.0 * (a - th.tensor([1.0, 0.2])).square().sum(-1))))


@each_box
@pytest.mark.parametrize("log_std", [-20.0, 2.0])
@pytest.mark.parametrize("mean", [0.0, 12.0, -50.0])
def test_32_bits_hold_the_actor_s_extremes(box, mean, log_std):
    for way in (refinement(box), refinement(box, "mala", n_particles=1), refinement(box, precondition=False)):
        extreme = base(20, mean, math.exp(log_std))
        for found in (way.sample(extreme, AT_THE_WALL, th.tensor(0.01)), way.best(extreme, AT_THE_WALL)):
            assert th.isfinite(found).all()


@each_box
def test_a_policy_keeps_its_box(tmp_path, box):
    kwargs = dict(net_arch=[16], box=box, refiner="mala")
    model = EnergySAC("MlpPolicy", "Pendulum-v1", learning_starts=10, policy_kwargs=kwargs, seed=0).learn(20)
    model.policy.save(tmp_path / "policy")
    loaded = type(model.policy).load(tmp_path / "policy")
    assert loaded.refinement.box == BOXES[box]
    obs = np.random.default_rng(0).uniform(-1, 1, (5, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


@pytest.mark.parametrize("box", ["clip", None, 1, ["tanh"]])
def test_other_boxes_are_refused(box):
    with pytest.raises(ValueError, match=r"box must be one of \['reflect', 'tanh'\], got"):
        refinement(box)
