"""Exact answers of worlds of goals, against sums over all actions, sampled episodes, symmetries and scales."""

import numpy as np
import pytest

from sb3_energy.envs import World, draw_world
from sb3_energy.envs.exact_answers import TEMPERATURES, balanced_temperature, exact_answer
from sb3_energy.envs.lattice import goal_shares, lattice_values
from sb3_energy.envs.multi_goal import HORIZON, four_goals
from sb3_energy.envs.soft_values import SoftValues, action_grid, soft_value_iteration

ORIGIN = np.zeros(2)
GAMMA = 0.99
MIRRORED = World([(3.6, 1.2), (-3.6, 1.2), (0.5, -4.4), (-0.5, 5.0)], [20.0, 20.0, 30.0, 50.0])
"""A mirror image of the first goal, and two goals that have none."""


# ------------------------------------------------------------------ the lattice


class _Sums:
    """The same lattice by sums over all pairs of state and action, with neither convolutions nor logarithms of masses."""

    def __init__(self, world: World, alpha: float, n_actions: int) -> None:
        actions, weights = action_grid(n_actions)
        axis = np.linspace(-7.0, 7.0, 7 * (n_actions - 1) + 1)
        self.actions = actions.reshape(-1, 2)
        states = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
        after = np.clip(states[:, None] + self.actions, -7.0, 7.0)
        self.where = np.rint((after + 7.0) / (axis[1] - axis[0])).astype(int) @ [len(axis), 1]
        distances = np.linalg.norm(after[:, :, None] - np.array(world.goals), axis=-1)
        self.nearest = distances.argmin(-1)
        self.part = np.clip((world.goal_threshold - distances.min(-1)) / (axis[1] - axis[0]) + 0.5, 0.0, 1.0)
        cost = 30.0 * np.square(self.actions).sum(-1) + np.square(distances.min(-1))
        self.cost, self.bonus = -world.reward_scale * cost, world.reward_scale * np.array(world.bonuses)[self.nearest]
        self.alpha, self.weights, self.origin = alpha, weights.ravel(), len(states) // 2

    def terms(self, values: np.ndarray, highest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ended = self.part * np.exp((self.cost + self.bonus - highest[:, None]) / self.alpha)
        going_on = (1.0 - self.part) * np.exp((self.cost + GAMMA * values[self.where] - highest[:, None]) / self.alpha)
        return ended * self.weights, going_on * self.weights

    def values(self) -> np.ndarray:
        values = np.zeros(self.where.shape[0])
        for _ in range(60):
            highest = (self.cost + np.maximum(self.bonus, GAMMA * values[self.where])).max(axis=1)
            values = highest + self.alpha * np.log(sum(term.sum(axis=1) for term in self.terms(values, highest)))
        return values

    def shares(self, values: np.ndarray, n_goals: int) -> np.ndarray:
        ended, going_on = self.terms(values, values)
        masses, shares = np.zeros(len(values)), np.zeros(n_goals)
        masses[self.origin] = 1.0
        for _ in range(HORIZON):
            np.add.at(shares, self.nearest, masses[:, None] * ended)
            masses, before = np.zeros_like(masses), masses
            np.add.at(masses, self.where, before[:, None] * going_on)
        return shares


@pytest.mark.parametrize(
    "world, alpha", [(four_goals(), 3.0), (MIRRORED, 8.0), (World([(6.8, 6.8), (-6.0, 3.0)], [10.0, 0.0]), 4.0)]
)
def test_convolutions_are_sums_over_all_actions(world, alpha):
    sums = _Sums(world, alpha, n_actions=9)
    values = lattice_values(world, alpha, n_actions=9, gamma=GAMMA, tolerance=1e-5)
    expected = sums.values()
    np.testing.assert_allclose(values.values.ravel(), expected, atol=1e-3)
    np.testing.assert_allclose(goal_shares(values), sums.shares(expected, world.n_goals), atol=1e-4)


def test_values_are_those_of_soft_value_iteration():
    """Which interpolates, and misses up to .1 of each step's value by that."""
    world = World(draw_world(1).goals, draw_world(1).bonuses)
    general = soft_value_iteration(4.0, n_states=71, n_actions=21, world=world)
    values = lattice_values(world, 4.0, n_actions=21)
    states = np.random.default_rng(0).uniform(-5.0, 5.0, (100, 2))
    np.testing.assert_allclose(values.value(states), general.value(states), atol=3.0)
    assert float(lattice_values(four_goals(), 1.0, 61).value(ORIGIN)) == pytest.approx(-136.3, abs=0.3)
    assert lattice_values(four_goals(), 1.0, 31).entropy(ORIGIN) == pytest.approx(-0.30, abs=0.01)


def _sampled_shares(values: SoftValues, n_episodes: int, rng: np.random.Generator) -> np.ndarray:
    """Episodes in the continuous world; actions from a fine grid by the Gumbel trick, spread over its cells."""
    actions = action_grid(41)[0].reshape(-1, 2)
    counts, states = np.zeros(values.world.n_goals), np.zeros((n_episodes, 2))
    for _ in range(HORIZON):
        following = []
        for part in np.array_split(states, max(len(states) // 500, 1)):
            logits = values.q_value(part[:, None], actions) / values.alpha
            chosen = actions[(logits + rng.gumbel(size=logits.shape)).argmax(axis=1)]
            moved = values.world.step(part, np.clip(chosen + rng.uniform(-0.025, 0.025, chosen.shape), -1.0, 1.0))
            counts += np.bincount(moved.goals[moved.goals >= 0], minlength=len(counts))
            following.append(moved.next_states[moved.goals < 0])
        states = np.concatenate(following)
    return counts / n_episodes


@pytest.mark.parametrize("seed", [3, pytest.param(9, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.slow)])
def test_shares_are_those_of_sampled_episodes(seed):
    world = draw_world(seed)
    values = lattice_values(world, 2.0 * world.reward_scale)
    sampled = _sampled_shares(values, 2000, np.random.default_rng(0))
    np.testing.assert_allclose(goal_shares(values), sampled, atol=0.033)  # three standard deviations of a half


@pytest.mark.parametrize("seed", [1, 8])
def test_a_finer_lattice_says_the_same(seed):
    world = draw_world(seed)
    alpha = balanced_temperature(world)
    ours, finer = exact_answer(world, alpha), exact_answer(world, alpha, n_actions=41)
    np.testing.assert_allclose(ours.shares, finer.shares, atol=0.01)
    np.testing.assert_allclose(ours.q_values, finer.q_values, atol=0.5 * alpha)


# ------------------------------------------------------------------ symmetries and scales


def test_four_goals_have_a_quarter_each():
    answer = exact_answer(four_goals(), 3.0)
    np.testing.assert_allclose(answer.shares, 0.25, atol=1e-5)
    np.testing.assert_allclose(answer.q_values, answer.q_values[0], atol=1e-3)
    np.testing.assert_allclose(answer.first_actions, 0.8 * np.array([(1, 0), (0, 1), (-1, 0), (0, -1)]), atol=0.07)


@pytest.mark.parametrize("angle", [0.0, 0.7, 2.0])
def test_two_opposite_goals_have_a_half_each(angle):
    goal = 4.2 * np.array([np.cos(angle), np.sin(angle)])
    answer = exact_answer(World([goal, -goal], [10.0, 10.0]), 2.0, n_actions=21)
    np.testing.assert_allclose(answer.shares, 0.5, atol=1e-5)
    np.testing.assert_allclose(answer.first_actions[0], -answer.first_actions[1])


def test_mirror_images_have_the_same_share_and_a_quarter_turn_changes_nothing():
    answer = exact_answer(MIRRORED, 6.0, n_actions=21)
    mirrored = World([(-x, y) for x, y in MIRRORED.goals], MIRRORED.bonuses)
    np.testing.assert_allclose(exact_answer(mirrored, 6.0, n_actions=21).shares, answer.shares, atol=1e-5)
    turned = exact_answer(World([(-y, x) for x, y in MIRRORED.goals], MIRRORED.bonuses), 6.0, n_actions=21)
    np.testing.assert_allclose(turned.shares, answer.shares, atol=1e-5)
    np.testing.assert_allclose(turned.q_values, answer.q_values, atol=1e-3)
    np.testing.assert_allclose(turned.first_actions, answer.first_actions[:, ::-1] * [-1.0, 1.0], atol=1e-9)


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_rewards_and_temperature_scale_together(factor):
    scaled = World(MIRRORED.goals, MIRRORED.bonuses, factor)
    here, there = exact_answer(MIRRORED, 5.0, n_actions=21), exact_answer(scaled, 5.0 * factor, n_actions=21)
    np.testing.assert_allclose(there.shares, here.shares, atol=1e-5)
    np.testing.assert_allclose(there.q_values, factor * here.q_values, rtol=1e-5)
    np.testing.assert_array_equal(there.first_actions, here.first_actions)
    assert there.soft_value == pytest.approx(factor * here.soft_value, rel=1e-5)
    general = [
        soft_value_iteration(a, n_states=29, n_actions=9, world=w).values for a, w in ((5.0, MIRRORED), (5.0 * factor, scaled))
    ]
    np.testing.assert_allclose(general[1], factor * general[0], rtol=1e-4)


# ------------------------------------------------------------------ best first actions


def test_best_first_actions_go_to_their_goals_and_have_the_highest_value():
    world = draw_world(0)
    answer = exact_answer(world, 2.0 * world.reward_scale)
    values = lattice_values(world, answer.alpha)
    angles = [np.arctan2(*goal[::-1]) for goal in world.goals]
    for goal, action, q_value in zip(world.goals, answer.first_actions, answer.q_values, strict=True):
        assert float(values.q_value(ORIGIN, action)) == q_value
        apart = np.angle(np.exp(1j * (np.arctan2(*action[::-1]) - np.array(angles))))
        assert np.abs(apart).argmin() == world.goals.index(goal)
        # a lattice of actions between those that were tried has no better one in the same direction
        assert float(values.q_value(ORIGIN, action * np.linspace(0.7, 1.0 / np.abs(action).max(), 50)[:, None]).max()) < (
            q_value + 0.25 * answer.alpha
        )
    assert answer.q_values.max() == pytest.approx(values.q_value(ORIGIN, action_grid(31)[0]).max())
    assert answer.soft_value == float(values.value(ORIGIN))


def test_values_have_the_entropy_that_sacs_targets_have():
    """SAC's target of an action is ``r + gamma E[Q(s', a') - alpha log pi(a'|s')]`` with densities on the box."""
    values = lattice_values(MIRRORED, 4.0, n_actions=21, tolerance=1e-6)
    for action in ([0.5, 0.2], [-0.3, 0.9]):
        actions, masses = values.density(np.array(action))
        following = (masses * values.q_value(np.array(action), actions)).sum() + 4.0 * values.entropy(np.array(action))
        reward = float(MIRRORED.step(ORIGIN, np.array(action)).rewards)
        assert float(values.q_value(ORIGIN, np.array(action))) == pytest.approx(reward + 0.99 * following, abs=1e-3)


# ------------------------------------------------------------------ balanced temperatures


@pytest.mark.parametrize(
    "seed", [1, 5, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(30) if seed not in (1, 5))]
)
def test_drawn_worlds_have_a_balanced_temperature(seed):
    world = draw_world(seed)
    alpha = balanced_temperature(world)
    temperature = alpha / world.reward_scale
    index = np.abs(np.array(TEMPERATURES) - temperature).argmin()
    assert temperature == pytest.approx(TEMPERATURES[index]) and 0.5 <= temperature <= 8.1
    shares = goal_shares(lattice_values(world, alpha))
    assert np.sort(shares)[-2] >= 0.15 and shares.sum() > 0.99
    if index > 0:
        lower = goal_shares(lattice_values(world, TEMPERATURES[index - 1] * world.reward_scale))
        assert np.sort(lower)[-2] < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("world", [World([(3.0, 0.0)], [10.0]), World([(3.0, 0.0), (-3.0, 0.0)], [10.0, 300.0])])
def test_a_world_without_a_balanced_temperature_is_refused(world):
    with pytest.raises(
        ValueError, match=r"world must have two goals of a share of 0\.15 at a temperature of at most 11\.3 times"
    ):
        balanced_temperature(world)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(alpha=0.0), "alpha must be above 0, got 0.0"),
        (dict(n_actions=20), "n_actions must be odd, .*, got 20"),
        (dict(n_actions=1), "n_actions must be at least 3, got 1"),
        (
            dict(alpha=0.02),
            r"n_actions must be at least 61 to resolve the policy at alpha=0.02 in a world of reward scale 1, got 31",
        ),
        (dict(gamma=1.0), r"gamma must lie in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        exact_answer(**dict(world=four_goals(), alpha=2.0) | kwargs)


def test_other_grids_have_no_shares():
    with pytest.raises(
        ValueError, match="soft_values must be those of lattice_values, got 15 points of an axis with 5 actions"
    ):
        goal_shares(soft_value_iteration(5.0, n_states=15, n_actions=5))
    with pytest.raises(RuntimeError, match=r"did not converge to 0\.001 in 2 sweeps"):
        lattice_values(four_goals(), 5.0, n_actions=9, max_iterations=2)


def test_a_world_has_its_own_threshold():
    with pytest.raises(ValueError, match=r"goal_threshold belongs to the four goals, got 0\.7 beside a world"):
        soft_value_iteration(5.0, n_states=15, n_actions=5, goal_threshold=0.7, world=MIRRORED)
    with pytest.raises(ValueError, match=r"goal_threshold must be the world's, 0\.5, got 0\.7"):
        SoftValues(1.0, 0.99, 0.7, 5, "trapezoid", np.zeros((15, 15)), 0, MIRRORED)
