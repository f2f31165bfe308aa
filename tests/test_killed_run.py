"""A training killed with SIGKILL goes on from its last checkpoint, and nothing of that checkpoint is lost."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_energy import EnergySAC
from sb3_energy.training.value_units import FIRST_ENT_COEF

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")

RESUME = Path(__file__).parents[1] / "examples" / "resume.py"

SCRIPT = '''
import os, signal, sys
import numpy as np, torch as th
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from sb3_energy import EnergySAC

folder, refiner, when = sys.argv[1:]


class Record(BaseCallback):
    """After each checkpoint, the same state once more, by other means: what the checkpoint must bring back."""

    def _on_step(self):
        if self.n_calls % 30 == 0:
            model, buffer = self.model, self.model.replay_buffer
            states = [part.state_dict() for part in optimizers(model)]
            names = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
            record = dict(
                policy=model.policy.state_dict(),
                optimizers=states,
                log_ent_coef=model.log_ent_coef.detach(),
                returns=model.value_units.returns.state_dict(),
                counts=(model.num_timesteps, model._n_updates, buffer.pos),
                buffer={name: th.as_tensor(getattr(buffer, name)) for name in names},
            )
            th.save(record, f"{folder}/record_{self.num_timesteps}.pt")
        print("step", self.num_timesteps, flush=True)
        return True


def optimizers(model):
    return model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer


class Deadly:
    """Kills the process when it is pickled: in the middle of writing the replay buffer."""

    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Kill(BaseCallback):
    def _on_step(self):
        if self.num_timesteps == 80:
            self.model.replay_buffer.deadly = Deadly()
        return True


policy_kwargs = dict(net_arch=[16], refiner=refiner, n_particles=4, refiner_steps=1)
model = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, learning_starts=20, batch_size=16, buffer_size=200)
callbacks = [CheckpointCallback(30, folder, save_replay_buffer=True), Record()]
if when == "while writing":
    callbacks.append(Kill())
model.learn(100_000, callback=callbacks)
'''


@pytest.fixture(scope="module")
def resume():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("resume_example", RESUME)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a NamedTuple looks itself up there
    spec.loader.exec_module(module)
    return module


def start(*command):
    env = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(RESUME.parents[1]))
    return subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )


def kill_after(process, line):
    """Read the output until a line begins like this, then SIGKILL."""
    output = []
    for text in process.stdout:
        output.append(text)
        if text.startswith(line):
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait(60) == -signal.SIGKILL, "".join(output[-30:])


def assert_equal(first, second, where):
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f"{where}/{index}")
    elif isinstance(first, th.Tensor):
        assert th.equal(first, second), where
    else:
        assert first == second, where


@pytest.mark.parametrize("refiner", ["langevin", "mppi"])
@pytest.mark.parametrize("when", ["between checkpoints", "while writing"])
def test_goes_on_from_the_last_checkpoint(tmp_path, resume, refiner, when):
    (tmp_path / "run.py").write_text(SCRIPT)
    process = start(tmp_path / "run.py", tmp_path, refiner, when)
    kill_after(process, "step 75" if when == "between checkpoints" else "never")

    checkpoint = resume.complete_checkpoints(tmp_path)[-1]
    assert checkpoint.n_steps == 60
    assert (tmp_path / "rl_model_90_steps.zip").exists() == (when == "while writing")
    assert not (tmp_path / "rl_model_replay_buffer_90_steps.pkl").exists(), "no half of a file at its final name"
    model = EnergySAC.load(checkpoint.model, env=gym.make("Pendulum-v1"))
    model.load_replay_buffer(checkpoint.replay_buffer)

    record = th.load(tmp_path / "record_60.pt")
    buffer = model.replay_buffer
    assert_equal(dict(model.policy.state_dict()), dict(record["policy"]), "policy")
    optimizers = [model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer]
    assert_equal([optimizer.state_dict() for optimizer in optimizers], record["optimizers"], "optimizers")
    assert th.equal(model.log_ent_coef.detach(), record["log_ent_coef"])
    assert_equal(dict(model.value_units.returns.state_dict()), dict(record["returns"]), "returns")
    alpha, sigma = record["log_ent_coef"].exp(), model.critic.value_scale.sigma
    assert model.policy.temperature.item() == (alpha * sigma).item() and sigma > 1.0
    assert alpha.item() != pytest.approx(FIRST_ENT_COEF, rel=1e-3), "it has learned"
    assert (model.num_timesteps, model._n_updates, buffer.pos) == record["counts"] == (60, 39, 59)
    assert_equal({name: th.as_tensor(getattr(buffer, name)) for name in record["buffer"]}, record["buffer"], "buffer")

    stored = buffer.observations[:59].copy()
    checkpoints = CheckpointCallback(30, str(tmp_path), save_replay_buffer=True)
    model.learn(100 - model.num_timesteps, callback=checkpoints, reset_num_timesteps=False)
    assert model.num_timesteps == 100 and buffer.pos == 99
    assert model._n_updates == 79, "an update at each step: no second warm-up"
    assert np.array_equal(buffer.observations[:59], stored)
    assert resume.complete_checkpoints(tmp_path)[-1].n_steps == 90, "its name counts on, and it is complete now"


def wait_for_checkpoint(process, resume, folder, n_steps, timeout=240.0):
    """:return: the step of the newest complete checkpoint, once it is ``n_steps`` or more"""
    deadline = time.monotonic() + timeout
    while True:
        checkpoints = resume.complete_checkpoints(folder)
        if checkpoints and checkpoints[-1].n_steps >= n_steps:
            return checkpoints[-1].n_steps
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.02)


def test_the_example_survives_kills(tmp_path, resume):
    """Killed twice and started three times with the same arguments, it arrives."""
    command = [RESUME, "--total-timesteps", 300, "--save-freq", 50, "--save-path", tmp_path]
    resumed_at, outputs = [], []
    for n_steps in (100, 200):
        process = start(*command)
        wait_for_checkpoint(process, resume, tmp_path, n_steps)
        process.kill()
        outputs.append(process.communicate(timeout=60)[0])
        resumed_at.append(resume.complete_checkpoints(tmp_path)[-1].n_steps)
    (tmp_path / ".rl_model_250_steps.zip.abc").write_bytes(b"half")  # of a kill in the middle of writing
    process = start(*command)
    outputs.append(process.communicate(timeout=300)[0])
    assert process.returncode == 0, outputs[-1]

    assert "No checkpoint: starting at step 0" in outputs[0]
    for n_starts, (n_steps, output) in enumerate(zip(resumed_at, outputs[1:], strict=True), start=1):
        # each kill costs the transition of the checkpoint's own step, which SB3 stores after its callbacks
        assert f"Resuming at step {n_steps} with {n_steps - n_starts} transitions" in output
    assert "Finished at step 300" in outputs[-1]
    names = ["final_model.zip", "rl_model_300_steps.zip", "rl_model_replay_buffer_300_steps.pkl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    model = EnergySAC.load(tmp_path / "final_model")
    assert model.num_timesteps == 300
    assert model._n_updates == 200 - sum(n_steps > 100 for n_steps in resumed_at), "one after each step but the first 100"

    process = start(*command)
    assert process.communicate(timeout=60)[0].startswith("Finished already")
