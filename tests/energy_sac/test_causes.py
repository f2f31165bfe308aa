"""NaN and infinity are blamed on what made them, and nothing of them is stored: no parameter, buffer or transition."""

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_energy import EnergySAC
from sb3_energy.deferred import deferred
from sb3_energy.networks import RunningNorm
from sb3_energy.pgac.q_scale import QScale
from sb3_energy.policies.arguments import check_action_bounds
from sb3_energy.policies.refined_policy import RefinedPolicy
from tests.models import small_model

NAN, INF = float("nan"), float("inf")


def one_sentence(error):
    message = str(error.value)
    assert message and "\n" not in message and len(message) < 400, message
    return message


# ------------------------------------------------------------------ arguments


ARGUMENTS = [
    *[(dict(learning_rate=value), ValueError, "learning_rate must be finite and at least 0") for value in (NAN, INF, -1e-3)],
    (dict(learning_rate=lambda _: NAN), ValueError, "learning_rate must be .*, got nan at progress_remaining=1"),
    (dict(learning_rate=lambda _: -1.0), ValueError, "learning_rate must be .*, got -1.0 at progress_remaining=1"),
    (dict(learning_rate=lambda _: None), TypeError, "learning_rate must return a number, got None"),
    (dict(learning_rate="fast"), TypeError, "learning_rate must be a number or a schedule, got 'fast'"),
    (dict(ent_coef=INF), ValueError, "ent_coef must be finite, .*got inf"),
    (dict(ent_coef=NAN), ValueError, "ent_coef must be finite, .*got nan"),
    (dict(ent_coef=-0.1), ValueError, "ent_coef must be at least 0, got -0.1"),
    *[
        (dict(ent_coef=f"auto_{value}"), ValueError, "ent_coef must start at a finite value")
        for value in ("nan", "inf", 0, -1, 1e-50)
    ],
    (dict(ent_coef="auto_x"), ValueError, "ent_coef must be a number, .*, got 'auto_x'"),
    (dict(ent_coef="low"), ValueError, "ent_coef must be a number, .*, got 'low'"),
    (dict(ent_coef=None), TypeError, "ent_coef must be a number, .*, got None"),
    (dict(target_entropy=NAN), ValueError, "target_entropy must be finite"),
    (dict(target_entropy=-INF), ValueError, "target_entropy must be finite"),
    (dict(target_entropy="low"), TypeError, 'target_entropy must be a number or "auto", got'),
    *[(dict(tau=value), ValueError, r"tau must lie in \[0, 1\]") for value in (NAN, INF, -0.1, 1.1)],
    (dict(tau="slow"), TypeError, "tau must be a number, got 'slow'"),
    *[(dict(gamma=value), ValueError, r"gamma must lie in \[0, 1\]") for value in (NAN, INF, -0.1, 1.1)],
    (dict(gamma=None), TypeError, "gamma must be a number, got None"),
    (dict(learning_starts=NAN), ValueError, "learning_starts must be a number of steps, got nan"),
    (dict(learning_starts="late"), TypeError, "learning_starts must be a number, got 'late'"),
    (dict(batch_size=0), ValueError, "batch_size must be at least 1, got 0"),
    (dict(batch_size=16.0), TypeError, "batch_size must be an integer, got 16.0"),
    (dict(buffer_size=1e3), TypeError, "buffer_size must be an integer, got 1000.0"),
    (dict(train_freq=0), ValueError, "train_freq must be at least 1, got 0"),
    (dict(train_freq=(0, "episode")), ValueError, "train_freq must be at least 1"),
    (dict(gradient_steps=1.5), TypeError, "gradient_steps must be an integer, got 1.5"),
    (dict(target_update_interval=0), ValueError, "target_update_interval must be above 0, got 0"),
    (dict(n_steps=0), ValueError, "n_steps must be at least 1, got 0"),
    (dict(n_steps=1.5), TypeError, "n_steps must be an integer, got 1.5"),
]


@pytest.mark.parametrize("kwargs, error, match", ARGUMENTS, ids=lambda value: str(value)[:40])
def test_arguments(make_model, kwargs, error, match):
    with pytest.raises(error, match=match) as caught:
        make_model(**kwargs)
    one_sentence(caught)


