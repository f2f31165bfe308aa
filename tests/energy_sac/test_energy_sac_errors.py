"""Bad input: one sentence says what and what instead, before anything is stored or changed."""

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import IdentityEnv, IdentityEnvMultiBinary, IdentityEnvMultiDiscrete
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.sac.policies import SACPolicy

from sb3_energy import EnergySAC
from sb3_energy.fast_updates.sac_gradients import SACGradients


def refuses(error, match):
    return pytest.raises(error, match=match)


def one_sentence(error):
    message = str(error.value)
    assert message and "\n" not in message and len(message) < 400, message
    return message


POLICY_ERRORS = [
    (dict(refiner="lagevin"), ValueError, "refiner must be one of .*'langevin'.*'mppi'.* or a class, got 'lagevin'"),
    (dict(refiner=3), TypeError, "refiner must be one of .*, got 3"),
    (dict(refiner=dict), TypeError, "refiner must have init, step"),
    (dict(refiner_kwargs=dict(stepsize=1)), TypeError, r"refiner_kwargs of \w+ must be among \[.*\], got \['stepsize'\]"),
    (dict(refiner_kwargs=0.1), TypeError, "refiner_kwargs must be a dict"),
    (dict(refiner_steps=-1), ValueError, "refiner_steps must be at least [01], got -1"),
    (dict(refiner_steps=2.0), TypeError, "refiner_steps must be an integer, got 2.0"),
    (dict(refiner_steps=True), TypeError, "refiner_steps must be an integer, got True"),
    (dict(n_particles=0), ValueError, "n_particles must be at least 1, got 0"),
    (dict(n_particles="many"), TypeError, "n_particles must be an integer, got 'many'"),
    (dict(initial_particles="box"), ValueError, "initial_particles must be one of .*'mixture'.*, got 'box'"),
    (dict(initial_particles=["base"]), (TypeError, ValueError), "initial_particles must be one of"),
    (dict(precondition=1), TypeError, "precondition must be True or False, got 1"),
    (dict(energy="Q"), ValueError, "energy must be one of .*'q'.* or a class, got 'Q'"),
    (dict(energy=dict), TypeError, "energy must have a method bind"),
    (dict(energy_kwargs=dict(aggregate="max")), ValueError, "aggregate must be one of .*, got 'max'"),
    (dict(energy_kwargs=dict(agregate="min")), TypeError, r"energy_kwargs of \w+ must be among"),
    (dict(backbone="resnet"), ValueError, "backbone must be one of .*'layer_norm'.*, got 'resnet'"),
    (dict(critic="distributional"), ValueError, "critic must be one of .*'quantile'.*, got 'distributional'"),
    (dict(critic="quantile", n_quantiles=0), ValueError, "n_quantiles must be at least 1, got 0"),
    (dict(critic="quantile", n_quantiles=2), ValueError, "top_quantiles_to_drop_per_net must lie in .*, got 2"),
    (dict(n_quantiles=5), ValueError, "n_quantiles .* need critic='quantile'"),
    (dict(n_critics=0), ValueError, "n_critics must be at least 1, got 0"),
    (dict(no_such_argument=1), TypeError, "no_such_argument"),
]


@pytest.mark.parametrize("policy_kwargs, error, match", POLICY_ERRORS, ids=lambda value: str(value)[:40])
def test_policy_kwargs(make_model, policy_kwargs, error, match):
    with refuses(error, match) as caught:
        make_model(policy_kwargs=policy_kwargs)
    one_sentence(caught)


LANGEVIN_ERRORS = [
    (dict(step_size=0.0), ValueError, "step_size must be above 0, got 0.0"),
    (dict(step_size=-1.0), ValueError, "step_size must be above 0, got -1.0"),
    (dict(step_size="big"), TypeError, "step_size must be a number or a schedule, got 'big'"),
    (dict(step_size=float("nan")), ValueError, "step_size must be finite, got nan"),
    (dict(step_size=float("inf")), ValueError, "step_size must be finite, got inf"),
    (dict(noise_scale=-0.1), ValueError, "noise_scale must be at least 0, got -0.1"),
    (dict(noise_scale=None), TypeError, "noise_scale must be a number or a schedule, got None"),
    (dict(max_grad_norm=0.0), ValueError, "max_grad_norm must be above 0, got 0.0"),
    (dict(max_displacement="far"), TypeError, "max_displacement must be a number or None, got 'far'"),
]


@pytest.mark.parametrize("refiner_kwargs, error, match", LANGEVIN_ERRORS, ids=str)
def test_langevin_kwargs(refiner_kwargs, error, match):
    with refuses(error, match) as caught:
        EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(refiner="langevin", refiner_kwargs=refiner_kwargs))
    one_sentence(caught)


