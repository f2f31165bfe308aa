"""Checkpoints of the zoo: whole, matching, and continued; the last test kills a real training."""

import argparse
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rl_zoo3")

import rl_zoo3.callbacks
import rl_zoo3.exp_manager
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_energy import PGAC, EnergySAC
from sb3_energy.training.value_units import FIRST_ENT_COEF
from sb3_energy.zoo import checkpoints, register
from sb3_energy.zoo.checkpoints import MatchingCheckpointCallback

SMALL = dict(policy_kwargs=dict(net_arch=[8]), buffer_size=500, batch_size=16, learning_starts=10)


def train(folder: Path, n_steps: int = 60, save_freq: int = 25, env="Pendulum-v1", cls=EnergySAC, **kwargs) -> EnergySAC:
    callback = MatchingCheckpointCallback(save_freq, str(folder), save_replay_buffer=True, save_vecnormalize=True)
    return cls("MlpPolicy", env, **{**SMALL, **kwargs}).learn(n_steps, callback=callback)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize("cls", [EnergySAC, PGAC])
def test_model_and_buffer_are_of_the_same_step(tmp_path, cls):
    model = train(tmp_path, n_steps=50, cls=cls)
    assert names(tmp_path) == ["replay_buffer_50_steps.pkl", "rl_model_25_steps.zip", "rl_model_50_steps.zip"]
    loaded = cls.load(tmp_path / "rl_model_50_steps.zip", env=model.env)
    loaded.load_replay_buffer(tmp_path / "replay_buffer_50_steps.pkl")
    assert loaded.num_timesteps == loaded.replay_buffer.size() == 50
    assert loaded._n_updates == model._n_updates == 40
    for name, parameters in model.get_parameters().items():
        th.testing.assert_close(loaded.get_parameters()[name], parameters, rtol=0, atol=0)
    th.testing.assert_close(loaded.log_ent_coef, model.log_ent_coef, rtol=0, atol=0)


@pytest.mark.parametrize("what", ["save", "save_replay_buffer"])
def test_a_checkpoint_that_fails_leaves_the_one_before_whole(tmp_path, monkeypatch, what):
    original, calls = getattr(EnergySAC, what), []

    def breaks_the_second_time(self, file, *args):
        calls.append(file)
        if len(calls) == 2:
            raise OSError("No space left on device")
        original(self, file, *args)

    monkeypatch.setattr(EnergySAC, what, breaks_the_second_time)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path)
    monkeypatch.undo()
    assert [name for name in names(tmp_path) if name.endswith(".zip")] == ["rl_model_25_steps.zip"]
    model = EnergySAC.load(tmp_path / "rl_model_25_steps.zip", env=make_vec_env("Pendulum-v1"))
    model.load_replay_buffer(tmp_path / "replay_buffer_25_steps.pkl")
    assert model.num_timesteps == model.replay_buffer.size() == 25


def test_statistics_of_the_checkpoint_are_continued_with(tmp_path):
    env = VecNormalize(make_vec_env("Pendulum-v1"))
    train(tmp_path, n_steps=25, env=env)
    env.obs_rms.mean += 1.0
    manager = argparse.Namespace(trained_agent=str(tmp_path / "rl_model_25_steps.zip"), continue_training=True)
    plain = make_vec_env("Pendulum-v1")
    loaded = checkpoints.maybe_normalize(lambda env, eval_env: VecNormalize(env), manager, plain, eval_env=True)
    assert loaded.venv is plain and not loaded.training and not loaded.norm_reward
    np.testing.assert_allclose(loaded.obs_rms.mean, env.obs_rms.mean - 1.0)
    manager.continue_training = False
    fresh = checkpoints.maybe_normalize(lambda env, eval_env: VecNormalize(env), manager, plain, eval_env=False)
    assert fresh.training and (fresh.obs_rms.mean == 0.0).all()


