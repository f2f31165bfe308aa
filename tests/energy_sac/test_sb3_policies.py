"""The policies and networks of SB3's users: Mlp, Cnn and MultiInput, hindsight replay, dropout and batch norm."""

from functools import partial

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
from stable_baselines3.sac.policies import Actor
from torch import nn

from sb3_energy import PGAC, EnergySAC
from sb3_energy.energy_sac import MlpPolicy

SMALL_CNN = dict(features_extractor_class=NatureCNN, features_extractor_kwargs=dict(features_dim=8))


def image_env(channel_first=False):
    return FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=False, channel_first=channel_first)


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before, module):
    return {name for name, value in module.state_dict().items() if not th.equal(before[name], value)}


def test_mlp(make_model, algorithm):
    model = make_model()
    before = snapshot(model.policy)
    model.learn(60)
    fixed = {"temperature"} if algorithm is PGAC else set()
    assert changed(before, model.policy) == set(before) - fixed, "everything learns, SAC's temperature included"
    assert model._n_updates == 40
    mean_reward, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=1)
    assert -2000 < mean_reward < 0


@pytest.mark.parametrize("share", [False, True], ids=["own extractors", "shared extractor"])
def test_cnn(make_model, share):
    """Images in the last axis are transposed, extracted once, and the actor's extractor learns; the target's follows."""
    policy_kwargs = SMALL_CNN | dict(share_features_extractor=share)
    model = make_model("CnnPolicy", image_env(), policy_kwargs, batch_size=8, learning_starts=10, buffer_size=50)
    assert model.observation_space.shape == (1, 40, 40)
    assert (model.actor.features_extractor is model.critic.features_extractor) == share
    before, target = snapshot(model.actor.features_extractor), snapshot(model.critic_target.features_extractor)
    model.learn(14)
    assert changed(before, model.actor.features_extractor) == set(before)
    assert changed(target, model.critic_target.features_extractor) == set(target)
    obs = model.env.reset()
    for deterministic in (True, False):
        action, _ = model.predict(obs, deterministic=deterministic)
        assert action.shape == (1, *model.action_space.shape) and model.action_space.contains(action[0])


def test_cnn_of_stacked_frames(make_model):
    env = VecFrameStack(DummyVecEnv([image_env]), n_stack=4)
    model = make_model("CnnPolicy", env, SMALL_CNN, batch_size=8, learning_starts=10, buffer_size=50).learn(14)
    assert model.observation_space.shape == (4, 40, 40)
    assert model._n_updates == 4


def test_multi_input(make_model):
    env = SimpleMultiObsEnv(num_col=2, num_row=2, discrete_actions=False, channel_last=False)
    policy_kwargs = dict(features_extractor_kwargs=dict(cnn_output_dim=8))
    model = make_model("MultiInputPolicy", env, policy_kwargs, batch_size=8, learning_starts=10, buffer_size=50)
    before = snapshot(model.actor)
    model.learn(14)
    assert changed(before, model.actor) == set(before)
    action, _ = model.predict(env.observation_space.sample())
    assert env.action_space.contains(action)


def her_env(image):
    return BitFlippingEnv(n_bits=3, continuous=True, image_obs_space=image)


@pytest.mark.parametrize("image", [False, True], ids=["bits", "images"])
def test_hindsight_replay_with_a_saved_buffer(make_model, algorithm, tmp_path, image):
    policy_kwargs = dict(features_extractor_kwargs=dict(cnn_output_dim=8)) if image else {}
    model = make_model(
        "MultiInputPolicy",
        her_env(image),
        policy_kwargs,
        batch_size=8,
        buffer_size=100,
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs=dict(n_sampled_goal=2, goal_selection_strategy="future"),
    ).learn(30)
    assert model._n_updates == 10
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match="You must pass an environment when using `HerReplayBuffer`"):
        algorithm.load(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=her_env(image))
    loaded.load_replay_buffer(tmp_path / "buffer")
    for key, values in model.replay_buffer.observations.items():
        assert np.array_equal(loaded.replay_buffer.observations[key], values)
    loaded.learn(12, reset_num_timesteps=False)
    assert loaded.num_timesteps == 42 and loaded._n_updates == 22


@pytest.mark.parametrize("net_arch", [[], [16, 8], dict(pi=[8], qf=[4, 4]), dict(pi=[], qf=[4])], ids=str)
@pytest.mark.parametrize("backbone", ["plain", "layer_norm"])
def test_net_arch(make_model, net_arch, backbone):
    model = make_model(policy_kwargs=dict(net_arch=net_arch, backbone=backbone)).learn(26)
    pi, qf = (net_arch["pi"], net_arch["qf"]) if isinstance(net_arch, dict) else (net_arch, net_arch)
    widths = [module.out_features for module in model.actor.latent_pi.modules() if isinstance(module, nn.Linear)]
    assert widths == pi
    widths = [module.out_features for module in model.critic.q_networks[0].modules() if isinstance(module, nn.Linear)]
    assert widths == [*qf, 1]


