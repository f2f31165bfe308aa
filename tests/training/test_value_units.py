"""The scale of a model's critics: set from its returns, kept in its files; what optimizers know of gradients follows it."""

import copy

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_energy import PGAC, EnergySAC
from sb3_energy.networks import ScaledLinear, ValueScale, rescale, set_scale
from sb3_energy.policies.critics import EnsembleCritic
from sb3_energy.policies.refined_policy import RefinedPolicy
from sb3_energy.training.value_units import convert_moments
from tests.fingerprints import Target
from tests.models import ALGORITHMS, small_model

AUTO = dict(value_scale="auto")
NONE = dict(refiner="none", refiner_steps=None, n_particles=None)
OBS = np.random.default_rng(0).uniform(-1.0, 1.0, size=(5, 3)).astype(np.float32)


def trained(kind="langevin", n=60, policy_kwargs=None, **kwargs):
    return small_model(kind, env=Target(), policy_kwargs=AUTO | (policy_kwargs or {}), **kwargs).learn(n)


def values(model):
    return model.policy.q_values(OBS, np.full((5, 2), 0.3))


def actions(policy, deterministic=False):
    th.manual_seed(0)
    return policy.predict(OBS, deterministic=deterministic)[0]


def go_on(model, n=10):
    th.manual_seed(1), np.random.seed(1)
    model.set_logger(trained(n=0).learn(1).logger)
    model.train(n, 16)
    return [value.numpy().tobytes() for value in model.policy.state_dict().values()]


