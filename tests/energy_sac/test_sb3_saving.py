"""Saving and loading: of everything, of the policy alone, with attributes left out or added."""

import base64
import io
import json
import operator
import zipfile

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_energy import PGAC, EnergySAC
from sb3_energy.refiners import Langevin
from sb3_energy.schedules import Polynomial

OBS = np.random.default_rng(0).uniform(-1, 1, size=(6, 3)).astype(np.float32)


def tensors(model):
    """Everything learned, the optimisers' states included, flat."""
    names, variables = model._get_torch_save_params()
    flat = {name: getattr(model, name) for name in variables}
    for name in names:
        state = operator.attrgetter(name)(model).state_dict()
        if "state" in state:  # an optimiser's
            flat |= {f"{name}/{index}/{key}": value for index, part in state["state"].items() for key, value in part.items()}
        else:
            flat |= {f"{name}/{key}": value for key, value in state.items()}
    return {name: th.as_tensor(value).detach().clone() for name, value in flat.items()}


def assert_same_tensors(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not th.equal(first[name], second[name])] == []


def assert_acts_the_same(first, second, obs=OBS):
    for deterministic in (True, False):
        th.manual_seed(3)
        expected, _ = first.predict(obs, deterministic=deterministic)
        th.manual_seed(3)
        assert np.array_equal(expected, second.predict(obs, deterministic=deterministic)[0])


@pytest.mark.parametrize("ent_coef", ["auto_0.3", 0.2])
@pytest.mark.parametrize("where", ["str", "path", "file"])
def test_everything_comes_back(make_model, algorithm, tmp_path, ent_coef, where):
    model = make_model(ent_coef=ent_coef, target_entropy=-0.5, learning_rate=1e-2).learn(40)
    target = {"str": str(tmp_path / "new folder" / "model"), "path": tmp_path / "model.zip", "file": io.BytesIO()}[where]
    model.save(target)
    if where == "file":
        target.seek(0)
    loaded = algorithm.load(target, env=model.get_env())
    before = tensors(model)
    assert len([name for name in before if "optimizer" in name]) > 10
    assert_same_tensors(before, tensors(loaded))
    assert loaded.policy.temperature.item() == model.policy.temperature.item()
    assert (model.policy.temperature.item() == 1.0) == (algorithm is PGAC), "whose temperature is a part of its energy"
    assert_acts_the_same(model, loaded)
    assert loaded.num_timesteps == 40 and loaded._n_updates == 20
    if ent_coef != 0.2:  # the optimiser must hold the tensor that is used
        assert loaded.ent_coef_optimizer.param_groups[0]["params"][0] is loaded.log_ent_coef
    loaded.learn(30, reset_num_timesteps=False)
    assert loaded.num_timesteps == 70


