from functools import partial

import numpy as np
import pytest
import torch as th

from sb3_energy.envs.multi_goal import GOALS, step_dynamics
from sb3_energy.envs.soft_values import SoftValues, action_grid, soft_value_iteration
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.bases import Gaussian

ORIGIN = np.zeros(2)


@pytest.fixture(scope="module")
def coarse() -> SoftValues:
    return soft_value_iteration(alpha=1.0, n_states=57, n_actions=21)


# ------------------------------------------------------------------ the known answer


@pytest.mark.parametrize(
    "alpha, value, entropy, tolerance",
    [(0.2, -121.9, -1.87, 0.05), (1.0, -137.0, -0.31, 0.05), (5.0, -153.1, 0.98, 0.05)],
)
def test_coarse_grid(alpha, value, entropy, tolerance):
    answer = soft_value_iteration(alpha, n_states=57, n_actions=21)
    assert float(answer.value(ORIGIN)) == pytest.approx(value, abs=tolerance)
    assert answer.entropy(ORIGIN) == pytest.approx(entropy, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    "quadrature, alpha, value, entropy",
    [
        # the figures one finds when the border of the grid of actions counts in full
        ("rectangle", 0.2, -121.3, -1.67),
        ("rectangle", 1.0, -136.3, -0.25),
        ("rectangle", 5.0, -151.6, 0.99),
        # what the integral over the box is
        ("trapezoid", 0.2, -121.3, -1.67),
        ("trapezoid", 1.0, -136.3, -0.30),
        ("trapezoid", 5.0, -152.3, 0.95),
    ],
)
def test_fine_grid(quadrature, alpha, value, entropy):
    answer = soft_value_iteration(alpha, quadrature=quadrature)
    assert float(answer.value(ORIGIN)) == pytest.approx(value, abs=0.06)
    assert answer.entropy(ORIGIN) == pytest.approx(entropy, abs=0.011)


def test_values_are_a_fixed_point(coarse):
    actions, weights = action_grid(coarse.n_actions)
    for index in [(28, 28), (10, 40), (3, 3), (45, 28)]:  # the origin, a corner's side, a corner, near the east
        state = np.array(index) * 0.25 - 7.0
        backup = np.log((np.exp(coarse.q_value(state, actions) - coarse.values[index]) * weights).sum())
        assert backup == pytest.approx(0.0, abs=2e-3)


def test_values_have_the_symmetries_of_the_square(coarse):
    for other in (coarse.values.T, coarse.values[::-1], np.rot90(coarse.values)):
        np.testing.assert_allclose(coarse.values, other, atol=1e-3)


def test_optimal_policy_at_the_origin_has_four_equal_modes(coarse):
    actions, masses = coarse.density(ORIGIN)
    assert masses.sum() == pytest.approx(1.0)
    toward = (actions[..., None, :] * GOALS / 5.0).sum(-1)
    shares = [masses[(toward.argmax(-1) == goal) & (toward.max(-1) > 0.4)].sum() for goal in range(4)]
    np.testing.assert_allclose(shares, np.mean(shares), rtol=0.15)  # ties on the diagonals fall to one side
    assert sum(shares) > 0.95
    modes = np.abs(actions[masses > 0.9 * masses.max()])
    np.testing.assert_allclose(modes.max(axis=-1), 0.85, atol=0.1)


def test_interpolation_is_exact_on_linear_functions():
    axis = np.linspace(-7.0, 7.0, 15)
    plane = 2.0 * axis[:, None] - 3.0 * axis
    values = SoftValues(1.0, 0.99, 0.5, 21, "trapezoid", plane, 0)
    states = np.random.default_rng(0).uniform(-7.0, 7.0, (50, 2))
    np.testing.assert_allclose(values.value(states), states @ [2.0, -3.0])
    np.testing.assert_allclose(values.value(np.array([[9.0, 7.0]])), [-7.0])


def test_no_discount_is_the_reward_alone():
    answer = soft_value_iteration(alpha=2.0, gamma=0.0, n_states=15, n_actions=11)
    actions, weights = action_grid(11)
    rewards = step_dynamics(ORIGIN, actions).rewards
    assert float(answer.value(ORIGIN)) == pytest.approx(2.0 * np.log((np.exp(rewards / 2.0) * weights).sum()))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(alpha=0.0), "alpha must be above 0"),
        (dict(alpha=1.0, gamma=1.0), r"gamma in \[0, 1\)"),
        (dict(alpha=1.0, n_states=1), "n_states must be at least 2, got 1"),
        (dict(alpha=1.0, n_actions=1), "n_actions must be at least 2, got 1"),
        (dict(alpha=1.0, quadrature="simpson"), "quadrature must be one of .*, got 'simpson'"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        soft_value_iteration(**kwargs)


def test_no_convergence_is_said():
    with pytest.raises(RuntimeError, match=r"did not converge to 0\.001 in 2 sweeps"):
        soft_value_iteration(1.0, n_states=15, n_actions=5, max_iterations=2)


# ------------------------------------------------------------------ refiners on the exact answer, no network


def _exact_energy(q_table: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """``-Q(0, a)``, bilinear in a table over the box."""
    batch, n_particles, _ = actions.shape
    grid = actions.flip(-1).reshape(1, batch * n_particles, 1, 2)  # grid_sample takes the last axis first
    sampled = th.nn.functional.grid_sample(q_table[None, None], grid, align_corners=True, padding_mode="border")
    return -sampled.reshape(batch, n_particles)


@pytest.mark.parametrize("refiner", ["langevin", "snis"])
def test_default_refinement_of_a_one_sided_gaussian_reaches_all_four_goals(coarse, refiner):
    actions, _ = action_grid(81)
    energy = partial(_exact_energy, th.as_tensor(coarse.q_value(ORIGIN, actions), dtype=th.float32))
    refinement = RefinementArguments(refiner, initial_particles="mixture").make_refinement()
    # what SAC's actor ends as: all of it on one goal
    base = Gaussian(th.tensor([[1.2, 0.0]]).repeat(4000, 1), th.full((4000, 2), 0.3))
    particles = th.tanh(refinement.sample(base, energy, th.tensor(1.0), generator=th.Generator().manual_seed(0)))
    toward = particles @ th.as_tensor(GOALS / 5.0, dtype=th.float32).T
    shares = th.bincount(toward.argmax(dim=1), minlength=4) / len(particles)
    assert shares.min() > 0.15
