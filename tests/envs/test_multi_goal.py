import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env as check_gymnasium
from stable_baselines3.common.env_checker import check_env as check_sb3

import sb3_energy.envs
from sb3_energy.envs.multi_goal import ACTION_COST, GOALS, HORIZON, LIMIT, MultiGoalEnv, step_dynamics

# ------------------------------------------------------------------ dynamics


def test_reward_is_cost_plus_squared_distance_plus_bonus():
    states = np.array([[0.0, 0.0], [1.0, 2.0], [4.2, 0.0], [0.3, -4.9]])
    actions = np.array([[0.0, 0.0], [0.5, -1.0], [0.5, 0.1], [0.0, 0.0]])
    next_states, rewards, goals = step_dynamics(states, actions)
    np.testing.assert_allclose(next_states, [[0.0, 0.0], [1.5, 1.0], [4.7, 0.1], [0.3, -4.9]])
    expected = [
        -25.0,  # all goals are 5 away
        -30.0 * 1.25 - (3.5**2 + 1.0),  # east is the nearest
        -30.0 * 0.26 - (0.09 + 0.01) + 10.0,
        -(0.09 + 0.01) + 10.0,
    ]
    np.testing.assert_allclose(rewards, expected)
    np.testing.assert_array_equal(goals, [-1, -1, 0, 3])


@pytest.mark.parametrize("index", range(4))
def test_every_goal_is_recognised(index):
    assert step_dynamics(GOALS[index] * 0.9, GOALS[index] * 0.05).goals == index


@pytest.mark.parametrize("threshold, reached", [(0.5, False), (1.0, True)])
def test_threshold_is_strict_and_an_argument(threshold, reached):
    transition = step_dynamics(np.array([4.5, 0.0]), np.zeros(2), threshold)
    assert (transition.goals == 0) is np.bool_(reached)
    assert transition.rewards == pytest.approx(-0.25 + 10.0 * reached)


def test_states_stay_in_the_square():
    next_states = step_dynamics(np.array([[6.5, -6.8]]), np.array([[1.0, -1.0]])).next_states
    np.testing.assert_array_equal(next_states, [[LIMIT, -LIMIT]])


def test_dynamics_broadcasts_and_has_the_symmetry_of_a_quarter_turn():
    rng = np.random.default_rng(0)
    states, actions = rng.uniform(-LIMIT, LIMIT, (7, 1, 2)), rng.uniform(-1.0, 1.0, (5, 2))
    here = step_dynamics(states, actions)
    assert here.next_states.shape == (7, 5, 2)
    assert here.rewards.shape == here.goals.shape == (7, 5)
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])  # counter-clockwise, for row vectors
    there = step_dynamics(states @ turn, actions @ turn)
    np.testing.assert_allclose(there.next_states, here.next_states @ turn)
    np.testing.assert_allclose(there.rewards, here.rewards)
    np.testing.assert_array_equal(there.goals, np.where(here.goals < 0, -1, (here.goals + 1) % 4))


# ------------------------------------------------------------------ environment


@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
@pytest.mark.parametrize("kwargs", [{}, dict(goal_threshold=1.0, start_std=0.1)])
def test_passes_both_environment_checkers(recwarn, render_mode, kwargs):
    env = gym.make("MultiGoal-v0", render_mode=render_mode, **kwargs)
    check_gymnasium(env.unwrapped)
    check_sb3(env, skip_render_check=False)
    assert [str(warning.message) for warning in recwarn] == []


def test_id_is_registered_by_the_import_and_registering_again_changes_nothing():
    code = "import gymnasium, sb3_energy.envs; gymnasium.make('MultiGoal-v0')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    spec = gym.registry["MultiGoal-v0"]
    sb3_energy.envs.register_envs()
    assert gym.registry["MultiGoal-v0"] is spec
    assert spec.max_episode_steps == HORIZON == 30


def test_environment_is_the_dynamics():
    env = gym.make("MultiGoal-v0")
    observation, info = env.reset(seed=0)
    np.testing.assert_array_equal(observation, [0.0, 0.0])
    assert info == {"goal": -1, "is_success": False}
    state = np.zeros(2)
    for _ in range(7):
        action = env.action_space.sample()
        observation, reward, terminated, truncated, info = env.step(action)
        expected = step_dynamics(state, action.astype(np.float64))
        state = expected.next_states
        np.testing.assert_allclose(observation, state, atol=1e-6)
        assert reward == pytest.approx(float(expected.rewards))
        assert (info["goal"], terminated, truncated) == (-1, False, False)