SB3_TAKES = [
    dict(gradient_steps=-1),
    dict(gradient_steps=0),
    dict(train_freq=(1, "episode"), gradient_steps=-1),
    dict(learning_starts=20.0),
    dict(learning_rate=0.0),
    dict(learning_rate=lambda remaining: 1e-3 * remaining),
    dict(tau=1.0),
    dict(tau=0),
    dict(gamma=0),
    dict(gamma=1.0),
    dict(ent_coef="auto_0.1"),
    dict(ent_coef="0.2"),
    dict(target_entropy="-2.5"),
    dict(target_entropy=-2),
    dict(n_steps=3),
    dict(target_update_interval=2),
    dict(buffer_size=np.int64(100), batch_size=np.int64(8)),
]


def without_addresses(kwargs):
    """Names of tests are the same in all processes."""
    return str({name: "schedule" if callable(value) else value for name, value in kwargs.items()})


@pytest.mark.parametrize("kwargs", SB3_TAKES, ids=without_addresses)
def test_what_sb3_takes_is_taken(make_model, kwargs):
    make_model(**kwargs).learn(24)


@pytest.mark.parametrize("name, value", [("tau", NAN), ("gamma", NAN), ("tau", 2.0), ("gamma", -0.5)])
def test_arguments_of_load(make_model, tmp_path, name, value):
    model = make_model()
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\]"):
        type(model).load(tmp_path / "model", **{name: value})


# -------------------------------------------------------------- action bounds


