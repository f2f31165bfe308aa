"""The N-dimensional particle: its dynamics, its expert's known numbers, many episodes at once and one after the other."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env as check_gymnasium
from stable_baselines3 import SAC
from stable_baselines3.common.env_checker import check_env as check_sb3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_energy.envs import ParticleExpert, ParticleGoalsEnv, draw_starts, run_episodes
from sb3_energy.envs.particle import HORIZON, POSITION_BOUNDS, VELOCITY_BOUNDS, Starts, Visits, move


def rng(seed=0):
    return np.random.default_rng(seed)


def expert_episodes(n_dims, n_episodes=1000, random_order=False, seed=0):
    starts = draw_starts(rng(seed), n_episodes, n_dims)
    return starts, run_episodes(ParticleExpert(n_dims, random_order, seed=1), starts, random_order)


def switch_steps(starts, episodes):
    """At which action the expert first goes for the second goal."""
    goes_second = (episodes.actions == starts.goals[:, None, 1].astype(np.float32)).all(axis=2)
    assert goes_second.any(axis=1).all()
    return goes_second.argmax(axis=1)


# ------------------------------------------------------------------ dynamics


def test_a_move_is_ten_euler_steps_with_the_old_velocity():
    position, velocity, action = 0.2, -0.4, 0.9
    found = move(np.array([[position]]), np.array([[velocity]]), np.array([[action]]))
    for _ in range(10):
        force = 10.0 * (action - position) - 5.0 * velocity
        position, velocity = position + 0.005 * velocity, velocity + 0.005 * force
    np.testing.assert_allclose(np.ravel(found), [position, velocity], rtol=1e-14)


def test_dimensions_do_not_meet():
    positions, velocities, actions = rng().random((3, 5, 4))
    together = move(positions, velocities, actions)
    for j in range(4):
        alone = move(positions[:, j : j + 1], velocities[:, j : j + 1], actions[:, j : j + 1])
        np.testing.assert_array_equal(np.concatenate(alone, axis=1), np.stack([part[:, j] for part in together], axis=1))


def test_no_set_points_lead_out_of_the_observations_bounds():
    """The system is linear: what set-points within ±.5 of the middle can do at most is the sum of its impulse response."""
    position, velocity = move(np.zeros((1, 1)), np.zeros((1, 1)), np.ones((1, 1)))
    forced, free = np.zeros(2), np.array([0.5, 0.0])
    at_start = np.full((1, 1), 0.5), np.zeros((1, 1))
    for _ in range(HORIZON):
        forced += 0.5 * np.abs([position.item(), velocity.item()])
        position, velocity = move(position, velocity, np.zeros((1, 1)))
        at_start = move(*at_start, np.zeros((1, 1)))
        free = np.maximum(free, np.abs(np.ravel(at_start)))
    most = forced + free
    np.testing.assert_allclose(most, [1.01, 2.06], atol=0.01)
    assert POSITION_BOUNDS[0] < 0.5 - most[0] and 0.5 + most[0] < POSITION_BOUNDS[1]
    assert VELOCITY_BOUNDS[0] < -most[1] and most[1] < VELOCITY_BOUNDS[1]


# ------------------------------------------------------------------ the expert


@pytest.mark.parametrize("n_dims, switch_step", [(1, 21.0), (2, 23.1), (4, 24.1), (8, 24.8), (16, 25.0), (32, 25.0)])
def test_the_expert_always_succeeds_and_turns_half_way(n_dims, switch_step):
    starts, episodes = expert_episodes(n_dims)
    assert episodes.successes.mean() == 1.0
    assert switch_steps(starts, episodes).mean() == pytest.approx(switch_step, abs=0.5)


def test_the_expert_is_checked_before_it_acts_and_never_turns_back():
    expert = ParticleExpert(1)
    first, second = 0.7, 0.1

    def observation(*positions):
        frame = [[position, 0.0, first, second] for position in positions]
        return np.concatenate([np.zeros((len(frame), 4)), frame], axis=1).astype(np.float32)

    actions, state = expert.predict(observation(0.68, 0.695), None, np.ones(2, dtype=bool))
    np.testing.assert_allclose(actions[:, 0], [first, second])
    actions, state = expert.predict(observation(0.2, 0.2), state, np.zeros(2, dtype=bool))
    np.testing.assert_allclose(actions[:, 0], [first, second])
    actions, state = expert.predict(observation(0.709, 0.2), state)
    np.testing.assert_allclose(actions[:, 0], [second, second])
    actions, state = expert.predict(observation(0.2, 0.2), state, np.array([True, False]))
    np.testing.assert_allclose(actions[:, 0], [first, second])


def test_one_observation_is_as_one_of_many():
    expert, many = ParticleExpert(3), rng().random((4, 24)).astype(np.float32)
    actions, _ = expert.predict(many)
    single, single_state = expert.predict(many[2])
    np.testing.assert_array_equal(single, actions[2])
    assert single.shape == (3,) and [part.shape for part in single_state] == [(1,), (1,)]
    again, _ = expert.predict(many[2], single_state, np.array([False]))
    np.testing.assert_array_equal(again, single)


def test_a_drawn_order_goes_for_either_goal_first_and_stays_with_it():
    starts, episodes = expert_episodes(2, n_episodes=2000, random_order=True)
    firsts = np.array([(episodes.actions[:, 0] == starts.goals[:, i].astype(np.float32)).all(axis=1) for i in (0, 1)])
    assert firsts.sum(axis=0).max() == 1 and firsts[0].mean() == pytest.approx(0.5, abs=0.04)
    assert episodes.successes.mean() == 1.0
    n_changes = (np.diff(episodes.actions, axis=1) != 0.0).any(axis=2).sum(axis=1)
    assert (n_changes == 1).all()
    apart = np.linalg.norm(starts.goals[:, 0] - starts.goals[:, 1], axis=1) > 0.1
    np.testing.assert_array_equal(episodes.visits.successes()[apart], firsts[0][apart])


def test_the_seed_decides_the_order():
    starts = draw_starts(rng(), 50, 1)
    runs = [run_episodes(ParticleExpert(1, True, seed), starts, True).actions for seed in (3, 3, 4)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: ParticleExpert(0), ValueError, "n_dims must be at least 1, got 0"),
        (lambda: ParticleExpert(33), ValueError, "n_dims must be at most 32, got 33"),
        (lambda: ParticleExpert(2.0), TypeError, "n_dims must be an integer, got 2.0"),
        (lambda: ParticleExpert(2, 1), TypeError, "random_order must be True or False, got 1"),
        (lambda: ParticleExpert(2, seed=-1), ValueError, "seed must be at least 0, got -1"),
        (lambda: ParticleExpert(2).predict(np.zeros(15)), ValueError, r"observation must have shape \(n, 16\), got \(15,\)"),
        (
            lambda: ParticleExpert(2).predict(np.zeros((2, 16)), None, np.ones(3, dtype=bool)),
            ValueError,
            r"episode_start must have shape \(2,\), one for each observation, got \(3,\)",
        ),
        (
            lambda: ParticleExpert(1).predict(np.zeros((2, 8)), ParticleExpert(1).predict(np.zeros((3, 8)))[1]),
            ValueError,
            "state must be of 2 observations, got one of 3",
        ),
        (lambda: draw_starts(rng(), 0, 1), ValueError, "n_episodes must be at least 1, got 0"),
        (lambda: ParticleGoalsEnv(n_dims=40), ValueError, "n_dims must be at most 32, got 40"),
        (lambda: ParticleGoalsEnv(random_order="yes"), TypeError, "random_order must be True or False, got 'yes'"),
        (lambda: ParticleGoalsEnv(render_mode="human"), ValueError, r"render_mode must be None or one of \['rgb_array'\]"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ------------------------------------------------------------------ success


def test_success_needs_both_goals_and_the_end_at_the_second():
    nearest = np.array([[0.04, 0.04], [0.05, 0.04], [0.04, 0.06], [0.04, 0.04], [0.04, 0.01]])
    final = np.array([[0.9, 0.04], [0.9, 0.04], [0.9, 0.06], [0.04, 0.9], [0.9, 0.9]])
    visits = Visits(nearest, final)
    assert visits.successes().tolist() == [True, False, False, False, False]
    assert visits.successes(random_order=True).tolist() == [True, False, False, True, False]


class Still:
    """Stays where it is."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        n_dims = observation.shape[1] // 8
        return observation[:, 4 * n_dims : 5 * n_dims], None


