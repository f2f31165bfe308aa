"""Which batches the statistics of a backbone's batch norms are of, and that its parameters keep their lengths."""

import copy

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import Logger
from torch import nn

from sb3_energy import PGAC, EnergySAC
from sb3_energy.networks import BatchNorm

SMALL = dict(backbone="flash", net_arch=[8, 8])
SETTINGS = {
    "unrefined": (EnergySAC, dict(policy_kwargs=SMALL | dict(refiner="none"))),
    "reference": (EnergySAC, dict(policy_kwargs=SMALL | dict(refiner="none"), update="reference")),
    "refined target": (EnergySAC, dict(policy_kwargs=SMALL | dict(n_particles=4), refine_target=True, distillation_coef=0.3)),
    "estimated": (EnergySAC, dict(policy_kwargs=SMALL | dict(n_particles=4), entropy_estimator="soft_value")),
    "a head": (EnergySAC, dict(policy_kwargs=SMALL | dict(refiner="flow"))),
    "quantiles": (EnergySAC, dict(policy_kwargs=SMALL | dict(n_particles=4, critic="quantile"))),
    "PGAC": (PGAC, dict(policy_kwargs=SMALL | dict(n_particles=4), policy_delay=2)),
}


def make(name="unrefined", **changes):
    cls, kwargs = SETTINGS[name]
    model = cls(
        "MlpPolicy", "Pendulum-v1", **kwargs | dict(seed=1, buffer_size=60, batch_size=16, learning_starts=20) | changes
    )
    model.set_logger(Logger(None, []))
    rng, buffer = np.random.default_rng(0), model.replay_buffer
    for _ in range(60):
        obs, next_obs = (rng.standard_normal((2, 1, 3)) * [1.0, 3.0, 0.1] + [0.0, 1.0, 2.0]).astype(np.float32)
        buffer.add(obs, next_obs, rng.uniform(-1, 1, (1, 1)), rng.standard_normal(1), np.zeros(1), [{}])
    return model


def statistics(network):
    return [copy.deepcopy(layer._buffers) for layer in network.modules() if isinstance(layer, BatchNorm)]


@pytest.mark.parametrize("name", SETTINGS)
def test_each_update_counts_one_batch(name):
    model = make(name)
    before = statistics(model.actor) + statistics(model.critic)
    assert all(found["num_batches_tracked"] == 0 for found in before), "nothing has been asked before that"
    model.train(3, 16)
    for found in (*statistics(model.actor), *statistics(model.critic)):
        assert found["num_batches_tracked"] == 3
    for ours, targets in zip(statistics(model.critic), statistics(model.critic_target), strict=True):
        assert th.equal(ours["running_mean"], targets["running_mean"]) and th.equal(
            ours["running_var"], targets["running_var"]
        )


@pytest.mark.parametrize("update", ["lean", "reference"])
def test_statistics_are_those_of_the_replayed_batch(update):
    model = make(update=update)
    batches = []
    sample = model._sample
    model._sample = lambda n: batches.append(sample(n)) or batches[-1]
    model.train(2, 16)
    mean, actor_mean = th.zeros(4), th.zeros(3)
    for batch in batches:
        mean = 0.99 * mean + 0.01 * th.cat([batch.observations, batch.actions], dim=1).mean(0)
        actor_mean = 0.99 * actor_mean + 0.01 * batch.observations.mean(0)
    for q_net in model.critic.q_networks:
        th.testing.assert_close(q_net[0].running_mean, mean)
    th.testing.assert_close(model.actor.latent_pi[0].running_mean, actor_mean)


@pytest.mark.parametrize("name", ["unrefined", "PGAC"])
def test_parameters_have_their_lengths_after_each_step(name):
    model = make(name)
    for _ in range(2):
        before = copy.deepcopy(model.critic.state_dict())
        model.train(1, 16)
        assert any(not th.equal(before[key], value) for key, value in model.critic.state_dict().items())
        for network in (model.actor, model.critic):
            for layer in network.modules():
                if isinstance(layer, nn.Linear):
                    th.testing.assert_close(layer.weight.norm(dim=1), th.ones(layer.out_features))
                if isinstance(layer, (BatchNorm, nn.RMSNorm)):
                    together = th.cat([parameter.detach() for parameter in layer.parameters()])
                    th.testing.assert_close(together.norm(), th.tensor(float(len(layer.weight))).sqrt())


def test_energies_use_running_statistics_in_training_mode_too():
    policy, obs = make("refined target").policy, th.randn(5, 3)
    policy.set_training_mode(True)
    before = copy.deepcopy(policy.state_dict())
    with th.no_grad():
        actions = th.rand(5, 6, 1) * 2.0 - 1.0
        energies = policy.energy_fn(obs)(actions)
        apart = th.cat([policy.energy_fn(obs[:1])(actions[:1, :3]), policy.energy_fn(obs[:1])(actions[:1, 3:])], dim=1)
        policy.refine(obs), policy.sample_actions(obs, 3), policy.q_values(obs.numpy(), actions[:, 0].numpy())
    th.testing.assert_close(energies[:1], apart, rtol=1e-4, atol=1e-5)
    assert all(th.equal(value, before[key]) for key, value in policy.state_dict().items())


def test_a_frozen_layer_stays_as_it_is():
    model = make()
    head = model.critic.qf0[-1]
    head.weight.data.mul_(3.0)
    head.weight.requires_grad_(False)
    before = head.weight.clone()
    model.train(2, 16)
    assert th.equal(head.weight, before)


@pytest.mark.parametrize("name", ["refined target", "PGAC"])
def test_training_goes_on_from_a_file(name, tmp_path):
    model = make(name)
    model.train(2, 16)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    twin = type(model).load(tmp_path / "model", env=model.env)
    twin.set_logger(Logger(None, []))
    twin.load_replay_buffer(tmp_path / "buffer")
    if name == "PGAC":
        twin._update_index = model._update_index
    for either in (model, twin):
        th.manual_seed(5), np.random.seed(5)
        either.train(2, 16)
    ours, theirs = model.policy.state_dict(), twin.policy.state_dict()
    assert all(th.equal(ours[key], theirs[key]) for key in ours)


def test_a_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 2 with batch normalisation, got 1"):
        make(batch_size=1)


def test_heads_have_a_backbone_of_their_own():
    assert not [layer for layer in make("a head").policy.head.modules() if isinstance(layer, BatchNorm)]
    with pytest.raises(
        ValueError, match=r"^backbone of head_kwargs must be one without batch normalisation, such as 'layer_norm'"
    ):
        make("a head", policy_kwargs=SMALL | dict(refiner="flow", head_kwargs=dict(backbone="flash")))
