"""The documented commands, in order, in a fresh environment that has the wheel and not the source tree."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3")

ROOT = Path(__file__).resolve().parents[2]
PENDULUM = "--algo energy_sac --env Pendulum-v1"
TRAIN = f"-m rl_zoo3.train {PENDULUM} --num-threads 1 --seed 0"
PGAC = "--algo pgac --env Pendulum-v1"
PGAC_STUDY = "-optimize --n-trials 2 --n-jobs 1 --no-optim-plots"
STUDY = "--storage logs/study.log --study-name search"
PARALLEL = "rl_zoo3.callbacks.ParallelTrainCallback"
RUN = "logs/energy_sac/Pendulum-v1"

# (name, arguments of python, what must be in the output)
COMMANDS = [
    ("train", f"-m rl_zoo3.train {PENDULUM} -n 2000", "Saving to logs/energy_sac/Pendulum-v1_1"),
    ("enjoy", f"-m rl_zoo3.enjoy {PENDULUM} -f logs --no-render -n 400", "Mean reward:"),
    ("checkpoints", f"{TRAIN} -n 600 --save-freq 250 --save-replay-buffer", "Saving replay buffer"),
    ("continue", f"{TRAIN} -n 100 -i {RUN}_2/rl_model_500_steps.zip", "Continuing at step 500 with 500 rows"),
    ("continue without buffer", f"{TRAIN} -n 150 -i {RUN}_1/Pendulum-v1.zip", "No replay buffer beside"),
    (
        "best checkpoint",
        f"-m rl_zoo3.enjoy {PENDULUM} -f logs --no-render -n 200 --exp-id 2 --load-last-checkpoint",
        "Mean reward",
    ),
    ("optimize", f"{TRAIN} -n 300 -optimize --n-trials 2 --n-jobs 2 --no-optim-plots {STUDY}", "Best trial"),
    ("trial", f"{TRAIN} -n 150 --trial-id 1 {STUDY} -params batch_size:32", "Loading from Optuna study"),
    ("subproc", f"{TRAIN} -n 300 --vec-env subproc -params n_envs:2", "Using 2 environments"),
    ("parallel", f"{TRAIN} -n 300 -params callback:\\'{PARALLEL}\\'", "instead of EnergySAC"),
    (
        "dm_control",
        "-m rl_zoo3.train --algo energy_sac --env dm_control/cheetah-run-v0 --gym-packages shimmy --num-threads 1 -n 1100"
        " -params learning_starts:1000",
        "flatten_dict_observations",
    ),
    ("console", f"SCRIPT train {PENDULUM} -n 150", "Saving to"),
    ("console enjoy", f"SCRIPT enjoy {PENDULUM} -f logs --no-render -n 200", "Mean reward:"),
    ("pgac", f"-m rl_zoo3.train {PGAC} -n 300 --num-threads 1", "Saving to logs/pgac/Pendulum-v1_1"),
    ("pgac enjoy", f"-m rl_zoo3.enjoy {PGAC} -f logs --no-render -n 200", "Mean reward:"),
    ("pgac optimize", f"-m rl_zoo3.train {PGAC} -n 200 --num-threads 1 {PGAC_STUDY}", "Best trial"),
    ("off", f"OFF -m rl_zoo3.train {PENDULUM} -n 150", "invalid choice: 'energy_sac'"),
    ("off, explicit", f"OFF -m sb3_energy.zoo train {PENDULUM} -n 150", "Saving to"),
    ("off, explicit enjoy", f"OFF -m sb3_energy.zoo enjoy {PENDULUM} -f logs --no-render -n 200", "Mean reward:"),
    ("record_video", f"-m rl_zoo3.record_video {PENDULUM} -f logs -n 20 --exp-id 1 -o videos", "Saving video"),
]
FAILING = {"off", "parallel"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder to run in, beside a virtual environment with the wheel, and the dependencies of the present one."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".git", "build", "dist", "*.egg-info", "logs", ".venv")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(folder / "source")]
    subprocess.run(build, check=True, capture_output=True)
    shutil.rmtree(folder / "source")
    venv.create(folder / "venv", with_pip=False)
    # A .pth in here is not followed: an editable install of the present environment stays out
    site_packages = next((folder / "venv").glob("lib/python*/site-packages"), folder / "venv" / "Lib" / "site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*install, *map(str, folder.glob("*.whl"))], check=True, capture_output=True)
    (folder / "work").mkdir()
    where = run(folder, "-c 'import sb3_energy; print(sb3_energy.__file__)'")
    assert str(site_packages) in where.stdout, where.stderr
    return folder


def run(workplace: Path, arguments: str) -> subprocess.CompletedProcess:
    words = shlex.split(arguments)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "SB3_ENERGY_AUTOLOAD": "1"}
    if words[0] == "OFF":
        words, env["SB3_ENERGY_AUTOLOAD"] = words[1:], "0"
    if words[0] == "SCRIPT":  # what pip writes for the console script
        words[:1] = ["-c", "import sys; sys.argv[0] = 'rl_zoo3'; from rl_zoo3.cli import main; main()"]
    python = workplace / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    return subprocess.run([python, *words], cwd=workplace / "work", env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_the_documented_commands(workplace):
    """One test: the commands build on each other, and workers in parallel would split them."""
    failed = []
    for name, arguments, expected in COMMANDS:
        if name == "dm_control" and find_spec("dm_control") is None:
            continue
        start, result = time.perf_counter(), run(workplace, arguments)
        output = result.stdout + result.stderr
        print(f"{name}: {time.perf_counter() - start:.0f} s, exit status {result.returncode}")
        if (result.returncode != 0) != (name in FAILING) or expected not in output:
            failed.append(name)
            print(output)
    assert not failed
