"""A training on data killed with SIGKILL goes on from its last checkpoint, and ends bit-equal to one that was never killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_energy import IBC
from tests.offline.ibc.small_ibc import small_ibc
from tests.offline.small_clone import Clone, data, small

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
ROOT = Path(__file__).parents[2]
TOTAL = 60

SCRIPT = """
import sys
from stable_baselines3.common.callbacks import CheckpointCallback
from tests.offline.test_offline_resume import TOTAL, new

def say(locals_, globals_):
    print("step", locals_["self"].num_timesteps, flush=True)
    return True

new(sys.argv[2]).learn(TOTAL, callback=[CheckpointCallback(20, sys.argv[1]), say])
"""


def falling(remaining):
    return 1e-2 * remaining


def new(name):
    """With draws in each update, and a schedule, so that it knows how far the training is."""
    return small(learning_rate=falling) if name == "Clone" else small_ibc(learning_rate=falling, loss="r_nce")


@pytest.mark.parametrize("algorithm", [Clone, IBC])
def test_a_killed_training_ends_where_it_would_have(algorithm, tmp_path):
    (tmp_path / "run.py").write_text(SCRIPT)
    environment = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    process = subprocess.Popen(
        [sys.executable, tmp_path / "run.py", tmp_path, algorithm.__name__], stdout=subprocess.PIPE, text=True, env=environment
    )
    for line in process.stdout:
        if line.startswith("step 47"):
            process.kill()
            break
    process.stdout.close()
    assert process.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "rl_model_60_steps.zip").exists()

    resumed = algorithm.load(tmp_path / "rl_model_40_steps", dataset=data(), device="cpu")
    assert resumed.num_timesteps == 40
    resumed.learn(TOTAL - 40, callback=CheckpointCallback(20, str(tmp_path)), reset_num_timesteps=False)
    whole = new(algorithm.__name__).learn(TOTAL)
    for name, value in whole.policy.state_dict().items():
        assert th.equal(value, resumed.policy.state_dict()[name]), name
    first, second = (one.policy.optimizer.state_dict()["state"] for one in (whole, resumed))
    assert all(th.equal(first[i][key], second[i][key]) for i in first for key in first[i])
    assert th.equal(whole.generator.get_state(), resumed.generator.get_state())
    assert (tmp_path / "rl_model_60_steps.zip").exists(), "the names of checkpoints count on"
