"""What each loss of PGAC changes, what is computed at all, and what scales of rewards change: nothing."""

import collections

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_energy.pgac import potential_learner

OFF = dict(transport_coef=0.0, divergence_coef=0.0, value_weight=None, matching_coef=0.0, end_to_end_coef=0.0)
TERMS = {
    "transport": dict(transport_coef=1.0),
    "divergence": dict(divergence_coef=1.0),
    "matching": dict(matching_coef=1.0, policy_kwargs=dict(energy_kwargs=dict(guidance=0.0))),
    "end_to_end": dict(end_to_end_coef=1.0),
}
each_term = pytest.mark.parametrize("term", sorted(TERMS))


def clear(model):
    for module in (model.policy, model.potential_learner.behaviour_critic):
        for parameter in [] if module is None else module.parameters():
            parameter.grad = None


def update(model, seed=0):
    """One update of the potential alone; what it logged."""
    records = collections.defaultdict(list)
    model.set_random_seed(seed)
    model._update_potential(model._sample(16), model._current_ent_coef(), records)
    return records


def snapshot(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


@each_term
@pytest.mark.parametrize("how", ["lean", "reference"])
@pytest.mark.parametrize("norms", [dict(), dict(spectral_norm=True)], ids=["plain", "spectral"])
def test_a_loss_changes_the_potential_and_nothing_else(make_model, term, how, norms):
    settings = OFF | TERMS[term]
    policy_kwargs = settings.pop("policy_kwargs", {}) | dict(potential_kwargs=norms)
    model = make_model(update=how, policy_kwargs=policy_kwargs, learning_rate=1e-2, **settings).learn(24)
    model.policy.set_training_mode(True)
    clear(model)
    before = snapshot(model)
    records = update(model)
    assert np.isfinite([float(value) for values in records.values() for value in values]).all()
    after = model.policy.state_dict()
    changed = {name for name, value in before.items() if not th.equal(value, after[name])}
    assert changed <= {name for name in before if name.startswith(("potential.", "q_scale."))}
    weights = {name for name in before if name.startswith("potential.") and ".network.0" not in name and "bias" not in name}
    assert changed & weights and {"q_scale.spread", "q_scale.n_updates"} <= changed
    with_gradients = {name for name, p in model.policy.named_parameters() if p.grad is not None}
    assert with_gradients and all(name.startswith("potential.") for name in with_gradients)
    assert all(parameter.requires_grad for parameter in model.critic.parameters())


@each_term
def test_a_loss_of_shared_features_leaves_the_extractor_alone(make_model, term):
    """The actor's features are the critic's: what the potential reads it does not teach."""
    settings = OFF | TERMS[term]
    policy_kwargs = settings.pop("policy_kwargs", {}) | dict(share_features_extractor=True, features_extractor_class=Learned)
    model = make_model(policy_kwargs=policy_kwargs, **settings).learn(24)
    clear(model)
    update(model)
    assert all(parameter.grad is None for module in (model.critic, model.actor) for parameter in module.parameters())


class Learned(BaseFeaturesExtractor):
    """With something to learn."""

    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=5)
        self.linear = nn.Linear(3, 5)

    def forward(self, observations):
        return self.linear(observations)


@each_term
def test_what_is_off_is_not_computed(make_model, term, monkeypatch):
    for name in ("weighted_transport_loss", "guarded_divergence_loss", "gradient_matching_loss", "chain_ends", "refine"):
        if name not in USES[term]:
            monkeypatch.setattr(potential_learner, name, None)
    model = make_model(**(OFF | TERMS[term])).learn(24)
    records = update(model)
    assert model.potential_learner.behaviour_critic is None
    assert set(records) == {f"{term}_loss", "potential_loss", "q_spread"}
    assert float(records["potential_loss"][0]) == pytest.approx(float(records[f"{term}_loss"][0]), rel=1e-6)


USES = {
    "transport": {"weighted_transport_loss"},
    "divergence": {"guarded_divergence_loss", "chain_ends"},
    "matching": {"gradient_matching_loss"},
    "end_to_end": {"refine"},
}


def test_everything_off_leaves_the_potential_alone(make_model):
    model = make_model(**OFF, learning_rate=1e-2).learn(24)
    before = snapshot(model)
    records = update(model)
    assert set(records) == {"q_spread"}
    assert all(th.equal(before[name], value) for name, value in model.policy.potential.state_dict(prefix="potential.").items())


def test_coefficients_are_those_of_the_sum(make_model):
    model = make_model(transport_coef=0.7, divergence_coef=0.2, end_to_end_coef=0.3, value_weight="relu").learn(24)
    records = {name: float(values[0]) for name, values in update(model).items()}
    parts = 0.7 * records["transport_loss"] + 0.2 * records["divergence_loss"] + 0.3 * records["end_to_end_loss"]
    assert records["potential_loss"] == pytest.approx(parts, rel=1e-5)
    assert "value_weight" in records


def test_following_q_through_the_sampler_raises_it(make_model):
    """``-E[Q]`` alone, many times: what the sampler ends with becomes better than without a potential."""
    energy_kwargs = dict(guidance=0.0, temperature=0.01)
    policy_kwargs = dict(energy_kwargs=energy_kwargs, refiner_steps=3, transport_time=1.0, n_particles=1)
    settings = OFF | dict(end_to_end_coef=1.0)
    model = make_model(policy_kwargs=policy_kwargs, learning_rate=1e-2, **settings).learn(22)
    values = [-float(update(model, seed)["end_to_end_loss"][0]) for seed in range(60)]
    assert np.mean(values[-10:]) > np.mean(values[:10]) + 0.05


