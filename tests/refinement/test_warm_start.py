"""Candidates around the last plan: where, how many, and what does not fit."""

import numpy as np
import pytest
import torch as th

from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.warm_start import Plans, n_warm
from sb3_energy.stats import normal_quantiles

BASE = Gaussian(th.zeros(3, 2), th.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]))
CANDIDATES = th.arange(3 * 16 * 2, dtype=th.float32).reshape(3, 16, 2)
MEAN = np.array([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]], dtype=np.float32)
STARTS = np.array([False, True, False])


def refinement(n_particles=64, **kwargs):
    steps = kwargs.pop("steps", 3)
    return RefinementArguments("mppi", dict(warm_start=True), steps, n_particles, "base", True, **kwargs).make_refinement()


def test_a_quarter_is_drawn_around_the_plan_with_the_base_s_width():
    warmed = Plans((MEAN,)).warmed(CANDIDATES, BASE, generator=th.Generator().manual_seed(0), quasi_random=False)
    assert th.equal(warmed[:, :12], CANDIDATES[:, :12])
    noise = th.randn((3, 4, 2), generator=th.Generator().manual_seed(0))
    th.testing.assert_close(warmed[:, 12:], th.as_tensor(MEAN)[:, None] + BASE.std[:, None] * noise)
    quasi = Plans((MEAN,)).warmed(CANDIDATES, BASE, generator=None, quasi_random=True)
    th.testing.assert_close(quasi[:, 12:], th.as_tensor(MEAN)[:, None] + BASE.std[:, None] * normal_quantiles(4, BASE.mean))
    th.testing.assert_close(quasi[:, 12], th.as_tensor(MEAN))
    assert [n_warm(n) for n in (2, 4, 7, 8, 64)] == [1, 1, 1, 2, 16]


def test_where_an_episode_begins_nothing_changes():
    warmed = Plans((MEAN,), STARTS).warmed(CANDIDATES, BASE, generator=th.Generator().manual_seed(0), quasi_random=False)
    assert th.equal(warmed[1], CANDIDATES[1])
    assert not th.equal(warmed[0], CANDIDATES[0]) and not th.equal(warmed[2], CANDIDATES[2])


@pytest.mark.parametrize("plans", [Plans(), Plans((MEAN,), np.ones(3, dtype=bool)), Plans(None, STARTS)])
def test_without_plans_nothing_is_drawn(plans):
    generator = th.Generator().manual_seed(0)
    before = generator.get_state()
    assert plans.warmed(CANDIDATES, BASE, generator=generator, quasi_random=False) is CANDIDATES
    assert th.equal(before, generator.get_state())


BAD = [
    (
        MEAN,
        None,
        r"state must be what predict returned, a tuple of one finite float array \(n_envs, A\) = \(3, 2\), got ndarray",
    ),
    ((MEAN, MEAN), None, "state must be .* got tuple"),
    ((MEAN[:2],), None, r"got one of shape \(2, 2\) and type float32"),
    ((MEAN[0],), None, r"got one of shape \(2,\)"),
    ((MEAN * np.nan,), None, "one finite float array"),
    ((MEAN.astype(int),), None, "type int64"),
    ((MEAN,), np.zeros(2, dtype=bool), r"episode_start must have shape \(n_envs,\) = \(3,\), got \(2,\)"),
    (None, np.zeros((3, 1), dtype=bool), r"episode_start must have shape"),
]


@pytest.mark.parametrize("state, starts, message", BAD)
def test_what_does_not_fit_is_refused_in_one_sentence(state, starts, message):
    with pytest.raises(ValueError, match=message) as raised:
        Plans(state, starts).warmed(CANDIDATES, BASE, generator=None, quasi_random=True)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kwargs", [dict(), dict(box="reflect")])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_narrow_mode_once_found_is_kept(kwargs, deterministic):
    """Far from the base's own candidates, where only the last plan looks."""
    base, way = Gaussian(th.full((5, 3), -1.0), th.full((5, 3), 0.05)), refinement(**kwargs)
    mode = th.full((3,), 0.6)

    def energy(a):
        return -10.0 * th.exp(-(a - mode).square().sum(-1) / (2.0 * 0.1**2))

    def act(plans):
        if deterministic:
            return th.tanh(way.best(base, energy, plans=plans))
        return th.tanh(way.sample(base, energy, th.tensor(1.0), generator=th.Generator().manual_seed(0), plans=plans))

    known = Plans((th.atanh(mode).expand(5, 3).numpy(),), np.array([False, False, True, False, True]))
    distances = (act(known) - mode).norm(dim=-1)
    assert (distances[[0, 1, 3]] < 0.15).all() and (distances[[2, 4]] > 0.3).all()
    (mean,) = known.state
    assert mean.shape == (5, 3) and mean.dtype == np.float32
    assert np.abs(np.tanh(mean[[0, 1, 3]]) - 0.6).max() < 0.15, "the plan's mean is where the candidates are"


def test_the_mean_that_is_kept_is_the_last_fit_s():
    """One round without noise: the weighted mean of the elites among the base's quantiles, in the base's own coordinates."""
    base, way, plans = Gaussian(th.full((1, 2), 0.4), th.full((1, 2), 0.7)), refinement(16, steps=1), Plans()
    way.best(base, lambda a: (a - 0.1).square().sum(-1), plans=plans)
    u = 0.4 + 0.7 * normal_quantiles(16, base.mean)[0]
    energies = (th.tanh(u) - 0.1).square().sum(-1)
    lowest = energies.argsort()[:4]
    expected = ((-energies[lowest]).softmax(0)[:, None] * u[lowest]).sum(0)
    th.testing.assert_close(th.as_tensor(plans.state[0][0]), expected)


def test_who_has_no_plans_takes_none():
    for way in (
        RefinementArguments("mppi", refiner_steps=3, n_particles=8).make_refinement(),
        RefinementArguments("langevin", initial_particles="base").make_refinement(),
    ):
        with pytest.raises(ValueError, match=r"plans need refiner='mppi' with refiner_kwargs=dict\(warm_start=True\), got"):
            way.best(BASE, lambda a: a.sum(-1), plans=Plans())
    with pytest.raises(ValueError, match=r"warm_start=True needs n_particles of at least 2 and .*, got 1 and 3"):
        refinement(1)
    with pytest.raises(ValueError, match="refiner_steps of at least 1, got 64 and 0"):
        refinement(steps=0)


def test_plans_at_a_wall_do_not_wander_off():
    base, way, state = Gaussian(th.zeros(2, 2), th.ones(2, 2)), refinement(), None
    for _ in range(20):
        plans = Plans(state)
        way.best(base, lambda a: -a.sum(-1), plans=plans)
        state = plans.state
    assert (state[0] > 3.0).all() and (state[0] < np.arctanh(1.0 - 0.9e-6)).all(), "they stay where actions still differ"
    inner = Plans(state)
    best = way.best(base, lambda a: (a - 0.3).square().sum(-1), plans=inner)
    assert (np.tanh(inner.state[0]) < 0.6).all() and (th.tanh(best) - 0.3).abs().max() < 0.1
