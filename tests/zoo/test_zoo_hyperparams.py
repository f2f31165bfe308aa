"""The shipped YAML: every entry goes through the zoo and builds its algorithm, on its environment where that is installed."""

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

from sb3_energy import PGAC, EnergySAC
from sb3_energy.refiners import REFINERS
from sb3_energy.schedules import Cosine
from sb3_energy.zoo import ALGORITHMS, hyperparams_dir, register

CLASSES = {"energy_sac": EnergySAC, "pgac": PGAC}
ENTRIES = {algo: yaml.safe_load((hyperparams_dir() / f"{algo}.yml").read_text()) for algo in ALGORITHMS}
REQUIRED = [
    *("default", "Pendulum-v1", "MountainCarContinuous-v0", "LunarLanderContinuous-v3", "BipedalWalker-v3"),
    *(f"{name}-v5" for name in ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid")),
]
DOMAINS = "cartpole reacher finger ball_in_cup cheetah walker hopper acrobot quadruped humanoid dog".split()


def manager(env_id: str, folder: str, algo: str = "energy_sac", **kwargs) -> ExperimentManager:
    register()
    return ExperimentManager(argparse.Namespace(), algo, env_id, folder, eval_freq=-1, verbose=0, **kwargs)


def make_or_skip(env_id: str) -> None:
    if env_id.startswith("dm_control/"):
        pytest.importorskip("dm_control")
        importlib.import_module("shimmy")
    try:
        gym.make(env_id).close()
    except gym.error.DependencyNotInstalled as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("entries", ENTRIES.values(), ids=ENTRIES)
def test_the_promised_environments_are_there(entries):
    assert set(REQUIRED) < set(entries)
    tasks = [name.removeprefix("dm_control/") for name in entries if name.startswith("dm_control/")]
    assert len(tasks) >= 12 and {task.split("-")[0] for task in tasks} >= set(DOMAINS)


@pytest.mark.parametrize("algo, env_id", [(algo, name) for algo in ENTRIES for name in ENTRIES[algo] if name != "default"])
def test_every_entry_builds_a_model(algo, env_id, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_or_skip(env_id)
        # a small buffer: the entries' own are for a training
        experiment = manager(env_id, str(tmp_path), algo, hyperparams={"buffer_size": 100})
        model, saved = experiment.setup_experiment()
    assert type(model) is CLASSES[algo] and not model.policy.refinement.is_identity
    assert len(model.observation_space.shape) == 1
    assert saved.keys() >= {"n_timesteps", "policy"}
    model.predict(model.env.reset())
    model.env.close()


@pytest.mark.parametrize("entries", ENTRIES.values(), ids=ENTRIES)
def test_sacs_own_values_are_kept(entries):
    """Data of rl_zoo3; a change there should be looked at here."""
    theirs = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / "sac.yml").read_text())
    # what differs, and why, is said in the file
    ours_alone = {"use_sde", "policy_kwargs", "noise_type", "noise_std", "n_timesteps"}
    for env_id in set(theirs) & set(entries):
        for key in (set(theirs[env_id]) | set(entries[env_id])) - ours_alone:
            assert entries[env_id].get(key) == theirs[env_id].get(key), (env_id, key)


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


def test_refiners_in_sequence_are_a_list_in_the_file(tmp_path):
    policy_kwargs = "dict(refiner=['flow', 'mala'], refiner_kwargs=[None, dict(step_size=0.2)], net_arch=[16])"
    settings = yaml.safe_load(f'policy_kwargs: "{policy_kwargs}"\nbuffer_size: 200\nlearning_starts: 10\nbatch_size: 8')
    model, saved = manager("Pendulum-v1", str(tmp_path), hyperparams=settings).setup_experiment()
    model.learn(14)
    assert model.policy.refinement.refiner.members == (REFINERS["flow"](), REFINERS["mala"](step_size=0.2))
    assert saved["policy_kwargs"] == policy_kwargs and model._n_updates > 0
    model.env.close()


def test_the_algorithms_have_the_same_environments():
    assert len({tuple(entries) for entries in ENTRIES.values()}) == 1


def test_the_other_lines_of_pgacs_file_work(tmp_path):
    """Those that the comment at the top of it gives as examples, without its hashes, each in the form of the YAML."""
    head = (hyperparams_dir() / "pgac.yml").read_text().split("# Defaults")[0]
    lines = [line.removeprefix("#   ") for line in head.splitlines() if line.startswith("#   ")]
    assert [line.split(":")[0] for line in lines] == ["policy_kwargs"] * 2 + ["divergence_coef", "potential_training_kwargs"]
    for line in lines:
        settings = dict(buffer_size=200, learning_starts=10, batch_size=8) | yaml.safe_load(line)
        model, _ = manager("Pendulum-v1", str(tmp_path), "pgac", hyperparams=settings).setup_experiment()
        model.learn(14)
        assert model._n_updates > 0
        if line.startswith("divergence_coef"):
            assert model.divergence_coef == 0.0
        model.env.close()


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "MountainCarContinuous-v0"])
def test_flash_sacs_file_builds_a_model(env_id, tmp_path):
    """By ``--conf-file``, with an entry of its own and by default."""
    file = str(hyperparams_dir() / "flash_sac.yml")
    settings = dict(buffer_size=200, learning_starts=10, batch_size=8)
    model, saved = manager(env_id, str(tmp_path), config=file, hyperparams=settings).setup_experiment()
    assert saved["learning_rate"] == "cos_3e-4_1.5e-4" and model.learning_rate == Cosine(3e-4, 1.5e-4)
    width = 64 if env_id == "Pendulum-v1" else 256
    assert model.policy.critic.net_arch == [width, width] and model.joint_batch and model.actor_delay == 2
    model.learn(14)
    assert model._n_updates > 0
    model.env.close()


@pytest.mark.parametrize("rate", ["cos_3e-4", "cos_a_b", "cos_1_2_3"])
def test_a_bad_cosine_is_refused(rate, tmp_path):
    with pytest.raises(ValueError, match=f"learning_rate must be a number, 'lin_3e-4' or 'cos_3e-4_1.5e-4', got '{rate}'"):
        manager("Pendulum-v1", str(tmp_path), hyperparams=dict(learning_rate=rate)).setup_experiment()


def test_the_zoos_own_schedules_are_as_before(tmp_path):
    model, _ = manager(
        "Pendulum-v1", str(tmp_path), hyperparams=dict(learning_rate="lin_1e-3", buffer_size=10)
    ).setup_experiment()
    assert model.lr_schedule(0.5) == pytest.approx(5e-4)
    model, _ = manager("Pendulum-v1", str(tmp_path), hyperparams=dict(learning_rate=1e-4, buffer_size=10)).setup_experiment()
    assert model.lr_schedule(0.5) == pytest.approx(1e-4)
