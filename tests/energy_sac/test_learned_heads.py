"""Refiners that learn: their heads train beside actor and critic, come back with the model and cost what they should."""

from collections import defaultdict

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn

from sb3_energy import EnergySAC
from sb3_energy.energy_sac import MlpPolicy
from sb3_energy.envs import MultiGoalEnv
from tests.energy_sac.test_sb3_saving import assert_acts_the_same, assert_same_tensors, tensors

LEARN = ("flow", "mean_flow", "autoregressive_derivative_free")
each_refiner = pytest.mark.parametrize("refiner", LEARN)
OBS = np.random.default_rng(0).uniform(-1, 1, size=(6, 2)).astype(np.float32)


def make(refiner, env=None, policy="MlpPolicy", policy_kwargs=None, **kwargs):
    settings = dict(learning_starts=20, batch_size=16, buffer_size=500, seed=0, device="cpu") | kwargs
    policy_kwargs = dict(net_arch=[16], refiner=refiner) | (policy_kwargs or {})
    return EnergySAC(policy, MultiGoalEnv() if env is None else env, policy_kwargs=policy_kwargs, **settings)


def parameters(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def logged(model):
    records, record = {}, model.logger.record
    model.logger.record = lambda key, value, *args, **kwargs: (
        records.update({key: value}) or record(key, value, *args, **kwargs)
    )
    return records


@each_refiner
def test_the_head_learns(refiner):
    model = make(refiner).learn(25)
    before, records = parameters(model.policy.head), logged(model)
    model.train(3, 16)
    assert before and all(not th.equal(before[name], value) for name, value in parameters(model.policy.head).items())
    assert np.isfinite(records["train/head_loss"]) and records["train/head_loss"] > 0.0
    if refiner != "autoregressive_derivative_free":
        assert 1.0 <= records["train/head_effective_sample_size"] <= 64.0
    head = {id(parameter) for parameter in model.policy.head.parameters()}
    for optimizer in (model.actor.optimizer, model.critic.optimizer):
        assert not head & {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert head == {id(p) for group in model.policy.head.optimizer.param_groups for p in group["params"]}


@each_refiner
def test_its_loss_leaves_actor_and_critic_alone(refiner):
    model = make(refiner).learn(25)
    others = [*model.actor.parameters(), *model.critic.parameters(), *model.critic_target.parameters()]
    for parameter in others:
        parameter.grad = th.ones_like(parameter)
    before = [parameter.detach().clone() for parameter in others]
    head = parameters(model.policy.head)
    model.head_learner.step(model.policy, model.replay_buffer.sample(16), defaultdict(list))
    assert all(th.equal(parameter.grad, th.ones_like(parameter)) for parameter in others)
    assert all(th.equal(parameter, old) for parameter, old in zip(others, before, strict=True))
    assert any(not th.equal(head[name], value) for name, value in parameters(model.policy.head).items())


@each_refiner
def test_its_optimiser_follows_the_learning_rate_schedule(refiner):
    model = make(refiner, learning_rate=lambda remaining: 1e-3 * remaining).learn(50)
    rate = model.actor.optimizer.param_groups[0]["lr"]
    assert model.policy.head.optimizer.param_groups[0]["lr"] == rate < 5e-4


@each_refiner
def test_everything_comes_back_and_learns_on(refiner, tmp_path):
    model = make(refiner, learning_rate=1e-2, refine_target=refiner == "mean_flow").learn(40)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = EnergySAC.load(tmp_path / "model", env=model.get_env())
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.set_logger(model.logger)
    before = tensors(model)
    assert len([name for name in before if name.startswith("policy.head.optimizer")]) > 5
    assert len([name for name in before if name.startswith("policy/head.")]) > 3
    assert_same_tensors(before, tensors(loaded))
    assert_acts_the_same(model, loaded, OBS)
    for one in (model, loaded):
        one.set_random_seed(1)
        one.train(5, 16)
    after = tensors(model)
    assert_same_tensors(after, tensors(loaded))
    assert not any(th.equal(before[name], after[name]) for name in before if name.startswith("policy.head.optimizer/"))


@each_refiner
def test_the_policy_alone_acts_the_same(refiner, tmp_path):
    head_kwargs = dict(net_arch=[8], backbone="plain", activation_fn=nn.Tanh)
    model = make(refiner, learning_rate=1e-2, policy_kwargs=dict(head_kwargs=head_kwargs)).learn(40)
    model.policy.save(tmp_path / "policy.pth")
    policy = MlpPolicy.load(tmp_path / "policy.pth")
    assert policy._get_constructor_parameters()["head_kwargs"] == head_kwargs
    assert_acts_the_same(model, policy, OBS)


@each_refiner
@pytest.mark.parametrize("share", [False, True], ids=["own extractors", "shared extractor"])
def test_images(refiner, share):
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=False)
    env.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    extractor = dict(features_extractor_class=NatureCNN, features_extractor_kwargs=dict(features_dim=8))
    policy_kwargs = extractor | dict(share_features_extractor=share)
    model = make(refiner, env, "CnnPolicy", policy_kwargs, batch_size=8, learning_starts=10, buffer_size=50).learn(13)
    assert model._n_updates == 3
    for deterministic in (False, True):
        action, _ = model.predict(model.env.reset(), deterministic=deterministic)
        assert model.action_space.contains(action[0])


@each_refiner
def test_dictionaries(refiner):
    env = SimpleMultiObsEnv(num_col=2, num_row=2, discrete_actions=False, channel_last=False)
    policy_kwargs = dict(features_extractor_kwargs=dict(cnn_output_dim=8))
    model = make(refiner, env, "MultiInputPolicy", policy_kwargs, batch_size=8, learning_starts=10, buffer_size=50).learn(13)
    assert model._n_updates == 3
    action, _ = model.predict(env.observation_space.sample())
    assert env.action_space.contains(action)


@each_refiner
def test_one_coordinate(refiner, tmp_path):
    """It has no prefix, and where there is nothing to learn there is no optimiser to save."""
    model = make(refiner, "Pendulum-v1").learn(24)
    learns = refiner != "autoregressive_derivative_free"
    assert hasattr(model.policy.head, "optimizer") == learns == bool(parameters(model.policy.head))
    model.save(tmp_path / "model")
    loaded = EnergySAC.load(tmp_path / "model", env=model.get_env())
    assert_same_tensors(tensors(model), tensors(loaded))
    loaded.learn(24, reset_num_timesteps=False)


def counted(model):
    """How often the head's velocity and the critics are evaluated."""
    calls = {"velocity": 0, "critic": 0}
    velocity, evaluate = model.policy.head.velocity, model.critic.evaluate

    def count(*args):
        calls["velocity"] += 1

    def counted_evaluate(*args, **kwargs):
        calls["critic"] += 1
        return evaluate(*args, **kwargs)

    velocity.register_forward_hook(count)
    model.critic.evaluate = counted_evaluate
    return calls


@pytest.mark.parametrize(
    "refiner, policy_kwargs, n_evaluations",
    [
        ("mean_flow", {}, 1),
        ("mean_flow", dict(refiner_steps=3), 3),
        ("flow", dict(refiner_kwargs=dict(solver="euler"), refiner_steps=2), 2),
        ("flow", {}, 8),
    ],
)
def test_acting_with_a_flow_costs_its_network_and_no_critic(refiner, policy_kwargs, n_evaluations):
    model = make(refiner, policy_kwargs=policy_kwargs).learn(22)
    calls = counted(model)
    model._sample_action(0, n_envs=1)
    assert calls == {"velocity": n_evaluations, "critic": 0}
    model.predict(OBS)
    assert calls == {"velocity": 2 * n_evaluations, "critic": 0}
    model.predict(OBS, deterministic=True)
    assert calls["critic"] > 0, "the best of several needs energies"


ERRORS = [
    (dict(refiner="langevin", head_kwargs={}), ValueError, "head_kwargs needs a refiner that learns, such as 'flow'"),
    (dict(refiner="flow", head_kwargs=[8]), TypeError, r"head_kwargs must be a dict, got \[8\]"),
    (dict(refiner="flow", head_kwargs=dict(same_fraction=0.5)), TypeError, "head_kwargs .* among .*, got .'same_fraction'"),
    (dict(refiner="flow", head_kwargs=dict(two_times=True)), TypeError, "head_kwargs .* among .*, got .'two_times'"),
    (dict(refiner="flow", head_kwargs=dict(gated="no")), TypeError, "gated must be True or False, got 'no'"),
    (dict(refiner="mean_flow", head_kwargs=dict(n_frequencies=-1)), ValueError, "n_frequencies must be .*, got -1"),
    (dict(refiner="mean_flow", head_kwargs=dict(same_fraction=1.0)), ValueError, r"same_fraction must lie in \(0, 1\), got 1"),
    (dict(refiner="mean_flow", head_kwargs=dict(same_fraction="a")), TypeError, "same_fraction must be a number, got 'a'"),
    (dict(refiner="mean_flow", head_kwargs=dict(backbone="resnet")), ValueError, "backbone must be one of .*, got 'resnet'"),
    (dict(refiner="flow", initial_particles="mixture"), ValueError, "initial_particles must be 'base' with refiner='flow'"),
    (dict(refiner="flow", precondition=True), ValueError, "precondition must be False with refiner='flow'"),
    (dict(refiner="mean_flow", trust_region=1.0), ValueError, "trust_region must be None with refiner='mean_flow'"),
    (dict(refiner="mean_flow", box="reflect"), ValueError, "box must be 'tanh' with refiner='mean_flow'"),
    (dict(refiner="flow", tolerance=0.1), ValueError, "tolerance needs a refiner whose steps descend the energy, got 'flow'"),
    (dict(refiner="flow", refiner_kwargs=dict(solver="ab2")), ValueError, "solver must be one of .*, got 'ab2'"),
]


@pytest.mark.parametrize("policy_kwargs, error, match", ERRORS, ids=lambda value: str(value)[:60])
def test_policy_kwargs_are_refused_in_one_sentence(policy_kwargs, error, match):
    with pytest.raises(error, match=match) as caught:
        make(policy_kwargs["refiner"], policy_kwargs=policy_kwargs)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


TRAINING_ERRORS = [
    ("langevin", dict(n_points=2), ValueError, "head_training_kwargs needs a refiner that learns, such as 'flow', got"),
    ("flow", dict(n_point=2), TypeError, r"head_training_kwargs of HeadTraining must be among .*, got \['n_point'\]"),
    ("flow", [2], TypeError, r"head_training_kwargs must be a dict .*, got \[2\]"),
    ("flow", dict(n_candidates=7), ValueError, "n_candidates must be at least 8, got 7"),
]


@pytest.mark.parametrize("refiner, kwargs, error, match", TRAINING_ERRORS, ids=str)
def test_head_training_kwargs_are_refused_in_one_sentence(refiner, kwargs, error, match):
    with pytest.raises(error, match=match) as caught:
        make(refiner, head_training_kwargs=kwargs)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_what_a_flow_takes_may_be_said():
    said = dict(initial_particles="base", precondition=False, box="tanh")
    assert make("flow", policy_kwargs=said).policy.refinement == make("flow").policy.refinement


@pytest.mark.parametrize("n_observations, expected", [(4, 4), (64, 16)])
def test_a_head_learns_at_a_part_of_the_batch(n_observations, expected):
    training = dict(n_observations=n_observations, n_candidates=8, n_points=3)
    model = EnergySAC(
        "MlpPolicy",
        "Pendulum-v1",
        policy_kwargs=dict(refiner="flow", net_arch=[16]),
        head_training_kwargs=training,
        learning_starts=20,
        batch_size=16,
        seed=0,
    ).learn(21)
    sizes, velocity = [], model.policy.head.velocity.forward

    def counted(features, x, *times):
        sizes.append((len(features), x.shape[1]))
        return velocity(features, x, *times)

    model.policy.head.velocity.forward = counted
    model.head_learner.step(model.policy, model.replay_buffer.sample(16), {"head_effective_sample_size": [], "head_loss": []})
    assert sizes == [(expected, 3)]


@pytest.mark.parametrize("refiner", ["flow", "mean_flow"])
def test_a_drawn_action_does_not_encode_for_the_critic(refiner):
    model = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(refiner=refiner, net_arch=[16]), buffer_size=10, seed=0)
    encoded, encode = [], model.critic.encode
    model.critic.encode = lambda obs: encoded.append(len(obs)) or encode(obs)
    obs = np.zeros((3, 3), dtype=np.float32)
    model.predict(obs)
    assert encoded == []
    model.predict(obs, deterministic=True)
    assert encoded == [3], "where the lowest energy wins it is asked"
    assert model.policy.sample_actions(th.as_tensor(obs), 5).shape == (3, 5, 1)