@pytest.mark.parametrize("policy_delay", [1, 3])
def test_the_potential_learns_in_one_of_so_many_updates(make_model, policy_delay):
    model = make_model(policy_delay=policy_delay).learn(21)
    assert model._update_index == 1
    calls = []
    model._update_potential = lambda *args: calls.append(model._update_index)
    model.train(8, 16)
    assert calls == [index for index in range(2, 10) if index % policy_delay == 0]


def scaled(model, factor):
    """The same model, had all rewards been so many times larger: the heads of the critics are linear in them."""
    with th.no_grad():
        for network in model.critic.q_networks:
            network[-1].weight *= factor
            network[-1].bias *= factor
        for network in (
            model.potential_learner.behaviour_critic.q_net,
            model.potential_learner.behaviour_critic.q_net_target,
            model.potential_learner.behaviour_critic.v_net,
        ):
            network[-1].weight *= factor
            network[-1].bias *= factor
    model.replay_buffer.rewards *= factor
    return model


@pytest.mark.parametrize("value_weight", ["exp", "relu"])
def test_rewards_times_100_change_neither_guidance_nor_weights(make_model, value_weight):
    models = [scaled(make_model(value_weight=value_weight, policy_delay=1).learn(30), factor) for factor in (1.0, 100.0)]
    energies, found = [], []
    for model in models:
        model.potential_learner.behaviour_critic.optimizer.param_groups[0]["lr"] = (
            0.0  # Adam's steps have no scale, so parameters would part
        )
        model.policy.q_scale.load_state_dict(dict(spread=th.ones(()), n_updates=th.zeros((), dtype=th.long)))
        update(model)
        found.append(update(model, 1))
        with th.no_grad():
            actions = th.linspace(-1.0, 1.0, 9).reshape(1, 9, 1).repeat(4, 1, 1)
            energies.append(model.policy.energy_fn(th.ones(4, 3))(actions))
    one, hundred = found
    assert float(hundred["q_spread"][0]) == pytest.approx(100.0 * float(one["q_spread"][0]), rel=1e-4)
    th.testing.assert_close(energies[0], energies[1], rtol=1e-5, atol=1e-5)
    assert energies[0].std() > 0.05
    assert float(hundred["value_weight"][0]) == pytest.approx(float(one["value_weight"][0]), rel=1e-4)
    assert float(hundred["transport_loss"][0]) == pytest.approx(float(one["transport_loss"][0]), rel=1e-3)


@pytest.mark.parametrize("value_weight", ["exp", "relu"])
def test_weights_are_of_what_was_done_at_each_observation(make_model, monkeypatch, value_weight):
    """By its advantage, over the root mean square of all."""
    model = make_model(value_weight=value_weight).learn(24)
    advantages, seen = th.tensor([3.0, -1.0, 0.0, -5.0]), []
    loss = potential_learner.weighted_transport_loss
    monkeypatch.setattr(model.potential_learner.behaviour_critic, "advantages", lambda features, actions: advantages)
    monkeypatch.setattr(potential_learner, "weighted_transport_loss", lambda *args: seen.append(args[-1]) or loss(*args))
    records = update(model)
    scaled_ones = advantages / advantages.square().mean().sqrt()
    expected = scaled_ones.relu() if value_weight == "relu" else scaled_ones.exp()
    th.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)
    assert float(records["value_weight"][0]) == pytest.approx(expected.mean().item(), rel=1e-4)


@pytest.mark.parametrize("initial_particles", ["mixture", "normal"])
def test_the_actor_looks_at_the_observations_once(make_model, initial_particles):
    """Images are encoded each time."""
    model = make_model(policy_kwargs=dict(initial_particles=initial_particles), end_to_end_coef=0.1).learn(24)
    extract, seen = model.actor.extract_features, []
    model.actor.extract_features = lambda *args: seen.append(args) or extract(*args)
    update(model)
    assert len(seen) == 1


def test_the_behaviour_learns_from_the_whole_batch_with_its_own_discounts(make_model):
    model = make_model(n_steps=3, gamma=0.5).learn(24)
    loss, seen = model.potential_learner.behaviour_critic.loss, []
    model.potential_learner.behaviour_critic.loss = lambda *args: seen.append(args) or loss(*args)
    batch = model._sample(16)
    model._update_others(batch, collections.defaultdict(list))
    found = seen[0]
    assert th.equal(found[1], batch.actions) and th.equal(found[2], batch.rewards) and th.equal(found[3], batch.dones)
    assert th.equal(found[4], batch.discounts) and th.equal(found[5], batch.next_observations)


def test_the_behaviour_learns_in_every_update(make_model):
    model = make_model(policy_delay=4).learn(24)
    critic, steps = model.potential_learner.behaviour_critic, []
    follow = critic.follow
    critic.follow = lambda: steps.append(model._update_index) or follow()
    model.train(8, 16)
    assert len(steps) == 8


def test_chains_go_on_where_they_ended(make_model, monkeypatch, tmp_path):
    model = make_model(persistent_chains=True, policy_delay=1).learn(40)
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    buffer, seen = model.replay_buffer, []
    chain_ends = potential_learner.chain_ends

    def watched(network, features, starts, *args):
        kept, known = buffer.last_chains(len(starts))
        seen.append((starts.numpy().copy(), kept.copy(), known.copy()))
        return chain_ends(network, features, starts, *args)

    monkeypatch.setattr(potential_learner, "chain_ends", watched)
    assert buffer.has_chains.any()
    for seed in range(6):
        update(model, seed)
    assert any(known.any() for _, _, known in seen) and not all(known.all() for _, _, known in seen)
    for starts, kept, known in seen:
        assert np.array_equal(starts[known], kept[known])
        assert (starts[~known] != kept[~known]).all()
    ends, known = buffer.last_chains(4)
    assert known.all() and (np.abs(ends) <= 1.0).all()
