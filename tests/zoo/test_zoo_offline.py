"""IBC in the zoo: data by a keyword, train, continue, predict and search, by the zoo's own classes."""

import argparse

import numpy as np
import pytest

pytest.importorskip("rl_zoo3")

import optuna
import rl_zoo3.exp_manager
import rl_zoo3.utils
import yaml
from gymnasium import spaces

from sb3_energy import IBC, OfflineDataset
from sb3_energy.schedules import Cosine
from sb3_energy.zoo import hyperparams_dir, plugin
from sb3_energy.zoo.offline_samplers import convert_ibc_params, sample_ibc_params

SMALL = dict(policy_kwargs="dict(net_arch=[8], n_particles=16)", energy_training_kwargs=dict(n_negatives=8), batch_size=8)


@pytest.fixture(autouse=True)
def _registered():
    plugin.register()


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    high = np.float32([1.0, 1.0, 8.0])
    space, actions = spaces.Box(-high, high), spaces.Box(-2.0, 2.0, (1,))
    dataset = OfflineDataset(rng.uniform(-1, 1, (60, 3)), rng.uniform(-2, 2, (60, 1)), space, actions)
    dataset.save(tmp_path / "data.npz")
    return str(tmp_path / "data.npz")


def manager(tmp_path, data, **kwargs):
    given = dict(
        verbose=0,
        log_interval=-1,
        eval_freq=10,
        n_eval_episodes=1,
        save_freq=20,
        hyperparams=SMALL | dict(dataset=data),
        seed=0,
    )
    given = given | dict(n_timesteps=40, log_folder=str(tmp_path / "logs")) | kwargs
    folder = given.pop("log_folder")
    return rl_zoo3.exp_manager.ExperimentManager(argparse.Namespace(), "ibc", "Pendulum-v1", folder, **given)


def test_it_trains_is_saved_and_continues(tmp_path, data):
    experiment = manager(tmp_path, data)
    assert experiment.config == str(hyperparams_dir() / "ibc.yml")
    model, _ = experiment.setup_experiment()
    experiment.learn(model)
    experiment.save_trained_model(model)
    assert type(model) is IBC and model.num_timesteps == model._n_updates == 40
    folder = tmp_path / "logs" / "ibc" / "Pendulum-v1_1"
    assert {"Pendulum-v1.zip", "best_model.zip", "rl_model_20_steps.zip"} <= {path.name for path in folder.iterdir()}
    loaded = rl_zoo3.utils.ALGOS["ibc"].load(folder / "Pendulum-v1.zip", device="cpu")  # as enjoy does
    assert loaded.predict(np.zeros((2, 3), np.float32))[0].shape == (2, 1)

    again = manager(tmp_path, data, trained_agent=str(folder / "rl_model_20_steps.zip"), n_timesteps=20)
    model, _ = again.setup_experiment()
    again.learn(model)
    assert model.num_timesteps == 40 and model._n_updates == 40, "it goes on counting"


def test_data_are_needed(tmp_path, data):
    with pytest.raises(TypeError, match="dataset must be given, IBC learns from data"):
        manager(tmp_path, data, hyperparams=SMALL).setup_experiment()


def test_the_shipped_entries_build_a_model(data):
    entries = yaml.safe_load((hyperparams_dir() / "ibc.yml").read_text())
    assert {"default", "Pendulum-v1"} <= set(entries)
    for entry in entries.values():
        entry = {name: value for name, value in entry.items() if name != "n_timesteps"}
        rate = entry.pop("learning_rate", "cos_1e-3_1e-5")
        training = entry.pop("energy_training_kwargs", None)
        _, *ends = rate.split("_")
        IBC(dataset=data, learning_rate=Cosine(*map(float, ends)), energy_training_kwargs=training, device="cpu", **entry)


def test_sampled_arguments_make_models_and_are_converted_alike(data):
    def objective(trial):
        sampled = sample_ibc_params(trial, 1, 1, {})
        assert convert_ibc_params(trial.params) == sampled
        IBC("MlpPolicy", data, device="cpu", **sampled)
        return 0.0

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=12)
    assert len({trial.params["loss"] for trial in study.trials}) == 2


def test_a_study_runs(tmp_path, data):
    hyperparams = dict(dataset=data)
    options = dict(optimize_hyperparameters=True, n_trials=2, n_evaluations=1, n_startup_trials=1, no_optim_plots=True)
    experiment = manager(tmp_path, data, hyperparams=hyperparams, n_timesteps=4, **options)
    assert experiment.setup_experiment() is None
    experiment.hyperparameters_optimization()
    assert list((tmp_path / "logs" / "ibc").glob("report_Pendulum-v1*"))