def test_damaged_statistics_are_refused(tmp_path):
    env = VecNormalize(make_vec_env("Pendulum-v1"))
    train(tmp_path, n_steps=25, env=env)
    path = tmp_path / "vecnormalize_25_steps.pkl"
    assert isinstance(VecNormalize.load(str(path), env.venv), VecNormalize), "SB3 reads it too"
    whole = path.read_bytes()
    manager = argparse.Namespace(trained_agent=str(tmp_path / "rl_model_25_steps.zip"), continue_training=True)
    changed = whole[: len(whole) // 2] + b"#" + whole[len(whole) // 2 + 1 :]
    for content in (changed, whole[:-40], b"", b"hello", pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no saved VecNormalize") as caught:
            checkpoints.maybe_normalize(lambda env, eval_env: env, manager, env.venv, eval_env=True)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


class Unpicklable:
    def __reduce__(self):
        raise OSError("No space left on device")


@pytest.mark.parametrize("what", ["best model", "trained model"])
@pytest.mark.parametrize("algo, cls", [("energy_sac", EnergySAC), ("pgac", PGAC), ("sac", SAC)])
def test_statistics_are_whole_wherever_the_zoo_saves_them(tmp_path, what, algo, cls):
    register()
    env = VecNormalize(make_vec_env("Pendulum-v1"))
    model = cls("MlpPolicy", env, buffer_size=100)
    if what == "best model":
        callback = rl_zoo3.callbacks.SaveVecNormalizeCallback(1, str(tmp_path))
        callback.init_callback(model)
        save, path = callback.on_step, tmp_path / "vecnormalize.pkl"
    else:
        manager = rl_zoo3.exp_manager.ExperimentManager(argparse.Namespace(), algo, "Pendulum-v1", str(tmp_path))
        manager.normalize = True
        Path(manager.params_path).mkdir(parents=True)
        save, path = lambda: manager.save_trained_model(model), Path(manager.params_path) / "vecnormalize.pkl"
    save()
    save()
    assert "save" not in vars(env), "its own method is back"
    np.testing.assert_array_equal(VecNormalize.load(str(path), env.venv).obs_rms.mean, env.obs_rms.mean)
    before = path.read_bytes()
    env.obs_rms.extra = Unpicklable()
    with pytest.raises(OSError, match="No space left"):
        save()
    assert "save" not in vars(env) and [name for name in names(path.parent) if name.startswith(".")] == []
    assert (path.read_bytes() == before) == (cls is not SAC), "other algorithms are as they were"


def test_returns_do_not_run_over_the_place_where_a_run_was_killed():
    space = make_vec_env("Pendulum-v1")
    buffer = NStepReplayBuffer(20, space.observation_space, space.action_space, n_steps=3, gamma=1.0)
    obs, action = np.zeros((1, 3)), np.zeros((1, 1))

    def fill(reward):
        for _ in range(4):
            buffer.add(obs, obs, action, np.array([reward]), np.zeros(1), [{}])

    fill(1.0)
    checkpoints._end_last_trajectory(buffer)
    fill(100.0)
    rewards = buffer._get_samples(np.arange(4)).rewards.flatten().tolist()
    assert rewards == [3.0, 3.0, 2.0, 1.0]
    compact = ReplayBuffer(
        20, space.observation_space, space.action_space, optimize_memory_usage=True, handle_timeout_termination=False
    )
    compact.add(obs, obs, action, np.ones(1), np.zeros(1), [{}])
    checkpoints._end_last_trajectory(compact)
    assert compact.dones[0] == 1.0


def test_the_zoos_callbacks_are_replaced_and_the_users_are_not(tmp_path):
    register()
    manager = rl_zoo3.exp_manager.ExperimentManager(
        argparse.Namespace(), "energy_sac", "Pendulum-v1", str(tmp_path), save_freq=10, save_replay_buffer=True, eval_freq=-1
    )
    theirs = CheckpointCallback(5, str(tmp_path))
    manager.callbacks = [theirs]
    manager.create_callbacks()
    assert manager.callbacks[0] is theirs
    assert type(manager.callbacks[1]) is MatchingCheckpointCallback and manager.callbacks[1].save_replay_buffer
    sac = rl_zoo3.exp_manager.ExperimentManager(argparse.Namespace(), "sac", "Pendulum-v1", str(tmp_path), save_freq=10)
    sac.eval_freq = -1
    sac.create_callbacks()
    assert type(sac.callbacks[0]) is CheckpointCallback


def zoo(folder: Path, algo: str, *arguments: str) -> list[str]:
    fixed = f"--algo {algo} --env Pendulum-v1 --num-threads 1 --eval-freq -1 --save-freq 100 --save-replay-buffer"
    small = ["-params", "policy_kwargs:dict(net_arch=[16], n_particles=2, refiner_steps=1)", "batch_size:32", "normalize:True"]
    return [sys.executable, "-m", "rl_zoo3.train", *fixed.split(), "-f", str(folder), *arguments, *small]


def wait_for_checkpoint(process: subprocess.Popen, folder: Path, n_steps: int) -> Path:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        found = [path for path in folder.glob("rl_model_*_steps.zip") if int(path.stem.split("_")[-2]) >= n_steps]
        if found:
            return max(found, key=lambda path: int(path.stem.split("_")[-2]))
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint in {folder}")


@pytest.mark.parametrize("algo, cls", [("energy_sac", EnergySAC), ("pgac", PGAC)])
def test_a_killed_training_goes_on_from_its_last_checkpoint(tmp_path, algo, cls):
    folder, env = tmp_path / algo / "Pendulum-v1_1", {**os.environ, "SB3_ENERGY_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(zoo(tmp_path, algo, "-n", "100000"), env=env, stdout=subprocess.DEVNULL)
    wait_for_checkpoint(process, folder, 300)
    time.sleep(0.05)  # between two checkpoints, or in the middle of one
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    checkpoint = max(folder.glob("rl_model_*_steps.zip"), key=lambda path: int(path.stem.split("_")[-2]))
    n_steps = int(checkpoint.stem.split("_")[-2])
    model = cls.load(checkpoint, env=make_vec_env("Pendulum-v1"))
    buffer = pickle.loads((folder / f"replay_buffer_{n_steps}_steps.pkl").read_bytes())
    assert model.num_timesteps == buffer.size() == n_steps
    assert model._n_updates == n_steps - model.learning_starts
    adam_steps = {int(state["step"]) for state in model.critic.optimizer.state.values()}
    assert adam_steps == {model._n_updates}
    assert model.log_ent_coef.exp().item() != pytest.approx(FIRST_ENT_COEF, rel=1e-3), "it has learned"

    statistics = pickle.loads((folder / f"vecnormalize_{n_steps}_steps.pkl").read_bytes())
    assert round(statistics.obs_rms.count) == n_steps + 1  # and that of the first reset

    result = subprocess.run(zoo(tmp_path, algo, "-n", "150", "-i", str(checkpoint)), env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"Continuing at step {n_steps} with {n_steps} rows of experience" in result.stdout
    second = tmp_path / algo / "Pendulum-v1_2"
    continued = cls.load(second / "Pendulum-v1.zip")
    assert continued.num_timesteps == n_steps + 150
    assert continued._n_updates == model._n_updates + 150  # no second warm-up
    if cls is PGAC:
        steps = {int(state["step"]) for state in continued.policy.potential.optimizer.state.values()}
        assert steps == {continued._n_updates // continued.policy_delay}
    assert (second / f"rl_model_{n_steps + 100}_steps.zip").is_file()
    statistics = pickle.loads((second / "Pendulum-v1" / "vecnormalize.pkl").read_bytes())
    assert round(statistics.obs_rms.count) == n_steps + 1 + 150 + 1