def test_the_start_does_not_count_and_standing_still_fails():
    far = Starts(np.full((1, 1), 0.5), np.array([[[0.5], [0.9]]]))
    episodes = run_episodes(Still(), far)
    np.testing.assert_allclose(episodes.visits.nearest, [[0.0, 0.4]], atol=1e-6)
    assert not episodes.successes.any()


# ------------------------------------------------------------------ many episodes at once, and the environment


@pytest.mark.parametrize("random_order", [False, True])
def test_environments_one_after_the_other_are_the_episodes_of_arrays(random_order):
    env = gym.make("ParticleGoals-v0", n_dims=3, random_order=random_order)
    starts = draw_starts(np.random.default_rng(7), 1, 3)
    env.reset(seed=0)
    env.unwrapped.np_random = np.random.default_rng(7)
    observation, _ = env.reset()
    actions = rng(2).uniform(-0.2, 1.2, (HORIZON, 3))

    class Replay:
        step = -1

        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            self.step += 1
            return actions[None, self.step], None

    episodes = run_episodes(Replay(), starts, random_order)
    transitions = episodes.transitions()
    for k, action in enumerate(actions):
        np.testing.assert_array_equal(observation, transitions["observations"][k])
        observation, reward, terminated, truncated, info = env.step(action.astype(np.float32))
        np.testing.assert_array_equal(observation, transitions["next_observations"][k])
        assert (reward, terminated, truncated) == (
            transitions["rewards"][k],
            transitions["terminations"][k],
            transitions["truncations"][k],
        )
        assert truncated == (k == HORIZON - 1)
    np.testing.assert_array_equal([info["nearest_first"], info["nearest_second"]], episodes.visits.nearest[0])
    assert info["final_second"] == episodes.visits.final[0, 1]
    np.testing.assert_array_equal(observation[:12], episodes.observations[0, -2, 12:])


