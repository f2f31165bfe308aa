"""What is patched into the zoo, in this process."""

import argparse
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("rl_zoo3")

import rl_zoo3.callbacks
import rl_zoo3.exp_manager
import rl_zoo3.utils
from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure

from sb3_energy import PGAC, EnergySAC
from sb3_energy.zoo import ALGORITHMS, hyperparams_dir, plugin

EXPLICIT = SimpleNamespace(name="sb3_energy.zoo.__main__")
CLASSES = [EnergySAC, PGAC]
"""In the order of the table."""


@pytest.fixture(autouse=True)
def _registered():
    plugin.register()


def manager(tmp_path, algo="energy_sac", **kwargs):
    return rl_zoo3.exp_manager.ExperimentManager(argparse.Namespace(), algo, "Pendulum-v1", str(tmp_path), **kwargs)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_shipped_file_is_used_unless_the_user_gives_one(tmp_path, algo):
    assert manager(tmp_path, algo).config == str(hyperparams_dir() / f"{algo}.yml")
    assert manager(tmp_path, algo, config="mine.yml").config == "mine.yml"
    assert manager(tmp_path, algo="sac").config.endswith("rl_zoo3/hyperparams/sac.yml")


def test_every_algorithm_of_the_table_is_complete():
    for name, cls in zip(ALGORITHMS, CLASSES, strict=True):
        assert rl_zoo3.utils.ALGOS[name] is cls
        assert (hyperparams_dir() / f"{name}.yml").is_file()
        assert name in rl_zoo3.exp_manager.HYPERPARAMS_SAMPLER and name in rl_zoo3.exp_manager.HYPERPARAMS_CONVERTER


def test_patching_twice_changes_nothing():
    before = rl_zoo3.exp_manager.ExperimentManager.learn, dict(rl_zoo3.utils.ALGOS)
    for module in (rl_zoo3.utils, rl_zoo3.exp_manager, rl_zoo3.callbacks, rl_zoo3.hyperparams_opt):
        plugin.patch(module)
    assert before == (rl_zoo3.exp_manager.ExperimentManager.learn, dict(rl_zoo3.utils.ALGOS))


def test_strings_of_the_yaml_and_the_command_line_know_the_package(tmp_path):
    namespace = argparse.Namespace()
    rl_zoo3.utils.StoreDict([], "hyperparams")(None, namespace, ["policy_kwargs:dict(refiner=sb3_energy.EnergySAC)"])
    assert namespace.hyperparams == {"policy_kwargs": {"refiner": EnergySAC}}
    text = {"policy_kwargs": "dict(refiner=sb3_energy.EnergySAC)", "n_timesteps": 1}
    assert manager(tmp_path)._preprocess_hyperparams(text)[0]["policy_kwargs"] == {"refiner": EnergySAC}


@pytest.mark.parametrize("cls", CLASSES)
def test_parallel_training_is_refused(cls):
    callback = rl_zoo3.callbacks.ParallelTrainCallback()
    with pytest.raises(TypeError, match=f"would train a plain SAC instead of {cls.__name__}"):
        cls("MlpPolicy", "Pendulum-v1").learn(1, callback=callback)


def test_parallel_training_of_sac_is_not_refused():
    callback = rl_zoo3.callbacks.ParallelTrainCallback()
    model = SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, train_freq=(1, "episode"))
    model.set_logger(configure(None, []))
    callback.init_callback(model)
    assert isinstance(callback._model, SAC)


@pytest.mark.parametrize(
    "argv, command, spec, script",
    [
        # python -m, while it imports the package of the script
        (["-m"], "python -W ignore -m rl_zoo3.enjoy --algo energy_sac", None, "rl_zoo3.enjoy"),
        (["-m"], "python -mrl_zoo3.enjoy", None, "rl_zoo3.enjoy"),
        (["-m"], "python -m my_script --then rl_zoo3", None, None),
        # and when it has begun to run the script
        (["enjoy.py"], "python -m rl_zoo3.enjoy", SimpleNamespace(name="rl_zoo3.enjoy"), "rl_zoo3.enjoy"),
        (
            ["rl_zoo3.enjoy"],
            "python -m sb3_energy.zoo enjoy",
            SimpleNamespace(name="sb3_energy.zoo.__main__"),
            "rl_zoo3.enjoy",
        ),
        (["mine.py"], "python mine.py rl_zoo3.enjoy", None, None),
    ],
)
def test_the_running_script_is_known(monkeypatch, argv, command, spec, script):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", command.split())
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    assert plugin._running_script() == script


@pytest.mark.slow
@pytest.mark.parametrize("route", ["rl_zoo3.enjoy", "sb3_energy.zoo enjoy"])
def test_real_commands_that_predict_load_a_buffer_of_one_row(tmp_path, route):
    """Patching a module by hand does not show when the import system does it."""
    look = "import atexit, sys\natexit.register(lambda: print(sys.modules['rl_zoo3.utils'].ALGOS['pgac'].__module__))\n"
    (tmp_path / "sitecustomize.py").write_text(look)
    env = {**os.environ, "SB3_ENERGY_AUTOLOAD": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", *route.split(), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert done.stdout.endswith("sb3_energy.zoo.plugin\n")


@pytest.mark.parametrize("algo, ours", list(zip(ALGORITHMS, CLASSES, strict=True)))
def test_scripts_that_predict_load_a_buffer_of_one_row(tmp_path, monkeypatch, algo, ours):
    ours("MlpPolicy", "Pendulum-v1", buffer_size=1000).save(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name="rl_zoo3.record_video")))
    monkeypatch.setattr(rl_zoo3.utils, "ALGOS", {})
    plugin.patch(rl_zoo3.utils)
    cls = rl_zoo3.utils.ALGOS[algo]
    env = ours("MlpPolicy", "Pendulum-v1", buffer_size=1).env
    model = cls.load(tmp_path / "model", env=env)
    assert type(model) is ours and cls.__name__ == ours.__name__
    assert model.replay_buffer.buffer_size == 1