OTHER_ERRORS = [
    (dict(entropy_estimator="soft_value", ent_coef=0.1), ValueError, "would not be asked: .* refine_target=True"),
    (dict(policy_kwargs=dict(refiner="none", n_particles=2)), ValueError, "refiner='none' .* takes n_particles=1"),
    (dict(policy_kwargs=dict(refiner="none", refiner_steps=2)), ValueError, "refiner_steps must be at most 0"),
    (dict(policy_kwargs=dict(refiner="mppi", trust_region=1.0)), ValueError, "trust_region needs a refiner that moves"),
    (dict(policy_kwargs=dict(trust_region=0.0)), ValueError, "trust_region must be above 0, got 0.0"),
    (dict(policy_kwargs=dict(deterministic_particles=0)), ValueError, "deterministic_particles must be .*, got 0"),
    (dict(policy_kwargs=dict(deterministic_particles="1")), TypeError, "deterministic_particles must be .*, got '1'"),
    (
        dict(policy_kwargs=dict(refiner="mppi", deterministic_particles=2)),
        ValueError,
        "deterministic_particles needs a refiner that moves each particle alone, .*, got 2 with refiner='mppi'",
    ),
    (
        dict(policy_kwargs=dict(refiner="none", deterministic_particles=1)),
        ValueError,
        "deterministic_particles needs a refiner that moves each particle alone, .*, got 1 with refiner='none'",
    ),
    (dict(policy_kwargs=dict(refiner="none"), distillation_coef=0.1), ValueError, "distillation_coef=0.1 needs refined"),
]


@pytest.mark.parametrize("kwargs, error, match", OTHER_ERRORS, ids=lambda value: str(value)[:40])
def test_combinations(kwargs, error, match):
    with refuses(error, match) as caught:
        EnergySAC("MlpPolicy", "Pendulum-v1", buffer_size=10, **kwargs)
    one_sentence(caught)


ALGORITHM_ERRORS = [
    (dict(entropy_estimator="soft"), ValueError, "entropy_estimator must be one of .*'soft_value'.*, got 'soft'"),
    (dict(entropy_estimator=3), TypeError, "entropy_estimator must be one of .*, got 3"),
    (dict(entropy_estimator=dict), TypeError, r"entropy_estimator must have a method estimate\(context\), dict has none"),
    (dict(entropy_estimator="soft_value", entropy_estimator_kwargs=dict(n=3)), TypeError, "entropy_estimator_kwargs of"),
    (dict(refine_exploration="yes"), TypeError, "refine_exploration must be True or False, got 'yes'"),
    (dict(refine_target=1), TypeError, "refine_target must be True or False, got 1"),
    (dict(distillation_coef=-0.5), ValueError, "distillation_coef must be at least 0, got -0.5"),
    (dict(distillation_coef=float("nan")), ValueError, "distillation_coef must be finite, got nan"),
    (dict(distillation_coef="high"), TypeError, "distillation_coef must be a number, got 'high'"),
    (dict(ent_coef=-1.0), ValueError, "ent_coef .*must be (above|at least) 0, got -1.0"),
    (dict(policy=SACPolicy), TypeError, "policy must be one of .*'MlpPolicy'.* or a (Refined|Potential)Policy, got SACPolicy"),
    (dict(policy="MlpPolicyy"), ValueError, "MlpPolicyy"),
]


@pytest.mark.parametrize("kwargs, error, match", ALGORITHM_ERRORS, ids=lambda value: str(value)[:40])
def test_algorithm_arguments(make_model, kwargs, error, match):
    with refuses(error, match) as caught:
        make_model(**kwargs)
    one_sentence(caught)


@pytest.mark.parametrize("kind", ["langevin", "mppi"])
def test_the_temperature_of_the_energy_is_not_0(make_model):
    with refuses(ValueError, "ent_coef is the temperature of the energy and must be above 0, got 0.0") as caught:
        make_model(ent_coef=0.0)
    one_sentence(caught)


@pytest.mark.parametrize("env", [IdentityEnv(2), IdentityEnvMultiDiscrete(2), IdentityEnvMultiBinary(2)], ids=str)
def test_discrete_actions(make_model, env):
    with refuses(AssertionError, "only supports .*Box.* as action spaces but .* was provided") as caught:
        make_model(env=env)
    one_sentence(caught)