@pytest.mark.parametrize("ent_coef", [0.2, "auto"])
@pytest.mark.parametrize("kind", ["langevin", "pgac"])
def test_nothing_jumps_after_loading(tmp_path, kind, ent_coef):
    model = trained(kind, ent_coef=ent_coef)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = ALGORITHMS[kind].load(tmp_path / "model", env=Target(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert th.equal(loaded.value_units.returns.statistics, model.value_units.returns.statistics)
    assert np.array_equal(values(loaded), values(model)) and np.array_equal(actions(loaded), actions(model))
    model.value_units.returns.reset(1)
    assert go_on(model) == go_on(loaded)
    assert loaded.value_units.sigma == model.value_units.sigma == loaded.critic.value_scale.sigma.item() > 0.5
    assert loaded.learn(30, reset_num_timesteps=False).value_units.returns.count == 90


@pytest.mark.parametrize("kind", ["langevin", "pgac"])
def test_parameters_of_another_model(kind):
    model, other = trained(kind), trained(kind, 25, seed=1)
    assert "value_units.returns" in model.get_parameters()
    other.set_parameters(model.get_parameters())
    assert np.array_equal(values(other), values(model))
    assert other.value_units.returns.sigma() == model.value_units.returns.sigma()
    other.value_units.begin(other)
    assert values(other) == pytest.approx(values(model), rel=1e-6)


def test_a_policy_alone_predicts_the_same(tmp_path):
    model = trained()
    model.policy.save(tmp_path / "policy")
    policy = RefinedPolicy.load(tmp_path / "policy", device="cpu")
    for deterministic in (True, False):
        assert np.array_equal(actions(policy, deterministic), actions(model.policy, deterministic))
    model.critic.save(tmp_path / "critic")
    critic = EnsembleCritic.load(tmp_path / "critic", device="cpu")
    inputs = th.as_tensor(OBS), th.zeros(5, 2)
    assert all(th.equal(a, b) for a, b in zip(critic(*inputs), model.critic(*inputs), strict=True))
    twin = copy.deepcopy(model.policy)
    set_scale([model.critic], 1e3)
    for deterministic in (True, False):
        assert np.array_equal(actions(policy, deterministic), actions(twin, deterministic))
    assert twin.critic.value_scale is twin.critic.q_networks[0][-1].scale


def test_only_a_policy_is_handed_on():
    """A new model has seen no returns, and must not take values of the old one for those of networks that have not learned."""
    model, other = trained(), small_model("langevin", env=Target(), policy_kwargs=AUTO, seed=1)
    other.policy.load_state_dict(model.policy.state_dict())
    before = values(other)
    assert np.array_equal(before, values(model))
    other.value_units.returns.observe(np.full(1, 500.0, np.float32), np.zeros(1, bool), 0.99)
    other.value_units.begin(other)
    assert other.value_units.sigma == 100.0 and values(other) == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("kind", ["langevin", "pgac"])
def test_parameters_without_a_scale_are_taken(tmp_path, kind):
    model = trained(kind, policy_kwargs=dict(value_scale="none"), ent_coef=0.2)
    scaled = small_model(kind, env=Target(), policy_kwargs=AUTO, seed=1, ent_coef=0.2)
    model.save(tmp_path / "model")
    for found in (model.get_parameters(), tmp_path / "model"):
        scaled.set_parameters(found)
        assert np.array_equal(values(scaled), values(model)) and np.array_equal(actions(scaled), actions(model))
    scaled.learn(30)
    assert scaled._n_updates == 10 and scaled.value_units.sigma > 0.5
    assert np.abs(values(scaled) - values(model)).max() < 1.0


def test_a_model_that_was_saved_without_the_argument_goes_on(tmp_path):
    """Its default was another one then."""
    model = small_model("langevin", env=Target(), policy_kwargs=dict(value_scale="none")).learn(40)
    assert model.critic.value_scale is None and model.policy_kwargs.pop("value_scale") == "none"
    model.save(tmp_path / "model")
    loaded = EnergySAC.load(tmp_path / "model", env=Target(), device="cpu")
    assert loaded.critic.value_scale is not None and np.array_equal(values(loaded), values(model))
    assert loaded.learn(30).value_units.sigma != 1.0


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize("kind", ["langevin", "pgac"])
def test_parameters_with_a_scale_are_refused_without_one(tmp_path, kind, as_file):
    model, plain = trained(kind), trained(kind, 25, policy_kwargs=dict(value_scale="none"))
    before = values(plain)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="was saved with value_scale='auto', and this model has") as caught:
        plain.set_parameters(tmp_path / "model.zip" if as_file else model.get_parameters())
    assert "\n" not in str(caught.value) and np.array_equal(values(plain), before)


def filled(n=40, n_envs=1, factor=1.0, policy_kwargs=None, **kwargs):
    """A model whose replay buffer others have filled."""
    kwargs |= dict(env=DummyVecEnv([Target] * n_envs), policy_kwargs=AUTO | (policy_kwargs or {}))
    model = small_model("langevin", **kwargs)
    rng = np.random.default_rng(0)
    for _ in range(n):
        obs, after = rng.normal(size=(2, n_envs, 3)).astype(np.float32)
        reward, done = factor * rng.normal(5.0, 3.0, size=n_envs), rng.random(n_envs) < 0.1
        model.replay_buffer.add(obs, after, rng.uniform(-1, 1, size=(n_envs, 2)), reward, done, [{}] * n_envs)
    return model


def episodes(buffer, gamma):
    """Returns of what a buffer holds, the oldest first."""
    n, found, running = buffer.size(), [], np.zeros(buffer.n_envs)
    for row in [(i + (buffer.pos if buffer.full else 0)) % n for i in range(n)]:
        running = gamma * running + buffer.rewards[row].astype(float)
        found.append(running)
        running = np.where(buffer.dones[row] > 0, 0.0, running)
    return np.array(found)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("size", [100, 30])
def test_a_filled_replay_buffer_counts(size, n_envs):
    model = filled(n_envs=n_envs, buffer_size=size * n_envs)
    go_on(model, 3)
    returns = episodes(model.replay_buffer, 0.99)
    assert model.replay_buffer.full == (size == 30)
    assert model.value_units.sigma == pytest.approx(max(returns.std(), np.abs(returns).max() / 5.0), rel=1e-6)
    count = model.value_units.returns.count
    go_on(model, 3)
    assert model.value_units.returns.count == count == model.replay_buffer.size() * n_envs
    model.learn(10 * n_envs)
    assert model.value_units.returns.count == count + 10 * n_envs


def test_so_a_filled_replay_buffer_is_learned_from_at_any_scale():
    once, times = filled(ent_coef=0.1), filled(factor=128.0, ent_coef=12.8)
    for model in (once, times):
        go_on(model, 10)
    assert np.array_equal(values(times), 128.0 * values(once))


def test_a_replay_buffer_of_normalized_rewards():
    env = VecNormalize(DummyVecEnv([Target]), norm_obs=False)
    env.ret_rms.var = np.array(10_000.0)
    model = small_model("langevin", env=env, policy_kwargs=AUTO)
    plain = filled()
    model.replay_buffer = plain.replay_buffer
    for agent in (model, plain):
        go_on(agent, 1)
    assert model.value_units.sigma == pytest.approx(plain.value_units.sigma / 100.0, rel=1e-6)


class NoRewards(ReplayBuffer):
    """Keeps them elsewhere."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept = self.rewards
        del self.rewards

    def add(self, *args):
        self.rewards = self.kept
        super().add(*args)
        del self.rewards

    def _get_samples(self, *args, **kwargs):
        self.rewards = self.kept
        found = super()._get_samples(*args, **kwargs)
        del self.rewards
        return found


def test_a_replay_buffer_without_rewards_is_left_alone():
    model = filled(replay_buffer_class=NoRewards)
    go_on(model, 3)
    assert model.value_units.returns.count == 0 and model.value_units.sigma == 1.0
    before = values(model)
    model.value_units.returns.observe(np.full(1, 500.0, np.float32), np.zeros(1, bool), 0.99)
    model.value_units.begin(model)
    assert model.value_units.sigma == 100.0 and values(model) == pytest.approx(before, rel=1e-5), "they were learned"


OPTIMIZERS = {
    "Adam": (th.optim.Adam, {}),
    "AMSGrad": (th.optim.Adam, dict(amsgrad=True)),
    "Adamax": (th.optim.Adamax, {}),
    "momentum": (th.optim.SGD, dict(momentum=0.9)),
    "RMSprop": (th.optim.RMSprop, dict(centered=True, momentum=0.5)),
    "Adagrad": (th.optim.Adagrad, {}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("ratio", [0.1, 3.0])
def test_the_next_step_is_that_of_the_old_units(name, ratio):
    """Gradients that are ``ratio`` times as large from here on, of which the optimizer has been told, make the same steps."""
    cls, kwargs = OPTIMIZERS[name]
    steps = []
    for factor in (1.0, ratio):
        th.manual_seed(0)
        parameter = nn.Parameter(th.zeros(5))
        optimizer = cls([parameter], lr=0.1, **({} if name in ("momentum",) else dict(eps=1e-20)), **kwargs)
        for k in range(8):
            if k == 4:
                convert_moments(optimizer, factor)
            parameter.grad = th.randn(5) * (1.0 if k < 4 else factor)
            before = parameter.detach().clone()
            optimizer.step()
        steps.append((parameter.detach() - before) / (factor if name == "momentum" else 1.0))
    if name == "RMSprop":  # whose momentum is one of steps, and has no units
        th.testing.assert_close(steps[0].sign(), steps[1].sign())
        return
    th.testing.assert_close(*steps, rtol=1e-4, atol=0.0)


def test_gradients_in_new_units_are_what_moments_are_converted_to():
    """The head's are multiplied by the ratio of the scales, and those of the layers below by its square."""
    model = trained(update="reference", policy_kwargs=NONE)
    batch = model.replay_buffer.sample(16)
    targets = th.randn(16, 1)

    def gradients():
        model.critic.optimizer.zero_grad()
        model.critic.td_loss(batch.observations, batch.actions, targets).backward()
        return {id(p): p.grad.clone() for p in model.critic.parameters()}

    before, sigma = gradients(), model.value_units.sigma
    rescale([model.critic], 4.0 * sigma)
    after = gradients()
    heads = {id(p) for net in model.critic.q_networks for p in net[-1].parameters()}
    for key, old in before.items():
        factor = 0.25 if key in heads else 0.25**2
        assert (after[key] - factor * old).abs().max() <= 1e-5 * factor * old.abs().max()
    rescale([model.critic], sigma)
    states = {id(p): {k: v.clone() for k, v in s.items()} for p, s in model.critic.optimizer.state.items()}
    actors = [s["exp_avg"].clone() for s in model.actor.optimizer.state.values()]
    model.value_units.returns.statistics[3] = 5.0 * 4.0 * sigma
    model.value_units.begin(model)
    for parameter, state in model.critic.optimizer.state.items():
        factor = 0.25 if id(parameter) in heads else 0.25**2
        th.testing.assert_close(state["exp_avg"], factor * states[id(parameter)]["exp_avg"], rtol=1e-5, atol=0.0)
        th.testing.assert_close(state["exp_avg_sq"], factor**2 * states[id(parameter)]["exp_avg_sq"], rtol=1e-5, atol=0.0)
        assert th.equal(state["step"], states[id(parameter)]["step"])
    for old, state in zip(actors, model.actor.optimizer.state.values(), strict=True):
        th.testing.assert_close(state["exp_avg"], 0.25 * old, rtol=1e-5, atol=0.0)


def test_a_large_first_return_stops_no_learning():
    """Without converted moments, steps would be as small as gradients in the new units beside those in the old ones."""

    def moved(converts):
        model = filled(80, factor=1e-3, ent_coef=1e-4, policy_kwargs=NONE | dict(activation_fn=nn.SiLU))
        go_on(model, 100)
        model.replay_buffer.rewards *= 1e3
        model.value_units.returns.statistics[3] = 1e3 * 5.0 * model.value_units.sigma
        if not converts:
            states = copy.deepcopy(model.critic.optimizer.state_dict())
            model.value_units.begin(model)
            model.critic.optimizer.load_state_dict(states)
        before = [p.detach().clone() for p in model.critic.q_networks[0][0].parameters()]
        go_on(model, 20)
        return sum((p - q).abs().sum() for p, q in zip(model.critic.q_networks[0][0].parameters(), before, strict=True))

    assert moved(True) > 5.0 * moved(False)


class OwnNetworks(EnsembleCritic):
    """A body of one's own."""

    def _make_q_net(self):
        return nn.Sequential(nn.Linear(self.features_dim + 2, 7), nn.Tanh(), nn.Linear(7, self.n_outputs))


class OwnEnd(EnsembleCritic):
    """Values that cannot be rescaled."""

    def _make_q_net(self):
        return nn.Sequential(nn.Linear(self.features_dim + 2, self.n_outputs), nn.Tanh())


def policy_with(critic_class, **given):
    class Policy(RefinedPolicy):
        def make_critic(self, features_extractor=None):
            kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
            return critic_class(**kwargs, **given).to(self.device)

    return Policy


def own_model(policy, **policy_kwargs):
    settings = dict(learning_starts=20, batch_size=16, buffer_size=200, seed=0, device="cpu", ent_coef=0.2)
    return EnergySAC(policy, Target(), policy_kwargs=AUTO | dict(n_particles=4, net_arch=[8]) | policy_kwargs, **settings)


def test_a_critic_of_ones_own_has_a_scale():
    model = own_model(policy_with(OwnNetworks, value_scale="auto")).learn(40)
    assert isinstance(model.critic.q_networks[0][-1], ScaledLinear)
    before = values(model)
    model.value_units.returns.statistics[3] = 500.0
    model.value_units.begin(model)
    assert model.value_units.sigma == 100.0 and values(model) == pytest.approx(before, rel=1e-6)


def test_critics_that_cannot_have_one_are_refused():
    with pytest.raises(
        ValueError, match=r"^make_critic of Policy must hand value_scale='auto' on to its critic, got one without"
    ):
        own_model(policy_with(OwnNetworks))
    with pytest.raises(TypeError, match=r"^value_scale='auto' needs networks that are nn\.Sequential and end with nn\.Linear"):
        own_model(policy_with(OwnEnd, value_scale="auto"))
    with pytest.raises(ValueError, match=r"^value_scale must be"):
        own_model("MlpPolicy", value_scale="off")
    model = trained()
    nn.utils.parametrizations.weight_norm(model.critic.q_networks[0][-1])
    model.value_units.returns.statistics[3] = 500.0
    before = [value.clone() for value in model.policy.state_dict().values()]
    with pytest.raises(TypeError, match=r"^value_scale='auto' rescales the last linear layer of each network, and needs"):
        model.train(1, 16)
    assert all(th.equal(a, b) for a, b in zip(before, model.policy.state_dict().values(), strict=True))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_scale_stops_training(value):
    model = trained()
    model.critic.value_scale.sigma.fill_(value)
    with pytest.raises(FloatingPointError, match=r"the critic's (value_scale is|statistics contain)"):
        model.train(1, 16)


def test_what_a_user_does_to_networks_stays():
    """Frozen heads, hooks of a network, another network in its place."""
    model = trained(policy_kwargs=NONE)
    model.critic.q_networks[0].requires_grad_(False)
    handle = model.critic.q_networks[1].register_forward_hook(lambda module, inputs, out: out + 5.0)
    inputs = th.as_tensor(OBS), th.zeros(5, 2)
    before = [part.detach() for part in model.critic(*inputs)]
    model.value_units.returns.statistics[3] = 500.0
    model.value_units.begin(model)
    for found, expected in zip(model.critic(*inputs), before, strict=True):
        th.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    model.train(5, 16)
    found = model.critic(*inputs)
    th.testing.assert_close(found[0], before[0], rtol=1e-5, atol=1e-5)
    assert not th.allclose(found[1], before[1], rtol=1e-3)
    handle.remove()
    th.testing.assert_close(model.critic(*inputs)[1], found[1] - 5.0)


@pytest.mark.parametrize("kind", ["langevin", "pgac"])
def test_fast_predictions_know_the_scale(kind):
    model = trained(kind)
    fast = [actions(model.policy, deterministic) for deterministic in (True, False)]
    assert model.policy._fast.networks is not None
    with model.policy.torch_predict():
        slow = [actions(model.policy, deterministic) for deterministic in (True, False)]
    for ours, theirs in zip(fast, slow, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)

    def expected(model):
        return model.critic.policy_values(th.as_tensor(OBS), th.full((5, 2), 0.3)).detach()[:, 0]

    rescale([model.critic], 50.0)
    assert values(model) == pytest.approx(expected(model), rel=1e-5)
    model.critic.value_scale.sigma = th.tensor(100.0)
    assert values(model) == pytest.approx(expected(model), rel=1e-5)


def test_a_head_of_fixed_length_moves_with_the_scale():
    model = trained(policy_kwargs=NONE | dict(backbone="flash", net_arch=[8, 8]))
    before, sigma = values(model), model.value_units.sigma
    weight = model.critic.q_networks[0][-1].weight.clone()
    model.value_units.returns.statistics[3] = 5.0 * 8.0 * sigma
    model.value_units.begin(model)
    assert values(model) == pytest.approx(8.0 * before, rel=1e-5)
    assert th.equal(model.critic.q_networks[0][-1].weight, weight)


def test_the_models_without_one_have_nothing_of_it():
    for algorithm in (EnergySAC, PGAC):
        model = algorithm("MlpPolicy", Target(), buffer_size=10, policy_kwargs=dict(net_arch=[8], value_scale="none"))
        assert model.value_units is None and model.critic.value_scale is None
        assert not any(isinstance(module, ValueScale) for module in model.policy.modules())
        assert not any("value" in name for name in model.get_parameters())