@pytest.mark.parametrize("index", range(4))
def test_walking_straight_ends_at_each_goal(index):
    env = gym.make("MultiGoal-v0")
    env.reset()
    for step in range(6):
        _, reward, terminated, _, info = env.step(GOALS[index] / 6.0)
        assert terminated == (step == 5)
    assert info == {"goal": index, "is_success": True}
    assert reward == pytest.approx(10.0 - ACTION_COST * (5.0 / 6.0) ** 2)


def test_horizon_truncates_and_does_not_terminate():
    env = gym.make("MultiGoal-v0")
    env.reset()
    ends = [env.step(np.zeros(2))[2:4] for _ in range(HORIZON)]
    assert ends == [(False, False)] * (HORIZON - 1) + [(False, True)]


def test_actions_outside_the_box_are_clipped():
    env = MultiGoalEnv()
    env.reset()
    observation, reward, *_ = env.step(np.array([3.0, -0.5]))
    np.testing.assert_array_equal(observation, [1.0, -0.5])
    assert reward == pytest.approx(-30.0 * 1.25 - (16.0 + 0.25))


def test_start_follows_the_seed_and_has_the_standard_deviation():
    env = MultiGoalEnv(start_std=0.1)
    first = env.reset(seed=3)[0]
    starts = np.stack([env.reset()[0] for _ in range(2000)])
    np.testing.assert_array_equal(env.reset(seed=3)[0], first)
    np.testing.assert_allclose(starts.std(axis=0), 0.1, rtol=0.06)
    np.testing.assert_allclose(starts.mean(axis=0), 0.0, atol=0.01)


def test_rendering_shows_where_the_point_is():
    env = MultiGoalEnv(render_mode="rgb_array")
    env.reset()
    frames = [env.render()]
    for _ in range(3):
        env.step(np.array([0.0, 1.0]))
        frames.append(env.render())
    assert all(frame.shape == (280, 280, 3) and frame.dtype == np.uint8 for frame in frames)
    point = np.array((255, 196, 0))
    rows = [np.argwhere((frame == point).all(-1)).mean(axis=0) for frame in frames]
    np.testing.assert_allclose(rows, [[139.5 - 20.0 * step, 139.5] for step in range(4)], atol=0.5)  # 20 pixels a unit, upward
    assert MultiGoalEnv().render() is None


def test_rendering_needs_no_graphics_library():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['matplotlib', 'pygame', 'PIL', 'cv2']))\n"  # None: importing it fails
        "import sb3_energy.envs.multi_goal as m; env = m.MultiGoalEnv(render_mode='rgb_array'); env.reset(); env.render()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        (dict(goal_threshold=0.0), ValueError, r"goal_threshold must lie in \(0, 5\), got 0.0"),
        (dict(goal_threshold=5.0), ValueError, r"goal_threshold must lie in \(0, 5\), got 5.0"),
        (dict(goal_threshold=float("nan")), ValueError, "goal_threshold must be finite, got nan"),
        (dict(goal_threshold="0.5"), TypeError, "goal_threshold must be a number, got '0.5'"),
        (dict(start_std=-0.1), ValueError, r"start_std must lie in \[0, 1\], got -0.1"),
        (dict(start_std=True), TypeError, "start_std must be a number, got True"),
        (dict(render_mode="human"), ValueError, r"render_mode must be None or one of \['rgb_array'\], got 'human'"),
    ],
)
def test_bad_arguments_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        MultiGoalEnv(**kwargs)


@pytest.mark.parametrize("action", [np.array([np.nan, 0.0]), np.zeros(3), np.zeros((1, 2))])
def test_bad_actions_are_refused(action):
    env = MultiGoalEnv()
    env.reset()
    with pytest.raises(ValueError, match="action must be 2 finite numbers"):
        env.step(action)


def test_nothing_goes_before_reset():
    with pytest.raises(ResetNeeded):
        MultiGoalEnv().step(np.zeros(2))
    with pytest.raises(ResetNeeded):
        MultiGoalEnv(render_mode="rgb_array").render()