@pytest.mark.parametrize("random_order", [False, True])
def test_the_expert_is_evaluated_as_a_model_in_several_environments(random_order):
    envs = make_vec_env("ParticleGoals-v0", n_envs=3, seed=0, env_kwargs=dict(n_dims=2, random_order=random_order))
    expert = envs.envs[0].unwrapped.expert(seed=0)
    returns, lengths = evaluate_policy(expert, envs, n_eval_episodes=12, return_episode_rewards=True)
    assert returns == [1.0] * 12 and lengths == [HORIZON] * 12


def test_a_model_of_stable_baselines3_runs_in_many_episodes():
    model = SAC("MlpPolicy", "ParticleGoals-v0", policy_kwargs=dict(net_arch=[8]), seed=0, device="cpu")
    episodes = run_episodes(model, draw_starts(rng(), 20, 2))
    assert episodes.observations.shape == (20, HORIZON + 1, 16) and episodes.actions.shape == (20, HORIZON, 2)
    assert model.observation_space.contains(episodes.observations[3, 7])
    expected, _ = model.predict(episodes.observations[:, 4], deterministic=True)
    np.testing.assert_allclose(episodes.actions[:, 4], expected, atol=1e-6)


def test_transitions_follow_each_other():
    _, episodes = expert_episodes(2, n_episodes=5)
    columns = episodes.transitions()
    assert {len(column) for column in columns.values()} == {5 * HORIZON}
    ends = np.flatnonzero(columns["truncations"])
    assert ends.tolist() == [HORIZON * (i + 1) - 1 for i in range(5)] and not columns["terminations"].any()
    goes_on = np.setdiff1d(np.arange(5 * HORIZON - 1), ends)
    np.testing.assert_array_equal(columns["next_observations"][goes_on], columns["observations"][goes_on + 1])
    assert columns["rewards"].sum() == 5.0 and columns["rewards"][ends].tolist() == [1.0] * 5