def test_settings_come_back(make_model, algorithm, tmp_path):
    settings = dict(refine_exploration=False, refine_target=True, entropy_estimator="soft_value", distillation_coef=0.5)
    settings["policy_kwargs"] = dict(refiner="langevin")  # for which the soft value is valid
    noise = NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))
    model = make_model(**settings, entropy_estimator_kwargs=dict(n_proposals=8), action_noise=noise, gamma=0.9)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    for name in (*settings, "entropy_estimator_kwargs", "gamma", "batch_size", "seed", "policy_kwargs"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert loaded.entropy_term.estimator == model.entropy_term.estimator
    assert loaded.policy.refinement == model.policy.refinement
    assert loaded.policy.energy == model.policy.energy


def test_a_loaded_model_learns_on_as_the_saved_one(make_model, algorithm, tmp_path):
    """Weights, optimisers, temperature, buffer: nothing that an update depends on is lost."""
    model = make_model(refine_target=True).learn(40)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = algorithm.load(tmp_path / "model", env=model.get_env())
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.set_logger(model.logger)
    for one in (model, loaded):
        one.set_random_seed(1)
        one.train(5, 16)
    assert_same_tensors(tensors(model), tensors(loaded))


def test_set_parameters_and_get_parameters(make_model):
    model, other = make_model().learn(40), make_model(seed=1)
    other.set_parameters(model.get_parameters())
    parameters = model.get_parameters()["policy"]
    assert all(th.equal(value, other.get_parameters()["policy"][name]) for name, value in parameters.items())
    assert "temperature" in parameters
    with pytest.raises(ValueError, match="agents"):
        other.set_parameters({"policy": parameters}, exact_match=True)


def test_exclude_and_include(make_model, tmp_path):
    model = make_model()
    model.save(tmp_path / "less", exclude=["gamma"])
    model.save(tmp_path / "more", include=["replay_buffer"])
    names = {path.stem: set(json.loads(zipfile.ZipFile(path).read("data"))) for path in tmp_path.iterdir()}
    assert "gamma" not in names["less"] and "tau" in names["less"]
    assert "replay_buffer" in names["more"] and "replay_buffer" not in names["less"]
    for aliases_and_transients in ("policy", "actor", "critic", "critic_target", "return_tracker", "env", "entropy_term"):
        assert aliases_and_transients not in names["less"]


def test_the_file_holds_each_network_once(make_model, tmp_path):
    """An alias that is not excluded would pickle a module into the settings."""
    model = make_model().learn(30)
    model.save(tmp_path / "model")
    data = json.loads(zipfile.ZipFile(tmp_path / "model.zip").read("data"))
    for name, value in data.items():
        serialized = value.get(":serialized:") if isinstance(value, dict) else None
        if serialized is not None:
            assert b"torch._utils" not in base64.b64decode(serialized), name


def test_saving_does_not_disturb_a_training(make_model, tmp_path):
    def run(save):
        model = make_model().learn(30)
        if save:
            model.save(tmp_path / "model")
            model.save_replay_buffer(tmp_path / "buffer")
        return tensors(model.learn(20, reset_num_timesteps=False))

    assert_same_tensors(run(False), run(True))


def test_set_env(make_model):
    model = make_model().learn(30)
    first = model.get_env()
    model.set_env(DummyVecEnv([lambda: first.envs[0]]))
    assert model.get_env() is not first and model._last_obs is None
    model.learn(30, reset_num_timesteps=False)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        model.set_env(IdentityEnvBox())
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(make_vec_env("Pendulum-v1", n_envs=2))


def test_load_for_another_number_of_environments(make_model, algorithm, tmp_path):
    make_model().learn(30).save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=make_vec_env("Pendulum-v1", n_envs=3))
    loaded.learn(60)
    assert loaded.num_timesteps == 60 and loaded.replay_buffer.pos == 20


def test_load_with_changed_settings(make_model, algorithm, tmp_path):
    model = make_model()
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", gamma=0.5, custom_objects=dict(learning_rate=1e-4))
    assert loaded.gamma == 0.5 and loaded.lr_schedule(1.0) == 1e-4
    assert algorithm.load(tmp_path / "model", policy_kwargs=model.policy_kwargs).policy.refinement == model.policy.refinement
    with pytest.raises(ValueError, match="policy kwargs"):
        algorithm.load(tmp_path / "model", policy_kwargs=dict(refiner="none"))


def test_the_policy_alone_acts_the_same(make_model, algorithm, tmp_path):
    """A Gibbs policy without its temperature would be another policy."""
    model = make_model(learning_rate=1e-2).learn(60)
    model.policy.save(tmp_path / "policy.pth")
    policy = algorithm.policy_aliases["MlpPolicy"].load(tmp_path / "policy.pth")
    assert policy.temperature.item() == model.policy.temperature.item()
    assert policy.refinement == model.policy.refinement
    assert_acts_the_same(model, policy)


@pytest.mark.parametrize("kind", ["langevin", "mppi"])
def test_the_temperature_of_the_policy_is_the_entropy_coefficient(make_model):
    model = make_model(learning_rate=1e-2, ent_coef="auto_0.5")
    assert model.policy.temperature.item() == pytest.approx(0.5)
    model.learn(40)
    sigma = model.critic.value_scale.sigma
    assert model.policy.temperature.item() == (model.log_ent_coef.exp() * sigma).item() != pytest.approx(0.5)
    assert sigma > 1.0
    assert make_model(ent_coef=0.2).policy.temperature.item() == pytest.approx(0.2)


class MyLangevin(Langevin):
    """A refiner of the user's own."""


def test_classes_and_schedules_in_policy_kwargs(tmp_path):
    policy_kwargs = dict(
        net_arch=[8], refiner=MyLangevin, refiner_kwargs=dict(step_size=Polynomial(0.2, 0.01)), refiner_steps=2
    )
    model = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, buffer_size=10)
    model.save(tmp_path / "model")
    loaded = EnergySAC.load(tmp_path / "model")
    assert type(loaded.policy.refinement.refiner) is MyLangevin
    assert loaded.policy_kwargs == model.policy_kwargs
    assert_acts_the_same(model, loaded)
