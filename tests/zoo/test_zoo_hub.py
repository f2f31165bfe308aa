"""The zoo's scripts for the Hugging Face Hub, with a hub that is a folder of this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3")

HUB = """
import os, shutil
from pathlib import Path
import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError

class Api:
    def create_repo(self, repo_id, **kwargs):
        Path("hub_server", repo_id).mkdir(parents=True)
        return repo_id
    def snapshot_download(self, repo_id, local_dir):
        Path(local_dir).mkdir(parents=True)
    def upload_folder(self, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, Path("hub_server", repo_id), dirs_exist_ok=True)

def download(repo_id, filename, **kwargs):
    path = Path("hub_server", repo_id, filename)
    if not path.exists():
        raise EntryNotFoundError(f"404: there is no {filename}")
    return str(path)

huggingface_hub.HfApi = Api
huggingface_hub.hf_hub_download = download
"""
AGENT = "--algo energy_sac --env Pendulum-v1 -f logs"
BACK = "--algo energy_sac --env Pendulum-v1 -f back"


def run(folder: Path, arguments: str) -> str:
    env = {**os.environ, "SB3_ENERGY_AUTOLOAD": "1", "OMP_NUM_THREADS": "1", "TRUST_REMOTE_CODE": "True"}
    env["PYTHONPATH"] = os.pathsep.join([str(folder / "site"), *sys.path])
    done = subprocess.run([sys.executable, *arguments.split()], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("route", ["rl_zoo3.", "sb3_energy.zoo "])
def test_an_agent_goes_to_the_hub_and_comes_back(tmp_path, route):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HUB)
    run(tmp_path, f"-m {route}train {AGENT} -n 110 --eval-freq -1 --num-threads 1")
    run(tmp_path, f"-m {route}push_to_hub {AGENT} --no-render -orga me --num-threads 1")
    card = (tmp_path / "hub_server" / "me" / "energy_sac-Pendulum-v1" / "README.md").read_text()
    assert "**EnergySAC** Agent playing **Pendulum-v1**" in card and "mean_reward" in card
    run(tmp_path, f"-m {route}load_from_hub {BACK} -orga me")
    assert "Mean reward" in run(tmp_path, f"-m {route}enjoy {BACK} --no-render -n 200 --num-threads 1")
