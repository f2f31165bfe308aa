"""With ``value_scale="auto"`` nothing that is learned depends on the scale of rewards; what a user sees is in their units."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TQC
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_energy import PGAC, EnergySAC
from tests.fingerprints import Target
from tests.models import POTENTIAL_TRAINING, small_model

AUTO = dict(value_scale="auto")


class Scaled(gym.Wrapper):
    """
    :param factor: of the rewards, which are numbers of single precision before
    :param env: whose rewards
    :param after: rewards of earlier steps are 0
    """

    def __init__(self, factor, env=None, after=0):
        super().__init__(gym.make("Pendulum-v1") if env is None else env)
        self.factor, self.after, self.n = factor, after, 0

    def step(self, action):
        obs, reward, *others = self.env.step(action)
        self.n += 1
        return obs, float(np.float32(reward)) * self.factor * (self.n > self.after), *others


def learned(kind, factor=1.0, n=110, policy_kwargs=None, after=0, env=None, ent_coef=0.2, **kwargs):
    fixed = {} if isinstance(ent_coef, str) else dict(ent_coef=ent_coef * factor)
    env = Scaled(factor, after=after) if env is None else env(factor)
    settings = dict(ent_coef=ent_coef) | kwargs | fixed
    model = small_model(kind, env=env, policy_kwargs=AUTO | (policy_kwargs or {}), **settings)
    return model.learn(n)


def stored(model, name="actions"):
    return getattr(model.replay_buffer, name)[: model.replay_buffer.size()]


def numbers(model):
    """Parameters and whatever else was learned, but for what is in the units of the reward."""
    names, variables = model._get_torch_save_params()
    found = {}
    for name in names:
        part = model
        for attribute in name.split("."):
            part = getattr(part, attribute)
        if not name.endswith("optimizer"):
            found |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    ends = ("sigma", "temperature", "spread", "statistics")
    found = {key: value for key, value in found.items() if not key.endswith(ends)}
    return found | {name: getattr(model, name).detach() for name in variables if name != "ent_coef_tensor"}


def assert_equal(ours, theirs, atol=0.0):
    mine, others = numbers(ours), numbers(theirs)
    assert mine.keys() == others.keys() and len(mine) > 10
    for name, value in mine.items():
        th.testing.assert_close(value, others[name], rtol=0.0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


CASES = {
    "langevin": ("langevin", dict(n=300)),
    "mppi": ("mppi", {}),
    "pgac": ("pgac", dict(n=300)),
    "refined targets": ("langevin", dict(refine_target=True)),
    "by autograd": ("langevin", dict(update="reference")),
    "quantiles": ("langevin", dict(policy_kwargs=dict(critic="quantile"))),
    "learned temperature": ("langevin", dict(ent_coef="auto", entropy_estimator="soft_value")),
    "learned temperature of targets": ("langevin", dict(ent_coef="auto", refine_target=True, entropy_estimator="mixture")),
    "from the first step on": ("langevin", dict(learning_starts=0)),
    "late rewards": ("langevin", dict(ent_coef="auto", after=60)),
    "late rewards, no entropy": ("pgac", dict(ent_coef=0.0, after=60)),
    "late rewards, fixed": ("langevin", dict(after=60)),
    "distillation": ("langevin", dict(distillation_coef=0.1)),
    "flow": ("langevin", dict(policy_kwargs=dict(refiner="flow"))),
    "lower confidence bound": ("langevin", dict(policy_kwargs=dict(energy_kwargs=dict(aggregate="lcb")))),
    "n steps": ("langevin", dict(n_steps=3)),
    "simba": ("langevin", dict(policy_kwargs=dict(backbone="simba"))),
    "flash": ("langevin", dict(policy_kwargs=dict(backbone="flash"))),
    "pgac, flash": ("pgac", dict(policy_kwargs=dict(backbone="flash"))),
    "pgac from the first step on": ("pgac", dict(learning_starts=0, policy_delay=3)),
    "pgac, late rewards": ("pgac", dict(ent_coef="auto", after=60)),
    "pgac, other losses": (
        "pgac",
        dict(matching_coef=0.5, end_to_end_coef=0.0, policy_kwargs=dict(energy_kwargs=dict(guidance=0.0))),
    ),
    "pgac, end to end": ("pgac", dict(end_to_end_coef=0.5, value_weight="relu", refine_target=True)),
}


SLOW = {"flash", "pgac, flash", "pgac from the first step on", "learned temperature of targets", "flow"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def test_rewards_times_128_change_no_bit(name):
    kind, kwargs = CASES[name]
    once, times = (learned(kind, factor, **kwargs) for factor in (1.0, 128.0))
    assert once._n_updates > 60 and once.value_units.sigma > 1.0
    assert np.array_equal(stored(once), stored(times))
    assert np.array_equal(stored(once, "rewards") * 128.0, stored(times, "rewards"))
    assert_equal(once, times)
    assert times.value_units.sigma == times.critic.value_scale.sigma == 128.0 * once.value_units.sigma
    assert times.policy.temperature == (128.0 if kind != "pgac" else 1.0) * once.policy.temperature
    obs = once.observation_space.sample()
    values = [model.policy.q_values(obs[None], np.full((1, 1), 0.3)) for model in (once, times)]
    assert values[1] == 128.0 * values[0]


def test_without_a_scale_they_do():
    once, times = (learned("langevin", factor, policy_kwargs=dict(value_scale="none")) for factor in (1.0, 128.0))
    assert not np.array_equal(stored(once), stored(times))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm, ent_coef", [(EnergySAC, 0.2), (EnergySAC, "auto"), (PGAC, 0.2)])
def test_at_the_defaults_rewards_times_128_change_no_bit(algorithm, ent_coef):
    models = []
    for factor in (1.0, 128.0):
        fixed = ent_coef if ent_coef == "auto" else ent_coef * factor
        settings = dict(buffer_size=3000, seed=0, device="cpu", ent_coef=fixed, policy_kwargs=dict(net_arch=[64, 64]) | AUTO)
        models.append(algorithm("MlpPolicy", Scaled(factor), **settings).learn(2100))
    assert models[0]._n_updates == 2000
    assert np.array_equal(*map(stored, models))
    assert_equal(*models)


@pytest.mark.parametrize("ent_coef", [0.2, "auto"])
@pytest.mark.parametrize("kind", ["langevin", "pgac"])
def test_rewards_times_100_change_rounding(kind, ent_coef):
    once, times = (learned(kind, factor, 70, ent_coef=ent_coef) for factor in (1.0, 100.0))
    assert once._n_updates == 50 and np.abs(stored(once) - stored(times)).max() < 1e-4
    assert_equal(once, times, atol=1e-4)


FIXED = 4.0


@pytest.fixture
def fixed_scale(monkeypatch):
    monkeypatch.setattr(
        "sb3_energy.training.return_scale.ReturnScale.sigma", lambda self, smallest: FIXED if self.count else smallest
    )


PLAIN = dict(refiner="none", backbone="plain", net_arch=[32, 32])


def by_sb3(algorithm, factor, ent_coef, policy_kwargs, n_updates=20, **kwargs):
    settings = dict(learning_starts=100, batch_size=32, buffer_size=500, seed=0, device="cpu") | kwargs
    return algorithm("MlpPolicy", Scaled(factor), ent_coef=ent_coef, policy_kwargs=policy_kwargs, **settings).learn(
        100 + n_updates
    )


def trained_parameters(model):
    return [*model.actor.parameters(), *model.critic.parameters(), *model.critic_target.parameters()]


@pytest.mark.parametrize("ent_coef, theirs", [(0.8, 0.2), ("auto", "auto_0.01"), ("auto_0.8", "auto_0.2")])
@pytest.mark.parametrize("kwargs", [{}, dict(n_steps=3)], ids=["", "n-step"])
def test_it_learns_as_sac_learns_from_rewards_over_the_scale(fixed_scale, ent_coef, theirs, kwargs):
    """Bit by bit, since the scale is a power of two."""
    ours = by_sb3(EnergySAC, 1.0, ent_coef, PLAIN | AUTO, update="reference", **kwargs)
    sac = by_sb3(SAC, 1.0 / FIXED, theirs, dict(net_arch=[32, 32]), **kwargs)
    assert ours._n_updates == 20 and np.array_equal(stored(ours), stored(sac))
    for mine, other in zip(trained_parameters(ours), trained_parameters(sac), strict=True):
        assert th.equal(mine, other)
    if sac.log_ent_coef is not None:
        assert th.equal(ours.log_ent_coef, sac.log_ent_coef)
        assert ours.policy.temperature == FIXED * sac.log_ent_coef.exp()


def test_quantiles_learn_as_tqcs_learn_from_rewards_over_the_scale(fixed_scale):
    """The Huber loss has a scale of its own."""
    ours = by_sb3(EnergySAC, 1.0, 0.8, PLAIN | AUTO | dict(critic="quantile"), update="reference")
    tqc = by_sb3(TQC, 1.0 / FIXED, 0.2, dict(net_arch=[32, 32]))
    for mine, other in zip(trained_parameters(ours), trained_parameters(tqc), strict=True):
        assert th.equal(mine, other)


@pytest.mark.parametrize("critic", ["scalar", "quantile"])
@pytest.mark.parametrize("kind", ["langevin", "pgac"])
def test_lean_is_the_reference(kind, critic):
    models = [
        learned(kind, n=15, policy_kwargs=dict(critic=critic), learning_starts=15, update=update, refine_exploration=False)
        for update in ("lean", "reference")
    ]
    for model in models:
        model.value_units.returns.statistics[3] = 400.0
        th.manual_seed(1), np.random.seed(1)
        model.set_logger(model.logger), model.train(5, 32)
        model.value_units.returns.statistics[3] = 900.0  # which changes the scale
        model.train(5, 32)
    assert models[0].critic.value_scale.sigma == 180.0
    assert_equal(*models, atol=1e-6)
    lean, reference = ({k: v for k, v in m.logger.name_to_value.items() if "train/" in k} for m in models)
    assert lean.pop("train/fast_matmul") is not None and reference.pop("train/fast_matmul") is not None
    assert lean == pytest.approx(reference, rel=1e-4) and lean["train/value_scale"] == 180.0


@pytest.mark.parametrize("ent_coef", [0.2, "auto"])
def test_a_change_preserves_values(ent_coef):
    model = learned("pgac", ent_coef=ent_coef)
    obs, actions = np.stack([model.observation_space.sample() for _ in range(50)]), np.linspace(-1, 1, 50)[:, None]
    tensors = th.as_tensor(obs), th.as_tensor(actions, dtype=th.float32)
    behaviour, temperature = model.potential_learner.behaviour_critic, model._current_ent_coef().clone()

    def values():
        with th.no_grad():
            found = [*model.critic(*tensors), *model.critic_target(*tensors)]
            found += [net(th.cat(tensors, dim=1)) for net in (behaviour.q_net, behaviour.q_net_target)]
            found += [behaviour.v_net(tensors[0]), th.as_tensor(model.policy.q_values(obs, actions))]
        return [part.flatten() for part in found]

    before, spread, sigma = values(), model.policy.q_scale.spread.clone(), model.value_units.returns.sigma()
    old = model.value_units.sigma
    for factor in (1.02, 3.7, 1e3, 1e-2):
        model.value_units.returns.statistics[2:4] *= factor
        model.value_units.returns.statistics[2] *= factor
        model.value_units.begin(model)
        for mine, other in zip(values(), before, strict=True):
            assert (mine - other).abs().max() / other.abs().max() < 1e-6
    assert model.value_units.sigma == pytest.approx(sigma * 1.02 * 3.7 * 10.0)
    assert model.policy.q_scale.spread == spread
    change = 1.0 if ent_coef == 0.2 else model.value_units.sigma / old
    assert model._current_ent_coef().item() == pytest.approx(change * temperature.item(), rel=1e-5)


def test_a_change_below_a_hundredth_is_left_for_later():
    model = learned("langevin", n=60)
    sigma = model.value_units.sigma
    model.value_units.returns.statistics[3] = 5.0 * sigma * 1.009
    model.value_units.begin(model)
    assert model.critic.value_scale.sigma == th.tensor(sigma)
    model.value_units.returns.statistics[3] = 5.0 * sigma * 1.011
    model.value_units.begin(model)
    assert model.critic.value_scale.sigma == th.tensor(1.011 * sigma)


def test_values_and_energies_are_in_the_units_of_the_reward():
    """A reward of 3 for ever is worth 3 / (1 - γ), to whoever asks."""

    class Constant(Target):
        def step(self, action):
            obs, _, *others = super().step(action)
            return obs, 3.0, False, *others[1:]

    settings = dict(gamma=0.5, ent_coef=1e-4, learning_rate=3e-3, tau=0.1, learning_starts=50, batch_size=64, seed=0)
    settings |= dict(gradient_steps=4)  # held actions lead to observations where it has learned less
    model = EnergySAC("MlpPolicy", Constant(), policy_kwargs=dict(net_arch=[32]) | AUTO, buffer_size=1000, **settings)
    model.learn(600)
    obs = stored(model, "observations")[-20:, 0]
    assert model.policy.q_values(obs, np.zeros((20, 2))) == pytest.approx(6.0, rel=0.05)
    tensor = th.as_tensor(obs)
    energies = model.policy.energy_fn(tensor)(th.zeros(20, 1, 2))
    assert energies.detach().numpy() == pytest.approx(-6.0, rel=0.05)
    assert model.critic.q1_forward(tensor, th.zeros(20, 2)).detach().numpy() == pytest.approx(6.0, rel=0.05)
    assert model.value_units.sigma == pytest.approx(6.0 / 5.0, rel=1e-3)
    assert model.logger.name_to_value["train/value_scale"] == model.value_units.sigma
    assert model.logger.name_to_value["train/actor_loss"] == pytest.approx(-5.0, rel=0.05), "in units of the scale"
    assert model.logger.name_to_value["train/ent_coef"] == pytest.approx(1e-4)


class Rewards(Target):
    """Pays what it is told to."""

    def __init__(self, *rewards):
        self.rewards, self.n = rewards, 0

    def step(self, action):
        obs, _, _, *others = super().step(action)
        reward = self.rewards[min(self.n, len(self.rewards) - 1)]
        self.n += 1
        return obs, reward, self.n % 9 == 0, *others


def of_rewards(*rewards, n=60, kind="langevin", **kwargs):
    return small_model(kind, env=Rewards(*rewards), policy_kwargs=AUTO, **kwargs).learn(n)


@pytest.mark.parametrize("kind", ["langevin", "pgac"])
@pytest.mark.parametrize("ent_coef, sigma", [(0.3, 0.3), ("auto", 1.0), ("auto_0.3", 1.0)])
def test_rewards_that_are_all_zero(kind, ent_coef, sigma):
    model = of_rewards(0.0, kind=kind, ent_coef=ent_coef)
    assert model.critic.value_scale.sigma == model.critic_target.value_scale.sigma == th.tensor(sigma)
    assert all(th.isfinite(value).all() for value in numbers(model).values())
    assert bool(model.critic.value_scale.is_set) == (ent_coef == 0.3)
    if ent_coef == "auto_0.3":
        assert model.policy.temperature == 1.0 if kind == "pgac" else 0.2 < model.policy.temperature < 0.3


def test_a_late_first_reward_preserves_what_was_learned_from_others(monkeypatch):
    """A buffer may give rewards that no environment has paid: values that come from them are no entropies."""
    model = of_rewards(0.0, ent_coef="auto")
    model.replay_buffer.rewards[:] = 7.0
    model.train(3, 16)
    obs = np.zeros((1, 3), np.float32)
    before, temperature = model.policy.q_values(obs, np.zeros((1, 2))), model._current_ent_coef().item()
    model.value_units.returns.statistics[3] = 40.0
    model.value_units.begin(model)
    assert model.value_units.sigma == 8.0
    assert model.policy.q_values(obs, np.zeros((1, 2))) == pytest.approx(before, rel=1e-5)
    assert model._current_ent_coef().item() == pytest.approx(temperature, rel=1e-5)


def test_ent_coef_begins_in_the_units_of_its_kind():
    def after(ent_coef):
        model = of_rewards(*range(40), n=20, ent_coef=ent_coef)
        before = model._current_ent_coef().item()
        model.value_units.begin(model)
        return before, model._current_ent_coef().item(), model.value_units.sigma

    before, now, sigma = after("auto")
    assert (before, now) == pytest.approx((0.01, 0.01 * sigma)) and sigma > 5.0
    assert after("auto_0.3")[:2] == pytest.approx((0.3, 0.3))
    assert after(0.3)[:2] == pytest.approx((0.3, 0.3))


def test_a_reward_that_is_not_finite_is_blamed_on_itself():
    with pytest.raises(ValueError, match=r"^the reward must be finite, got NaN or infinity from the environment"):
        of_rewards(*[1.0] * 40, float("nan"))


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_rewards_of_any_size(scale):
    """Squares of which are no numbers of single precision."""
    model = of_rewards(*(scale * value for value in (1.0, -2.0, 3.0, 0.5) * 20), ent_coef=0.1 * scale)
    assert all(th.isfinite(value).all() for value in numbers(model).values())
    assert 0.1 * scale < model.value_units.sigma < 10.0 * scale


def test_what_counts_with_vec_normalize_are_its_rewards():
    env = VecNormalize(DummyVecEnv([lambda: Rewards(*np.linspace(50.0, 100.0, 60).tolist())]), gamma=0.99)
    model = small_model("langevin", env=env, policy_kwargs=AUTO).learn(60)
    assert model.replay_buffer.rewards.max() > 50.0
    assert model.value_units.sigma < 5.0
    count, mean, *_ = model.value_units.returns.statistics.tolist()
    assert count == 60 and abs(mean) < 20.0


@pytest.mark.parametrize("kind", ["langevin", "pgac"])
def test_several_environments(kind):
    def several(factor):
        return DummyVecEnv([lambda: Scaled(factor)] * 3)

    once, times = (learned(kind, factor, 120, env=several) for factor in (1.0, 128.0))
    assert np.array_equal(stored(once), stored(times)) and once.value_units.returns.count == 120
    assert_equal(once, times)


class Both(Target):
    """An observation of two parts."""

    observation_space = spaces.Dict(a=spaces.Box(-9.0, 9.0, (2,)), image=spaces.Box(0, 255, (36, 36, 1), np.uint8))

    def seen(self, obs):
        return dict(a=obs[:2].clip(-9.0, 9.0), image=np.full((36, 36, 1), np.clip(128 + 40 * obs[2], 0, 255), np.uint8))

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        return self.seen(obs), info

    def step(self, action):
        obs, *others = super().step(action)
        return self.seen(obs), *others


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("algorithm", [EnergySAC, PGAC])
def test_dictionaries_and_images(algorithm, share):
    extractor = dict(features_extractor_kwargs=dict(cnn_output_dim=4), share_features_extractor=share)
    kwargs = dict(net_arch=[8], n_particles=2, refiner_steps=1) | extractor | AUTO
    more = dict(potential_training_kwargs=POTENTIAL_TRAINING) if algorithm is PGAC else {}
    models = [
        algorithm(
            "MultiInputPolicy",
            Scaled(factor, Both()),
            learning_starts=10,
            batch_size=4,
            buffer_size=50,
            seed=0,
            ent_coef=0.1 * factor,
            policy_kwargs=kwargs,
            **more,
        ).learn(22)
        for factor in (1.0, 128.0)
    ]
    assert models[0]._n_updates == 12 and np.array_equal(*map(stored, models))
    assert_equal(*models)
