"""The environments and replay buffers of SB3's users."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_energy import EnergySAC


class Endless(gym.Env):
    """Pays the first coordinate of the action; never ends by itself."""

    def __init__(self, action_space, observation_space=None):
        self.action_space = action_space
        self.observation_space = observation_space or spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.actions = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert action.dtype == self.action_space.dtype
        assert self.action_space.contains(action), action
        self.actions.append(action)
        return self.observation_space.sample(), float(action.flat[0]), False, False, {}


def test_n_step_replay(make_model):
    model = make_model(n_steps=3, gamma=0.5).learn(30)
    assert isinstance(model.replay_buffer, NStepReplayBuffer) and model._n_updates == 10
    discounts = model.replay_buffer.sample(200).discounts
    assert set(discounts.flatten().tolist()) == {0.5, 0.25, 0.125}, "shorter at the end of the buffer"


@pytest.mark.parametrize("discount", [0.25, 0.0625])
def test_target_uses_the_discounts_of_the_batch(make_model, discount):
    model = make_model(n_steps=2, gamma=0.5, ent_coef=0.1, policy_kwargs=dict(target_aggregate="min")).learn(22)
    batch = model.replay_buffer.sample(16)
    targets = {}
    model.critic.td_loss = lambda obs, actions, target: targets.update(y=target) or target.mean().requires_grad_()
    th.manual_seed(0)
    _, next_draw = model.actor.draw(batch.observations, batch.next_observations)
    batch = batch._replace(discounts=th.full_like(batch.rewards, discount))
    model._update_critic(batch, next_draw, th.tensor(0.1), {"critic_loss": []})
    th.manual_seed(0)
    with th.no_grad():
        model.actor.action_log_prob(batch.observations)
        actions, log_prob = model.actor.action_log_prob(batch.next_observations)
        next_values = th.cat(model.critic_target(batch.next_observations, actions), 1).min(1, keepdim=True).values
    expected = batch.rewards + (1 - batch.dones) * discount * (next_values - 0.1 * log_prob.reshape(-1, 1))
    assert th.allclose(targets["y"], expected)


def test_gsde_is_refused_in_one_sentence(make_model):
    with pytest.raises(
        ValueError, match=r"^use_sde=True .* needs (EnergySAC with )?refiner='none', got '(mala|langevin|mppi)'$"
    ):
        make_model(use_sde=True)


def test_gsde_without_a_refiner():
    policy_kwargs = dict(refiner="none", net_arch=[16], log_std_init=-2, use_expln=True)
    settings = dict(use_sde=True, use_sde_at_warmup=True, sde_sample_freq=4, batch_size=16, learning_starts=20)
    model = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, **settings).learn(60)
    assert model._n_updates == 40
    assert th.isfinite(model.actor.get_std()).all()


def test_vec_normalize(make_model):
    """The buffer keeps what the environment said; batches are normalised by the newest statistics."""
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=1, seed=0), clip_obs=5.0)
    model = make_model(env=env).learn(60)
    assert model.get_vec_normalize_env() is env
    rewards = model.replay_buffer.rewards[:60]
    assert rewards.min() < -2.0, "original rewards are stored"
    seen = []
    td_loss = model.critic.td_loss
    model.critic.td_loss = lambda obs, actions, targets: seen.append(obs) or td_loss(obs, actions, targets)
    model.train(1, 32)
    original = model.replay_buffer.observations[:60, 0]
    normalized = env.normalize_obs(original)
    assert not np.allclose(original, normalized)
    differences = seen[0].unsqueeze(1) - th.as_tensor(normalized, dtype=th.float32)
    assert differences.abs().amax(dim=2).min(dim=1).values.max() < 1e-5, "each one is a row of the buffer, normalised"


def test_several_environments(make_model):
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.1 * np.ones(1))
    env = make_vec_env("Pendulum-v1", n_envs=3, seed=0)
    model = make_model(env=env, action_noise=noise, train_freq=4, gradient_steps=-1, refine_target=True).learn(60)
    assert isinstance(model.action_noise, VectorizedActionNoise)
    assert model.num_timesteps == 60
    assert model.replay_buffer.pos == 20
    assert model._n_updates == 48, "12 after each rollout, from the second one on"
    actions = model.replay_buffer.actions[8:20]
    assert len(np.unique(actions[:, :, 0].round(6))) > 30, "each environment gets actions of its own"


def test_environments_in_processes(make_model):
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=0, vec_env_cls=SubprocVecEnv)
    try:
        model = make_model(env=env).learn(30)
        assert model.num_timesteps == 30 and model._n_updates > 0
    finally:
        env.close()


def test_noise_stays_inside_the_box(make_model):
    env = Endless(spaces.Box(-1.0, 3.0, (2,), np.float32))
    noise = NormalActionNoise(np.zeros(2), 5.0 * np.ones(2))
    model = make_model(env=TimeLimit(env, 10), action_noise=noise).learn(40)
    assert np.abs(model.replay_buffer.actions).max() <= 1.0
    assert len(env.actions) == 40  # each of them inside its box: step() asserts it


def test_train_after_each_episode(make_model):
    model = make_model(train_freq=(2, "episode"), gradient_steps=-1, env=TimeLimit(Endless(spaces.Box(-1, 1, (1,))), 15))
    model.learn(90)
    assert model._episode_num == 6
    assert model._n_updates == 90, "30 updates after each two episodes"


@pytest.mark.parametrize("gradient_steps", [0, 3])
def test_gradient_steps(make_model, gradient_steps):
    model = make_model(train_freq=5, gradient_steps=gradient_steps).learn(40)
    assert model._n_updates == 4 * gradient_steps


@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Box(-1.0, 1.0, (2,), np.float64),
        spaces.Box(np.array([-0.1, -100.0, 5.0], np.float32), np.array([3.0, 0.0, 7.0], np.float32)),
        spaces.Box(-2.0, 5.0, (3, 2), np.float32),
    ],
    ids=["float64", "asymmetric", "matrix"],
)
def test_action_boxes(make_model, action_space):
    env = Endless(action_space)
    model = make_model(env=TimeLimit(env, 10), learning_starts=10).learn(16)
    assert len(env.actions) == 16
    for deterministic in (True, False):
        for batch in (1, 3):
            obs = np.stack([env.observation_space.sample() for _ in range(batch)])
            actions, _ = model.predict(obs, deterministic=deterministic)
            assert actions.shape == (batch, *action_space.shape)
            assert all(action_space.contains(action.astype(action_space.dtype)) for action in actions)


@pytest.mark.parametrize(
    "observation_space",
    [spaces.Box(-5.0, 3.0, (3,), np.float64), spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)],
    ids=["float64", "Discrete", "MultiDiscrete", "MultiBinary"],
)
def test_observation_spaces(make_model, observation_space):
    env = Endless(spaces.Box(-1.0, 1.0, (1,), np.float32), observation_space)
    model = make_model(env=TimeLimit(env, 10), learning_starts=10).learn(16)
    assert model._n_updates == 6
    assert env.action_space.contains(model.predict(observation_space.sample())[0])


def test_time_limits_are_no_ends(make_model):
    """What a time limit cuts off goes on being worth something: stored as a timeout, sampled as not done."""
    env = TimeLimit(Endless(spaces.Box(-1.0, 1.0, (1,), np.float32)), 5)
    model = make_model(env=env, learning_starts=10).learn(20)
    assert np.flatnonzero(model.replay_buffer.timeouts[:20]).tolist() == [4, 9, 14, 19]
    assert model.replay_buffer.sample(64).dones.max() == 0.0


@pytest.mark.filterwarnings("ignore:.*total number of bytes")
def test_optimize_memory_usage(make_model):
    memory = dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False))
    model = make_model(**memory, buffer_size=40).learn(60)
    assert model.replay_buffer.optimize_memory_usage and model.replay_buffer.full
    with pytest.warns(UserWarning, match="last trajectory in the replay buffer will be truncated"):
        model.learn(5)
    with pytest.raises(ValueError, match="handle_timeout_termination"):
        make_model(optimize_memory_usage=True)


def test_more_updates_than_steps(make_model):
    env = DummyVecEnv([lambda: TimeLimit(Endless(spaces.Box(-1.0, 1.0, (1,), np.float32)), 7) for _ in range(2)])
    model = make_model(env=env, learning_starts=10, train_freq=1, gradient_steps=2).learn(20)
    assert model._n_updates == 2 * 5