class Bounded(gym.Env):
    """An environment of given action bounds, whatever gymnasium says of them."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, low, high, dtype=np.float32):
        low, high = np.array(low, dtype), np.array(high, dtype)
        self.action_space = spaces.Box(-np.ones_like(low), np.ones_like(low), dtype=dtype)
        self.action_space.low, self.action_space.high = low, high

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}


BOUNDS = [
    ([-1.0, 0.0], [1.0, 0.0], "got low=0.0 and high=0.0 in dimension 1"),
    ([0.5, -1.0], [-0.5, 1.0], "got low=0.5 and high=-0.5 in dimension 0"),
    ([-1.0, -INF], [1.0, INF], "got low=-inf and high=inf in dimension 1"),
    ([-1.0, -1.0], [1.0, INF], "got low=-1.0 and high=inf in dimension 1"),
    ([NAN, -1.0], [1.0, 1.0], "got low=nan and high=1.0 in dimension 0"),
    ([-1.0, -3e38], [1.0, 3e38], "got low=-.* in dimension 1"),  # whose difference is no 32-bit number
    ([[-1.0, -1.0], [-1.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]], r"got low=0.0 and high=0.0 in dimension \(1, 1\)"),
]


@pytest.mark.parametrize("low, high, match", BOUNDS)
def test_bounds_of_actions(make_model, low, high, match):
    env = Bounded(low, high)
    match = f"the action space must have finite bounds with low < high in each dimension, {match}"
    with pytest.raises(ValueError, match=match) as caught:
        make_model(env=env)
    one_sentence(caught)
    with pytest.raises(ValueError, match=match):
        RefinedPolicy(env.observation_space, env.action_space, lambda _: 1e-3)


def test_bounds_of_actions_in_load_and_set_env(make_model, tmp_path):
    model = make_model(env=Bounded([-1.0, -1.0], [1.0, 1.0]))
    model.save(tmp_path / "model")
    for use in (model.set_env, lambda env: type(model).load(tmp_path / "model", env=env)):
        with pytest.raises(ValueError, match="in dimension 1"):
            use(Bounded([-1.0, 0.0], [1.0, 0.0]))


def test_narrow_and_wide_bounds_are_taken():
    check_action_bounds(spaces.Box(np.array([-1e30, 0.0], np.float32), np.array([1e30, 1e-30], np.float32)))


# ------------------------------------------------------------ what is stored


class Faulty(gym.Env):
    """Returns one number that is none in single precision."""

    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, where, value, at=13, shape="vector", dtype=np.float64):
        self.where, self.value, self.at, self.shape, self.dtype = where, value, at, shape, dtype
        box = spaces.Box(-np.inf, np.inf, (2,), dtype)
        image = spaces.Box(0, 255, (3,), np.uint8)
        self.observation_space = box if shape == "vector" else spaces.Dict(first=box, image=image)
        self.steps = 0

    def _obs(self, value=0.2):
        obs = np.array([0.1, value], self.dtype)
        return obs if self.shape == "vector" else dict(first=obs, image=np.zeros(3, np.uint8))

    def reset(self, *, seed=None, options=None):
        return self._obs(self.value if self.where == "reset" else 0.2), {}

    def step(self, action):
        self.steps += 1
        now = self.steps == self.at
        terminated = now and self.where == "terminal"
        obs = self._obs(self.value if now and self.where in ("observation", "terminal") else 0.2)
        return obs, self.value if now and self.where == "reward" else 1.0, terminated, False, {}


def stored(model):
    """Everything that a checkpoint holds, as arrays."""
    parts = [value.numpy().copy() for value in model.policy.state_dict().values()]
    for optimizer in model._optimizers():
        for state in optimizer.state.values():
            parts += [value.numpy().copy() for value in state.values() if isinstance(value, th.Tensor)]
    if model.log_ent_coef is not None:
        parts.append(model.log_ent_coef.detach().numpy().copy())
    buffer = model.replay_buffer
    for part in (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards):
        parts += [value.copy() for value in (part.values() if isinstance(part, dict) else [part])]
    return parts


def all_finite(model):
    return all(np.isfinite(part).all() for part in stored(model))


def same(model, before):
    return all(np.array_equal(mine, theirs) for mine, theirs in zip(stored(model), before, strict=True))


@pytest.mark.parametrize("where", ["observation", "terminal", "reset", "reward"])
@pytest.mark.parametrize("shape", ["vector", "dict"])
@pytest.mark.parametrize("value", [1e300, -1e39, NAN])
@pytest.mark.filterwarnings("ignore:overflow")  # SB3 casts rewards before anybody looks
def test_numbers_beyond_single_precision(make_model, where, shape, value):
    policy = "MlpPolicy" if shape == "vector" else "MultiInputPolicy"
    model = make_model(policy=policy, env=Faulty(where, value, shape=shape), buffer_size=60)
    what = "reward" if where == "reward" else "observation"
    with pytest.raises(ValueError, match=f"the {what}.* must be finite.*from the environment; nothing was stored") as caught:
        model.learn(30)
    one_sentence(caught)
    assert all_finite(model)


def test_what_is_stored_under_vec_normalize():
    """What is normalised is clipped, and what is stored is not."""
    env = VecNormalize(DummyVecEnv([lambda: Faulty("observation", 1e300)]))
    model = EnergySAC("MlpPolicy", env, buffer_size=50, policy_kwargs=dict(net_arch=[8]))
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="the observation must be finite"):
        model.learn(30)
    assert all_finite(model)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fast", [True, False])
def test_predict_sees_single_precision(make_model, dtype, fast):
    model = make_model()
    model.policy.fast_predict = fast
    with pytest.raises(ValueError, match="the observation must be finite"):
        model.predict(np.array([0.0, np.inf if dtype is np.float32 else 1e300, 0.0], dtype))
    assert np.isfinite(model.predict(np.array([0.0, 1e18, 0.0]).astype(dtype))[0]).all()


class NaNNoise(ActionNoise):
    """Noise that becomes NaN."""

    calls = 0

    def __call__(self):
        self.calls += 1
        return np.array([NAN if self.calls > 12 else 0.0], np.float32)


def test_action_noise(make_model):
    model = make_model(action_noise=NaNNoise())
    with pytest.raises(FloatingPointError, match=r"the action must be finite .* stored: action_noise returned NaN") as caught:
        model.learn(30)
    one_sentence(caught)
    assert model.num_timesteps == 12 and all_finite(model)


@pytest.mark.parametrize("refiner", ["none", "langevin"])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("deterministic", [True, False])
def test_an_actor_that_is_nan(refiner, fast, deterministic):
    model = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[8], refiner=refiner), buffer_size=50)
    model.learn(12)
    with th.no_grad():
        model.actor.mu.bias.fill_(NAN)
    model.policy.fast_predict = fast
    match = r"the actor's parameters contain NaN \(mu.bias\)"
    if refiner == "none":  # as SB3's
        with pytest.raises(ValueError, match="Expected parameter loc"):
            model.predict(np.zeros(3, np.float32), deterministic=deterministic)
    else:
        with pytest.raises(FloatingPointError, match=match) as caught:
            model.predict(np.zeros(3, np.float32), deterministic=deterministic)
        one_sentence(caught)
    model.learning_starts, n_stored = 0, model.replay_buffer.pos
    with pytest.raises(FloatingPointError, match=match) as caught:
        model.learn(5, reset_num_timesteps=False)
    one_sentence(caught)
    assert model.replay_buffer.pos == n_stored


# -------------------------------------------------------------------- updates


def trained(make_model, **kwargs):
    return make_model(**kwargs).learn(25)


def break_critic(model):
    with th.no_grad():
        next(model.critic.parameters()).fill_(NAN)


def break_target(model):
    with th.no_grad():
        next(model.critic_target.parameters()).fill_(INF)


def break_actor(model):
    with th.no_grad():
        model.actor.log_std.weight.fill_(NAN)


def break_rewards(model):
    model.replay_buffer.rewards[:] = NAN


def break_observations(model):
    model.replay_buffer.observations[:] = INF


def huge_observations(model):
    model.replay_buffer.observations[:] = 1e30
    model.policy.actor.latent_pi[0].weight.data.fill_(1e10)


def huge_rewards(model):
    model.replay_buffer.rewards[:] = -1e30


def overflow_ent_coef(model):
    with th.no_grad():
        model.log_ent_coef.fill_(100.0)


def set_nan(name):
    def change(model):
        setattr(model, name, NAN)

    return change


BUFFER = r"the replay buffer has NaN or infinity in row \d+ of its"
CHANGES = {
    "critic": (break_critic, FloatingPointError, "the critic's parameters contain NaN"),
    "target critic": (break_target, FloatingPointError, "the target critic's parameters contain infinity"),
    "actor": (break_actor, FloatingPointError, r"the actor's parameters contain NaN \(log_std.weight\)"),
    "rewards": (break_rewards, FloatingPointError, rf"{BUFFER} rewards"),
    "observations": (break_observations, FloatingPointError, rf"{BUFFER} observations"),
    "large rewards": (
        huge_rewards,
        FloatingPointError,
        r"the replay buffer's rewards are as large as 1e\+30, .*; scale them$",
    ),
    "large observations": (huge_observations, FloatingPointError, r"the replay buffer's observations are as large as 1e\+30"),
    "ent_coef": (overflow_ent_coef, FloatingPointError, r"the learned entropy coefficient \(ent_coef\) overflowed"),
    "tau": (set_nan("tau"), ValueError, r"tau must lie in \[0, 1\], got nan"),
    "gamma": (set_nan("gamma"), ValueError, r"gamma must lie in \[0, 1\], got nan"),
    "target_entropy": (set_nan("target_entropy"), FloatingPointError, "target_entropy is nan"),
}


@pytest.mark.parametrize("update", ["lean", "reference"])
@pytest.mark.parametrize("change", list(CHANGES))
def test_an_update_names_the_cause(make_model, change, update):
    model = trained(make_model, update=update)
    apply, error, match = CHANGES[change]
    apply(model)
    before = stored(model)
    with pytest.raises(error, match=match) as caught:
        model.train(1, 16)
    one_sentence(caught)
    changed = stored(model)
    for mine, theirs in zip(changed, before, strict=True):  # other losses may have stepped, and are finite
        assert np.isfinite(mine).all() or np.array_equal(mine, theirs, equal_nan=True)


@pytest.mark.parametrize("value", [NAN, INF, -1e-3])
def test_a_schedule_of_learning_rates(make_model, value):
    rate = ScheduleThatBreaks(value)
    model = make_model(learning_rate=rate)
    before = []
    original = model._update_learning_rate
    model._update_learning_rate = lambda optimizers: (before.clear(), before.extend(stored(model)), original(optimizers))
    match = rf"learning_rate must be finite and at least 0, got {value!r} at progress_remaining=0\.\d+"
    with pytest.raises(ValueError, match=match) as caught:
        model.learn(60)
    one_sentence(caught)
    del model._update_learning_rate
    assert all_finite(model) and same(model, before)
    assert all(group["lr"] == 1e-3 for optimizer in model._optimizers() for group in optimizer.param_groups)


class ScheduleThatBreaks:
    """A learning rate that is none in the second half."""

    def __init__(self, value):
        self.value = value

    def __call__(self, remaining):
        return self.value if remaining < 0.5 else 1e-3


class RootActivation(th.nn.Module):
    """Finite everywhere, with a derivative that is not: a root that touches 0."""

    is_broken = False

    def forward(self, x):
        return (x * 0.0).abs().sqrt() + x if RootActivation.is_broken else x.tanh()


@pytest.mark.parametrize("update", ["lean", "reference"])
def test_a_finite_loss_whose_gradient_is_not(make_model, update, monkeypatch):
    model = trained(make_model, update=update, policy_kwargs=dict(activation_fn=RootActivation, backbone="plain"))
    monkeypatch.setattr(RootActivation, "is_broken", True)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    with pytest.raises(
        FloatingPointError, match="the gradient of critic_loss contains NaN or infinity: training stops"
    ) as caught:
        model.train(1, 16)
    one_sentence(caught)
    assert all(th.equal(*pair) for pair in zip(before, model.policy.parameters(), strict=True))
    assert all_finite(model)


def test_a_hook_that_makes_a_gradient_nan(make_model):
    model = trained(make_model, update="reference")
    weight = model.critic.q_networks[0][0].weight
    weight.register_hook(lambda gradient: gradient * NAN)
    before = weight.detach().clone()
    with pytest.raises(FloatingPointError, match="the gradient of critic_loss contains NaN or infinity"):
        model.train(1, 16)
    assert th.equal(before, weight) and all_finite(model)


@pytest.mark.parametrize("value", [1e30, INF, NAN])
def test_running_statistics_stay_finite(value):
    norm = RunningNorm(2)
    norm.update(th.randn(8, 2))
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    batch = th.randn(8, 2)
    batch[3, 1] = value  # of 1e30 the square is not finite in single precision
    with pytest.raises(FloatingPointError, match="the running statistics of the observations would become NaN or infinite"):
        norm.update(batch)
    with deferred() as checks:
        norm.update(batch)
    with pytest.raises(FloatingPointError, match="the running statistics"):
        checks.raise_first()
    assert all(th.equal(before[name], buffer) for name, buffer in norm.named_buffers() if name != "running_count")


# ------------------------------------------------------------ energies of one's own


def turns_nan(observations, actions):
    """Finite until somebody says so."""
    return actions.square().sum(-1) + (NAN if BROKEN else 0.0)


def nan_in_the_environment(observations, actions):
    """Finite at the observations of the space, not at those of the environment."""
    return actions.square().sum(-1) + th.where((observations[:, :1] - 0.1).abs() < 1e-6, NAN, 0.0)


BROKEN: list[bool] = []


@pytest.mark.parametrize("refiner", ["langevin", "mppi", "snis", "svgd", "derivative_free", "flow"])
def test_an_energy_that_turns_nan(refiner, monkeypatch):
    policy_kwargs = dict(net_arch=[8], energy=turns_nan, refiner=refiner)
    settings = dict(learning_starts=20, batch_size=16, buffer_size=50, refine_target=True)
    model = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, **settings).learn(25)
    monkeypatch.setattr(sys.modules[__name__], "BROKEN", [True])
    before = stored(model)
    match = "energy=turns_nan returned NaN or infinity, while all parameters are finite$"
    for act in (lambda: model.predict(np.zeros(3, np.float32), deterministic=True), lambda: model.train(1, 16)):
        with pytest.raises(FloatingPointError, match=match) as caught:
            act()
        assert "learning_rate" not in one_sentence(caught)
    assert all(np.isfinite(part).all() for part in stored(model))
    buffer = [model.replay_buffer.actions, model.replay_buffer.rewards]
    assert all(np.array_equal(*pair) for pair in zip(buffer, before[-2:], strict=True))


def test_an_energy_that_is_nan_at_the_first_observation():
    policy_kwargs = dict(net_arch=[8], energy=nan_in_the_environment)
    model = EnergySAC("MlpPolicy", Faulty("nothing", 0.0), buffer_size=50, policy_kwargs=policy_kwargs)
    match = r"energy=nan_in_the_environment must be finite, got nan at the environment's first observation; nothing was stored"
    with pytest.raises(ValueError, match=match) as caught:
        model.learn(30)
    one_sentence(caught)
    assert model.num_timesteps == 0 and model.replay_buffer.pos == 0


# ----------------------------------------------------------------- potentials


def test_a_potential_that_is_nan():
    model = small_model("pgac").learn(25)
    with th.no_grad():
        next(model.policy.potential.parameters()).fill_(NAN)
    n_stored = model.replay_buffer.pos
    for act in (lambda: model.predict(np.zeros(3, np.float32)), lambda: model.learn(5, reset_num_timesteps=False)):
        with pytest.raises(FloatingPointError, match="the potential's parameters contain NaN") as caught:
            act()
        one_sentence(caught)
    assert model.replay_buffer.pos == n_stored


def test_the_spread_of_q_stays_finite():
    scale = QScale()
    scale.update(th.randn(4, 20))
    before = scale.spread.clone()
    with pytest.raises(FloatingPointError, match="the critic's values are NaN or infinite"):
        scale.update(th.full((4, 20), NAN))
    assert th.equal(scale.spread, before) and scale.n_updates == 1