def test_optimizer_and_activation(make_model):
    policy_kwargs = dict(optimizer_class=th.optim.SGD, optimizer_kwargs=dict(momentum=0.5), activation_fn=nn.Tanh)
    model = make_model(policy_kwargs=policy_kwargs).learn(24)
    for module in (model.actor, model.critic):
        assert isinstance(module.optimizer, th.optim.SGD) and module.optimizer.defaults["momentum"] == 0.5
        assert any(isinstance(part, nn.Tanh) for part in module.modules())


class DroppingExtractor(BaseFeaturesExtractor):
    """Batch norm and dropout, as in SB3's own tests of training and evaluation mode."""

    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=4)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU())

    def forward(self, observations):
        return self.layers(observations)


def batch_norm_statistics(module):
    return {name: value.clone() for name, value in module.state_dict().items() if "running" in name}


def test_dropout_and_batch_norm_are_off_while_predicting(make_model):
    """Also inside the energy: a critic in training mode would give another action at each call."""
    model = make_model(policy_kwargs=dict(features_extractor_class=DroppingExtractor)).learn(40)
    model.policy.set_training_mode(True)  # predict() itself must switch it off
    statistics = batch_norm_statistics(model.policy)
    obs = np.ones((5, 3), dtype=np.float32)
    first, _ = model.predict(obs, deterministic=True)
    second, _ = model.predict(obs, deterministic=True)
    assert np.array_equal(first, second)
    assert not model.critic.training and not model.actor.training
    after = batch_norm_statistics(model.policy)
    assert statistics and all(th.equal(statistics[name], after[name]) for name in statistics)


def test_dropout_and_batch_norm_are_on_while_learning(make_model):
    model = make_model(policy_kwargs=dict(features_extractor_class=DroppingExtractor))
    actor, critic = batch_norm_statistics(model.actor), batch_norm_statistics(model.critic)
    target = batch_norm_statistics(model.critic_target)
    model.learn(30)
    assert all(not th.equal(actor[name], value) for name, value in batch_norm_statistics(model.actor).items())
    assert all(not th.equal(critic[name], value) for name, value in batch_norm_statistics(model.critic).items())
    # the target's own are copied from the critic, exactly (GH issue #996 of SB3)
    after, copied = batch_norm_statistics(model.critic), batch_norm_statistics(model.critic_target)
    assert all(not th.equal(target[name], value) for name, value in copied.items())
    assert all(th.equal(after[name], value) for name, value in copied.items())


def test_the_target_stays_in_evaluation_mode(make_model):
    model = make_model(policy_kwargs=dict(features_extractor_class=DroppingExtractor), refine_target=True).learn(30)
    model.policy.set_training_mode(True)
    model.train(1, 16)
    assert model.actor.training and model.critic.training and not model.critic_target.training


def momentum_free(parameters, lr):
    return th.optim.SGD(parameters, lr=lr)


@pytest.mark.parametrize(
    "policy_kwargs",
    [dict(optimizer_class=partial(th.optim.Adam, eps=1e-5)), dict(optimizer_class=momentum_free)],
    ids=["partial", "function"],
)
def test_what_makes_an_optimizer_need_not_be_a_class(make_model, policy_kwargs):
    model = make_model(policy_kwargs=policy_kwargs)
    before = snapshot(model.actor)
    model.learn(26)
    assert changed(before, model.actor)


class OneBuffer(ReplayBuffer):
    """Of the user's own, which is no DictReplayBuffer and may be for dictionaries."""


def test_a_buffer_of_ones_own_is_not_told_what_it_is_for():
    env = SimpleMultiObsEnv(num_col=2, num_row=2, discrete_actions=False, channel_last=False)
    with pytest.raises((TypeError, ValueError, AttributeError)) as caught:  # of the buffer, which takes no dictionary
        SAC("MultiInputPolicy", env, replay_buffer_class=OneBuffer, buffer_size=10)
    with pytest.raises(type(caught.value)):
        EnergySAC("MultiInputPolicy", env, replay_buffer_class=OneBuffer, buffer_size=10)


class SB3Critic(MlpPolicy):
    def make_critic(self, features_extractor=None):
        return ContinuousCritic(**self._update_features_extractor(self.critic_kwargs, features_extractor))


class SB3Actor(MlpPolicy):
    def make_actor(self, features_extractor=None):
        return Actor(**self._update_features_extractor(self.actor_kwargs, features_extractor))


@pytest.mark.parametrize("policy, name", [(SB3Critic, "make_critic"), (SB3Actor, "make_actor")])
def test_networks_that_cannot_be_refined_are_refused_at_once(policy, name):
    with pytest.raises(TypeError, match=rf"^{name} of {policy.__name__} must return a \w+ or a subclass of it, got"):
        EnergySAC(policy, "Pendulum-v1")