class Broken(gym.Env):
    """Returns a number that is none at one place."""

    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, where="nothing", at=0, value=np.nan, observations="vector"):
        self.where, self.at, self.value, self.observations = where, at, value, observations
        box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = box if observations == "vector" else spaces.Dict(first=box, second=box)
        self.steps = 0

    def _observation(self, broken):
        obs = np.array([0.1, self.value if broken else 0.2], np.float32)
        return obs if self.observations == "vector" else dict(first=np.zeros(2, np.float32), second=obs)

    def reset(self, *, seed=None, options=None):
        return self._observation(self.where == "reset" and self.steps >= self.at), {}

    def step(self, action):
        self.steps += 1
        now = self.steps == self.at
        reward = self.value if now and self.where == "reward" else 1.0
        terminated = self.steps % 10 == 0
        broken = now and self.where == ("terminal observation" if terminated else "observation")
        return self._observation(broken), reward, terminated, False, {}


PLACES = [
    ("observation", 13, "before"),
    ("observation", 35, "after"),
    ("terminal observation", 10, "before"),
    ("terminal observation", 40, "after"),
    ("reset", 0, "at the start"),
    ("reset", 15, "before"),
    ("reward", 13, "before"),
    ("reward", 35, "after"),
]


@pytest.mark.parametrize("observations", ["vector", "dict"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where, at, when", PLACES)
def test_what_is_no_number_is_not_stored(observations, value, where, at, when):
    """Before and after learning starts; the networks and the buffer stay finite."""
    env = Broken(where, at, value, observations)
    model = EnergySAC(
        "MlpPolicy" if observations == "vector" else "MultiInputPolicy",
        env,
        learning_starts=25,
        batch_size=8,
        buffer_size=100,
        policy_kwargs=dict(net_arch=[8], n_particles=2, refiner_steps=1),
    )
    what = "reward" if where == "reward" else "observation"
    with refuses(ValueError, f"the {what}.* must be finite, got .*NaN or infinity") as caught:
        model.learn(60)
    one_sentence(caught)
    assert model.num_timesteps == {"reset": -(-at // 10) * 10}.get(where, at)
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())
    buffer = model.replay_buffer
    parts = [buffer.rewards]
    for stored in (buffer.observations, buffer.next_observations):
        parts += stored.values() if isinstance(stored, dict) else [stored]
    assert all(np.isfinite(part).all() for part in parts)


def test_what_is_no_number_under_vec_normalize():
    env = VecNormalize(DummyVecEnv([lambda: Broken("reward", 13)]))
    model = EnergySAC("MlpPolicy", env, buffer_size=50, policy_kwargs=dict(net_arch=[8]))
    with refuses(ValueError, "the reward must be finite"):
        model.learn(60)
    assert np.isfinite(model.replay_buffer.rewards).all()


def test_predict_refuses_what_is_no_number(make_model):
    with refuses(ValueError, "the observation must be finite, got one with NaN or infinity") as caught:
        make_model().predict(np.array([0.0, np.nan, 0.0], np.float32))
    one_sentence(caught)


def break_loss(model, monkeypatch, loss, value):
    """Make a loss of the next update a number that is none, in whichever way it is computed."""
    name = {"ent_coef_loss": "temperature_loss"}.get(loss, loss)
    if model.update == "lean":
        owner = SACGradients
    elif loss == "critic_loss":
        owner, name = model.critic, "td_loss"
    else:
        owner = sys.modules["sb3_energy.training.plain_updates"]
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args: value * original(*args).abs())


@pytest.mark.parametrize("update", ["lean", "reference"])
@pytest.mark.parametrize("loss", ["critic_loss", "actor_loss", "ent_coef_loss"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_no_number_stops_before_the_step(make_model, monkeypatch, loss, value, update):
    model = make_model(update=update).learn(25)
    break_loss(model, monkeypatch, loss, value)
    changing = {"critic_loss": model.critic, "actor_loss": model.actor}.get(loss)
    tensors = dict(changing.state_dict()) if changing is not None else dict(log_ent_coef=model.log_ent_coef.detach())
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with refuses(FloatingPointError, f"^{loss} is (nan|-?inf): training stops before it changes the networks; try") as caught:
        model.train(1, 16)
    one_sentence(caught)
    assert all(th.equal(before[name], tensor) for name, tensor in tensors.items())
    assert all(th.isfinite(tensor).all() for tensor in model.policy.state_dict().values())


def test_a_critic_that_diverged_stops_the_refinement(make_model):
    model = make_model().learn(25)
    with th.no_grad():
        for parameter in model.critic.parameters():
            parameter.fill_(float("nan"))
    for deterministic in (True, False):
        with refuses(FloatingPointError, "a non-finite energy appeared .*; try a lower learning_rate") as caught:
            model.predict(np.zeros(3, np.float32), deterministic=deterministic)
        one_sentence(caught)


# ---------------------------------------------------------------------- files
