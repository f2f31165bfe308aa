"""The shipped YAML: every entry goes through the zoo and builds EnergySAC, on its environment where that is installed."""

import argparse
import importlib
import warnings
from pathlib import Path

import gymnasium as gym
import pytest
import yaml

pytest.importorskip("rl_zoo3")

import rl_zoo3
from rl_zoo3.exp_manager import ExperimentManager

from sb3_energy import EnergySAC
from sb3_energy.refiners import REFINERS
from sb3_energy.zoo import hyperparams_dir, register

ENTRIES = yaml.safe_load((hyperparams_dir() / "energy_sac.yml").read_text())
REQUIRED = [
    *("default", "Pendulum-v1", "MountainCarContinuous-v0", "LunarLanderContinuous-v3", "BipedalWalker-v3"),
    *(f"{name}-v5" for name in ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid")),
]
DOMAINS = "cartpole reacher finger ball_in_cup cheetah walker hopper acrobot quadruped humanoid dog".split()


def manager(env_id: str, folder: str, **kwargs) -> ExperimentManager:
    register()
    return ExperimentManager(argparse.Namespace(), "energy_sac", env_id, folder, eval_freq=-1, verbose=0, **kwargs)


def make_or_skip(env_id: str) -> None:
    if env_id.startswith("dm_control/"):
        pytest.importorskip("dm_control")
        importlib.import_module("shimmy")
    try:
        gym.make(env_id).close()
    except gym.error.DependencyNotInstalled as error:
        pytest.skip(str(error))


def test_the_promised_environments_are_there():
    assert set(REQUIRED) < set(ENTRIES)
    tasks = [name.removeprefix("dm_control/") for name in ENTRIES if name.startswith("dm_control/")]
    assert len(tasks) >= 12 and {task.split("-")[0] for task in tasks} >= set(DOMAINS)


@pytest.mark.parametrize("env_id", [name for name in ENTRIES if name != "default"])
def test_every_entry_builds_a_model(env_id, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_or_skip(env_id)
        # a small buffer: the entries' own are for a training
        experiment = manager(env_id, str(tmp_path), hyperparams={"buffer_size": 100})
        model, saved = experiment.setup_experiment()
    assert isinstance(model, EnergySAC) and not model.policy.refinement.is_identity
    assert len(model.observation_space.shape) == 1
    assert saved.keys() >= {"n_timesteps", "policy"}
    model.predict(model.env.reset())
    model.env.close()


def test_sacs_own_values_are_kept():
    """Data of rl_zoo3; a change there should be looked at here."""
    theirs = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / "sac.yml").read_text())
    # what differs, and why, is said in the file
    ours_alone = {"use_sde", "policy_kwargs", "noise_type", "noise_std", "n_timesteps"}
    for env_id in set(theirs) & set(ENTRIES):
        for key in (set(theirs[env_id]) | set(ENTRIES[env_id])) - ours_alone:
            assert ENTRIES[env_id].get(key) == theirs[env_id].get(key), (env_id, key)


@pytest.mark.parametrize("refiner", sorted(REFINERS))
def test_every_refiner_is_a_line_in_the_file(refiner, tmp_path):
    """As the comment at the top of it says: as text, which the zoo evaluates."""
    assert f"'{refiner}'" in (hyperparams_dir() / "energy_sac.yml").read_text()
    policy_kwargs = f"dict(refiner={refiner!r}, net_arch=[16])"
    settings = dict(policy_kwargs=policy_kwargs, buffer_size=200, learning_starts=10, batch_size=8)
    model, _ = manager("Pendulum-v1", str(tmp_path), hyperparams=settings).setup_experiment()
    model.learn(14)
    assert isinstance(model.policy.refinement.refiner, REFINERS[refiner]) and model._n_updates > 0
    model.env.close()