@pytest.mark.parametrize("bad", [np.zeros((2, 1)), np.full((3, 1), np.nan)])
def test_bad_actions_of_a_model_are_refused(bad):
    class Bad:
        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return bad, None

    with pytest.raises(ValueError, match=r"model.predict must return \(3, 1\) finite actions"):
        run_episodes(Bad(), draw_starts(rng(), 3, 1))


# ------------------------------------------------------------------ environment


@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
@pytest.mark.parametrize("kwargs", [{}, dict(n_dims=1), dict(n_dims=32, random_order=True)])
def test_passes_both_environment_checkers(recwarn, render_mode, kwargs):
    env = gym.make("ParticleGoals-v0", render_mode=render_mode, **kwargs)
    check_gymnasium(env.unwrapped)
    check_sb3(env, skip_render_check=False)
    # SB3 recommends actions around 0; set-points lie in the cube that positions lie in
    messages = [str(warning.message) for warning in recwarn if "symmetric and normalized" not in str(warning.message)]
    assert messages == []


def test_id_is_registered_by_the_import():
    code = "import gymnasium, sb3_energy.envs; gymnasium.make('ParticleGoals-v0', n_dims=3)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert gym.registry["ParticleGoals-v0"].max_episode_steps == HORIZON == 50


def test_episodes_follow_the_seed():
    env = ParticleGoalsEnv(2)
    first, info = env.reset(seed=3)
    np.testing.assert_array_equal(first[:8], first[8:])
    assert first[2:4].tolist() == [0.0, 0.0] and info["is_success"] is False
    other, _ = env.reset()
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(env.reset(seed=3)[0], first)


def test_nothing_goes_before_reset_or_after_the_end():
    with pytest.raises(ResetNeeded):
        ParticleGoalsEnv().step(np.zeros(2))
    with pytest.raises(ResetNeeded):
        ParticleGoalsEnv(render_mode="rgb_array").render()
    env = ParticleGoalsEnv()
    env.reset()
    ends = [env.step(np.zeros(2))[2:4] for _ in range(HORIZON)]
    assert ends == [(False, False)] * (HORIZON - 1) + [(False, True)]
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2))


@pytest.mark.parametrize("action", [np.array([np.nan, 0.0]), np.zeros(3), np.zeros((1, 2))])
def test_bad_actions_are_refused(action):
    env = ParticleGoalsEnv()
    env.reset()
    with pytest.raises(ValueError, match="action must be 2 finite numbers"):
        env.step(action)


@pytest.mark.parametrize("n_dims", [1, 2, 5])
def test_rendering_shows_where_the_particle_is(n_dims):
    env = ParticleGoalsEnv(n_dims, render_mode="rgb_array")
    observation, _ = env.reset(seed=1)
    for _ in range(3):
        observation, *_ = env.step(np.ones(n_dims))
    frame = env.render()
    assert frame.shape == (280, 280, 3) and frame.dtype == np.uint8
    row, column = np.argwhere((frame == (255, 196, 0)).all(-1)).mean(axis=0)
    position = [*observation[4 * n_dims : 5 * n_dims].tolist(), 0.5]
    scale = 280 / 1.5  # pixels a unit
    assert column == pytest.approx(139.5 + scale * (position[0] - 0.5), abs=1.0)
    assert row == pytest.approx(139.5 - scale * (position[1] - 0.5), abs=1.0)
    assert ParticleGoalsEnv().render() is None
