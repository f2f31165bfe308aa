"""Files that are no models, or not whole: one sentence says what is wrong, and nothing on disk is lost."""

import importlib
import json
import pickle
import sys
import zipfile

import pytest
import torch as th
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO, SAC

from sb3_energy import EnergySAC
from tests.energy_sac.test_energy_sac_errors import Broken, one_sentence, refuses


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refuses_to_load(folder, name, match, **kwargs):
    before = contents(folder)
    with refuses(ValueError, match) as caught:
        EnergySAC.load(folder / name, **kwargs)
    message = one_sentence(caught)
    assert str(folder / name) in message or str(folder / name).removesuffix(".zip") in message, "it says which file"
    assert contents(folder) == before
    return message


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "text.zip").write_text("hello")
    refuses_to_load(tmp_path, "text.zip", "is no saved EnergySAC: it is not a zip file as model.save.. writes it")
    (tmp_path / "empty.zip").write_bytes(b"")
    refuses_to_load(tmp_path, "empty.zip", "is no saved EnergySAC")
    with open(tmp_path / "buffer.pkl", "wb") as file:
        pickle.dump([1, 2, 3], file)
    refuses_to_load(tmp_path, "buffer.pkl", "is no saved EnergySAC")
    with refuses(FileNotFoundError, "nowhere"):
        EnergySAC.load(tmp_path / "nowhere")


def test_a_zip_file_that_is_no_model(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refuses_to_load(tmp_path, "other.zip", r"is no saved EnergySAC: the zip file lacks \['data', 'policy.pth'\]")
    with zipfile.ZipFile(tmp_path / "broken.zip", "w") as archive:
        archive.writestr("data", "not json")
        archive.writestr("policy.pth", "")
    refuses_to_load(tmp_path, "broken.zip", "is no saved EnergySAC: it is damaged")


def test_a_model_cut_off_in_the_middle(make_model, tmp_path):
    make_model().save(tmp_path / "model")
    whole = (tmp_path / "model.zip").read_bytes()
    (tmp_path / "model.zip").write_bytes(whole[: len(whole) // 2])
    refuses_to_load(tmp_path, "model.zip", "is no saved EnergySAC")
    (tmp_path / "model.zip").write_bytes(whole[:200] + b"\0" * 200 + whole[400:])
    refuses_to_load(tmp_path, "model.zip", "is no saved EnergySAC: .*damaged")


@pytest.mark.parametrize("algorithm", [SAC, PPO])
def test_a_model_of_another_algorithm(tmp_path, algorithm):
    algorithm("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[8])).save(tmp_path / "other")
    message = refuses_to_load(tmp_path, "other.zip", "is no saved EnergySAC: its policy is .*Policy of stable_baselines3")
    assert "load it with" in message


def test_a_model_whose_settings_lack_something(make_model, tmp_path):
    make_model().save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(files["data"])
    del data["policy_class"]
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, json.dumps(data) if name == "data" else content)
    refuses_to_load(tmp_path, "model.zip", "is no saved EnergySAC: .*policy_class")


MODULE = """
from sb3_energy.refiners import Langevin

class Mine(Langevin):
    pass
"""


@pytest.fixture
def foreign_model(tmp_path, monkeypatch):
    """A saved model whose refiner comes from a module that is gone."""
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "my_refiners_of_last_year.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "module")
    module = importlib.import_module("my_refiners_of_last_year")
    policy_kwargs = dict(refiner=module.Mine, net_arch=[8])
    model = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, buffer_size=10)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy.pth")
    monkeypatch.undo()
    del sys.modules["my_refiners_of_last_year"]
    importlib.invalidate_caches()
    return tmp_path


def test_a_refiner_that_cannot_be_imported(foreign_model, monkeypatch):
    message = refuses_to_load(foreign_model, "model.zip", "needs a class that cannot be imported here")
    assert "my_refiners_of_last_year" in message and "custom_objects={'policy_kwargs': ...}" in message
    # and what it says instead works
    policy_kwargs = dict(refiner="langevin", net_arch=[8])
    loaded = EnergySAC.load(foreign_model / "model", custom_objects=dict(policy_kwargs=policy_kwargs))
    assert loaded.policy_kwargs == policy_kwargs
    monkeypatch.syspath_prepend(foreign_model / "module")
    assert type(EnergySAC.load(foreign_model / "model").policy.refinement.refiner).__name__ == "Mine"
    sys.modules.pop("my_refiners_of_last_year")


def test_a_class_that_its_module_lost(foreign_model, monkeypatch):
    (foreign_model / "module" / "my_refiners_of_last_year.py").write_text("# nothing left")
    monkeypatch.syspath_prepend(foreign_model / "module")
    refuses_to_load(foreign_model, "model.zip", "needs a class that cannot be imported here .*Mine")
    sys.modules.pop("my_refiners_of_last_year")


def test_a_wrong_environment_at_load(make_model, algorithm, tmp_path):
    make_model().save(tmp_path / "model")
    before = contents(tmp_path)
    with refuses(ValueError, "Observation spaces do not match") as caught:
        algorithm.load(tmp_path / "model", env=TimeLimit(Broken(), 10))
    one_sentence(caught)
    assert contents(tmp_path) == before


class Unpicklable:
    def __reduce__(self):
        raise OSError("the disk is full")


@pytest.mark.parametrize("method", ["save", "save_replay_buffer"])
def test_saving_that_fails_keeps_the_old_file(make_model, tmp_path, monkeypatch, method):
    model = make_model().learn(25)
    path = tmp_path / ("model.zip" if method == "save" else "buffer.pkl")
    getattr(model, method)(path)
    before = contents(tmp_path)
    if method == "save":
        monkeypatch.setattr(th, "save", lambda obj, file: file.write(b"half") and Unpicklable().__reduce__())
    else:
        model.replay_buffer.extra = Unpicklable()
    with refuses(OSError, "the disk is full"):
        getattr(model, method)(path)
    assert contents(tmp_path) == before, "the old file is whole and no temporary one is left"


def test_saving_over_an_old_file_replaces_it(make_model, algorithm, tmp_path):
    model = make_model()
    model.save(tmp_path / "model")
    model.learn(25).save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    assert algorithm.load(tmp_path / "model").num_timesteps == 25
