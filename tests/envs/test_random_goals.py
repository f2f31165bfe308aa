"""Worlds of goals: drawn ones, one's own, and the four goals as one of them."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_gymnasium
from stable_baselines3.common.env_checker import check_env as check_sb3

from sb3_energy.envs import RandomGoalsEnv, World, draw_world
from sb3_energy.envs.exact_answers import exact_answer
from sb3_energy.envs.multi_goal import GOALS, HORIZON, LIMIT, four_goals, step_dynamics
from sb3_energy.envs.random_goals import LEAST_ANGLE, compensating_bonuses

# ------------------------------------------------------------------ worlds


def test_steps_are_those_of_a_loop_over_points():
    world = draw_world(2)
    rng = np.random.default_rng(0)
    states, actions = rng.uniform(-LIMIT, LIMIT, (200, 2)), rng.uniform(-1.0, 1.0, (200, 2))
    states[:30] = np.array(world.goals)[rng.integers(world.n_goals, size=30)] - actions[:30] + rng.normal(0.0, 0.3, (30, 2))
    found = world.step(states, actions)
    assert (found.goals >= 0).sum() > 10
    for i, (state, action) in enumerate(zip(states, actions, strict=True)):
        there = [min(max(s + a, -7.0), 7.0) for s, a in zip(state, action, strict=True)]
        distances = [sum((x - y) ** 2 for x, y in zip(there, goal, strict=True)) ** 0.5 for goal in world.goals]
        nearest = min(range(world.n_goals), key=distances.__getitem__)
        reward = -30.0 * sum(a * a for a in action) - distances[nearest] ** 2
        reward += world.bonuses[nearest] if distances[nearest] < 0.5 else 0.0
        np.testing.assert_allclose(found.next_states[i], there)
        assert found.rewards[i] == pytest.approx(world.reward_scale * reward)
        assert found.goals[i] == (nearest if distances[nearest] < 0.5 else -1)


def test_four_goals_are_a_world():
    rng = np.random.default_rng(1)
    states, actions = rng.uniform(-LIMIT, LIMIT, (500, 2)), rng.uniform(-1.0, 1.0, (500, 2))
    own = World(GOALS, np.full(4, 10.0))
    assert own == four_goals() and hash(own) == hash(four_goals())
    for ours, theirs in zip(own.step(states, actions), step_dynamics(states, actions), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_reward_scale_is_a_factor():
    world = draw_world(4)
    other = World(world.goals, world.bonuses, 7.0 * world.reward_scale)
    states = np.random.default_rng(0).uniform(-LIMIT, LIMIT, (50, 2))
    np.testing.assert_allclose(other.step(states, 0.1).rewards, 7.0 * world.step(states, 0.1).rewards)
    np.testing.assert_allclose(other.standing_reward(states), 7.0 * world.standing_reward(states))


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        (dict(goals=[]), ValueError, r"goals must be one or more points \(x, y\), got \[\]"),
        (dict(goals=[(1.0, 2.0, 3.0)]), ValueError, r"goals must be one or more points"),
        (dict(goals="north"), ValueError, r"goals must be one or more points .*, got 'north'"),
        (dict(goals=[(8.0, 0.0)]), ValueError, r"goals must lie in \[-7, 7\]\^2, got"),
        (dict(goals=[(np.nan, 0.0)]), ValueError, r"goals must lie in \[-7, 7\]\^2, got"),
        (dict(goals=[(0.3, 0.3)]), ValueError, "goals must be at least goal_threshold=0.5 from the origin"),
        (dict(bonuses=[1.0, 2.0]), ValueError, r"bonuses must be 1 numbers, one for each goal, got \[1.0, 2.0\]"),
        (dict(bonuses=3.0), ValueError, "bonuses must be 1 numbers, one for each goal, got 3.0"),
        (dict(bonuses=["a"]), TypeError, "bonuses must be numbers, got 'a'"),
        (dict(bonuses=[np.inf]), ValueError, "bonuses must be finite, got inf"),
        (dict(reward_scale=0.0), ValueError, "reward_scale must be above 0, got 0.0"),
        (dict(reward_scale="1"), TypeError, "reward_scale must be a number, got '1'"),
        (dict(goal_threshold=-1.0), ValueError, "goal_threshold must be above 0, got -1.0"),
    ],
)
def test_bad_worlds_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        World(**dict(goals=[(3.0, 0.0)], bonuses=[10.0]) | kwargs)


# ------------------------------------------------------------------ the draw


def test_a_world_stays_what_it_is():
    assert draw_world(3) == World([(4.75, -1.4), (0.31, 3.72)], [71.8, 10.2], 0.54)


def test_worlds_have_the_ranges_that_are_documented():
    worlds = [draw_world(seed) for seed in range(300)]
    assert {world.n_goals for world in worlds} == {2, 3, 4, 5, 6}
    exponents = np.log10([world.reward_scale for world in worlds])
    assert -2.0 <= exponents.min() < -1.9 and 1.9 < exponents.max() <= 2.0
    np.testing.assert_allclose([np.mean(exponents < cut) for cut in (-1.0, 0.0, 1.0)], [0.25, 0.5, 0.75], atol=0.1)
    for world in worlds:
        goals = np.array(world.goals)
        distances = np.linalg.norm(goals, axis=1)
        assert 3.49 < distances.min() and distances.max() < 6.01 and len(set(distances)) == len(goals)
        angles = np.sort(np.arctan2(goals[:, 1], goals[:, 0]))
        assert np.diff(angles, append=angles[0] + 2.0 * np.pi).min() > LEAST_ANGLE - 0.01
        random_parts = np.array(world.bonuses) - compensating_bonuses(goals)
        assert np.ptp(random_parts) > 0.0 and np.abs(random_parts).max() < 7.06


@pytest.mark.parametrize("distance", [4.5, 5.9])
def test_bonuses_make_up_for_distances(distance):
    goals = np.array([(3.5, 0.0), (-distance, 0.0)])
    near, far = exact_answer(World(goals, compensating_bonuses(goals)), alpha=2.0, n_actions=17).q_values
    assert near == pytest.approx(far, abs=4.0)  # uncompensated, it would be 40 or 110
    assert compensating_bonuses(goals)[0] == 15.0


# ------------------------------------------------------------------ environment

OWN = dict(goals=[(3.0, 0.0), (-2.0, 4.0), (0.0, -5.0)], bonuses=[1.0, 2.0, 3.0])


@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
@pytest.mark.parametrize("kwargs", [{}, dict(world=5, reward_scale=0.01), OWN | dict(goal_threshold=1.0, start_std=0.1)])
@pytest.mark.filterwarnings("ignore:.*old version.*")
def test_both_checkers_have_nothing_to_say(kwargs, render_mode, recwarn):
    env = gym.make("RandomGoals-v0", render_mode=render_mode, **kwargs)
    check_gymnasium(env.unwrapped)
    check_sb3(env, skip_render_check=False)
    assert [str(warning.message) for warning in recwarn] == []


def test_environment_is_the_world_of_its_seed():
    env = gym.make("RandomGoals-v0", world=7)
    assert env.spec.max_episode_steps == HORIZON and env.unwrapped.world == draw_world(7)
    assert gym.make("RandomGoals-v0").unwrapped.world == draw_world(0)
    state = env.reset(seed=0)[0].astype(float)
    for _ in range(7):
        action = env.action_space.sample()
        observation, reward, terminated, truncated, info = env.step(action)
        expected = draw_world(7).step(state, action.astype(float))
        state = expected.next_states
        np.testing.assert_allclose(observation, state, atol=1e-6)
        assert reward == pytest.approx(float(expected.rewards))
        assert (info, terminated, truncated) == ({"goal": -1, "is_success": False}, False, False)


@pytest.mark.parametrize("index", range(3))
def test_walking_straight_ends_at_each_goal(index):
    env = RandomGoalsEnv(**OWN, reward_scale=2.0)
    env.reset()
    goal = np.array(OWN["goals"][index])
    for step in range(6):
        _, reward, terminated, _, info = env.step(goal / 6.0)
        assert terminated == (step == 5)
    assert info == {"goal": index, "is_success": True}
    assert reward == pytest.approx(2.0 * (OWN["bonuses"][index] - 30.0 * (goal @ goal) / 36.0))


def test_the_same_world_at_another_scale():
    assert RandomGoalsEnv(3, reward_scale=100.0).world == World(draw_world(3).goals, draw_world(3).bonuses, 100.0)
    assert RandomGoalsEnv(**OWN).world == World(OWN["goals"], OWN["bonuses"])


def test_rendering_shows_the_goals():
    env = RandomGoalsEnv(**OWN, render_mode="rgb_array")
    env.reset()
    image = env.render()
    assert image.shape == (280, 280, 3) and RandomGoalsEnv().render() is None
    for x, y in OWN["goals"]:
        np.testing.assert_array_equal(image[round(140 - 20 * y), round(140 + 20 * x)], (214, 69, 65))


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        (dict(world=-1), ValueError, "world must be at least 0, got -1"),
        (dict(world=1.5), TypeError, "world must be an integer, got 1.5"),
        (dict(world=1, **OWN), ValueError, "world must be None beside goals of your own, got 1"),
        (
            dict(goals=[(3.0, 0.0)]),
            ValueError,
            r"goals and bonuses must be given together, got goals=\[\(3.0, 0.0\)\], bonuses=None",
        ),
        (dict(bonuses=[3.0]), ValueError, r"goals and bonuses must be given together"),
        (dict(reward_scale=-1.0), ValueError, "reward_scale must be above 0, got -1.0"),
        (dict(goal_threshold=7.0), ValueError, "goals must be at least goal_threshold=7 from the origin"),
        (dict(start_std=2.0), ValueError, r"start_std must lie in \[0, 1\], got 2.0"),
        (dict(render_mode="human"), ValueError, "render_mode must be None or one of"),
    ],
)
def test_bad_arguments_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        RandomGoalsEnv(**kwargs)
