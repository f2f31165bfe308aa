"""The hook that torch calls: import orders, absence of the zoo, the switch, the literal command."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("rl_zoo3")

import _sb3_energy_autoload as hook
from sb3_energy.zoo import ALGORITHMS
from sb3_energy.zoo.__main__ import main

ORDERS = [
    "rl_zoo3,torch,sb3_energy",
    "torch,rl_zoo3,sb3_energy",
    "sb3_energy,rl_zoo3",
    "rl_zoo3.hyperparams_opt",
    "rl_zoo3.exp_manager",
    "rl_zoo3.callbacks,sb3_energy",
    "sb3_energy.zoo.samplers,rl_zoo3.load_from_hub",
]

CHILD = """
import importlib, json, sys
for name in {order!r}.split(","):
    importlib.import_module(name)
import sb3_energy, rl_zoo3, rl_zoo3.callbacks, rl_zoo3.exp_manager as em, rl_zoo3.hyperparams_opt as ho
print(json.dumps(dict(
    order={order!r},
    algorithm=[rl_zoo3.ALGOS.get("energy_sac"), rl_zoo3.ALGOS.get("pgac")] == [sb3_energy.EnergySAC, sb3_energy.PGAC]
    and em.ALGOS is rl_zoo3.ALGOS,
    sampler=all(name in ho.HYPERPARAMS_SAMPLER and name in em.HYPERPARAMS_CONVERTER for name in ("energy_sac", "pgac")),
    manager=hasattr(em.ExperimentManager.__init__, "__sb3_energy__"),
    callback=hasattr(rl_zoo3.callbacks.ParallelTrainCallback._init_callback, "__sb3_energy__"),
    no_trace=type(rl_zoo3) is type(json) and "PatchingLoader" not in repr(em.__spec__.loader),
)))
"""

# Forking a process that has the zoo's other dependencies saves half of the time; torch is imported after the fork.
FORKS = """
import os, sys, numpy, gymnasium, optuna, pandas
assert "torch" not in sys.modules and "rl_zoo3" not in sys.modules
for source in {sources!r}:
    pid = os.fork()
    if pid == 0:
        exec(source, {{"__name__": "__main__"}})
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
"""


def run(*args: str, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "SB3_ENERGY_AUTOLOAD": "1", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=env)


def test_every_import_order_registers():
    if hasattr(os, "fork"):
        runs = [run("-c", FORKS.format(sources=[CHILD.format(order=order) for order in ORDERS]))]
    else:
        runs = [run("-c", CHILD.format(order=order)) for order in ORDERS]
    for result in runs:
        assert "Error" not in result.stderr and "could not register" not in result.stderr, result.stderr
    lines = [json.loads(line) for result in runs for line in result.stdout.splitlines() if line.startswith("{")]
    everything = dict.fromkeys(("algorithm", "sampler", "manager", "callback", "no_trace"), True)
    assert lines == [{"order": order, **everything} for order in ORDERS]


@pytest.mark.parametrize("switch", ["0", "false", "False", "NO", " off ", ""])
def test_the_switch_is_off(switch, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    if hook._Finder in sys.meta_path:
        sys.meta_path.remove(hook._Finder)
    monkeypatch.setenv(hook.SWITCH, switch)
    hook.install()
    assert hook._Finder not in sys.meta_path


@pytest.mark.parametrize("switch", ["1", "true", "yes", "on", None])
def test_the_switch_is_on(switch, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    if hook._Finder in sys.meta_path:
        sys.meta_path.remove(hook._Finder)
    monkeypatch.setenv(hook.SWITCH, switch) if switch else monkeypatch.delenv(hook.SWITCH, raising=False)
    hook.install()
    assert hook._Finder in sys.meta_path


def test_the_switch_turns_it_off_and_register_on_again():
    source = """
import sys, rl_zoo3, torch, _sb3_energy_autoload
assert "energy_sac" not in rl_zoo3.ALGOS and _sb3_energy_autoload._Finder not in sys.meta_path
import sb3_energy.zoo
sb3_energy.zoo.register()
assert rl_zoo3.ALGOS["energy_sac"] is sb3_energy.EnergySAC
import rl_zoo3.exp_manager
assert "energy_sac" in rl_zoo3.exp_manager.HYPERPARAMS_CONVERTER
"""
    result = run("-c", source, SB3_ENERGY_AUTOLOAD="0")
    assert result.returncode == 0, result.stderr


def test_the_hook_alone_imports_nothing_but_the_standard_library():
    source = """
import sys, _sb3_energy_autoload as hook
hook.install(); hook.install()
assert sys.meta_path.count(hook._Finder) == 1
assert not {"torch", "sb3_energy", "rl_zoo3", "numpy"} & set(sys.modules)
"""
    result = run("-c", source)
    assert result.returncode == 0 and result.stderr == "", result.stderr


def test_torch_and_the_package_work_without_the_zoo():
    source = """
import sys
sys.modules["rl_zoo3"] = None  # what the import system sees where it is not installed
import torch, sb3_energy, sb3_energy.zoo
sb3_energy.zoo.register()
assert callable(sb3_energy.EnergySAC)
sys.argv = ["zoo", "train"]
import sb3_energy.zoo.__main__ as route
route.main()
"""
    result = run("-c", source)
    assert result.returncode == 1
    assert result.stderr.strip() == "python -m sb3_energy.zoo needs the RL Zoo: pip install 'sb3-energy[zoo]'"


def test_a_broken_package_breaks_neither_torch_nor_the_zoo():
    source = """
import sys
sys.modules["sb3_energy"] = None
import torch, rl_zoo3.exp_manager
assert "energy_sac" not in rl_zoo3.ALGOS and "sac" in rl_zoo3.ALGOS
"""
    result = run("-c", source)
    assert result.returncode == 0, result.stderr
    assert "sb3-energy could not register itself in rl_zoo3.utils" in result.stderr


def test_a_zoo_of_another_version_is_imported_where_warnings_are_errors():
    source = """
import sys, types, warnings, importlib.machinery, importlib.abc
class Zoo(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "rl_zoo3":
            return importlib.machinery.ModuleSpec(name, self, is_package=name == "rl_zoo3")
    def create_module(self, spec): return None
    def exec_module(self, module): module.MINE = 3
import sb3_energy
sys.meta_path.append(Zoo())
sys.meta_path.insert(1, sys.meta_path.pop())
warnings.simplefilter("error")
import rl_zoo3.utils, rl_zoo3.callbacks, rl_zoo3.exp_manager, rl_zoo3.hyperparams_opt
assert rl_zoo3.exp_manager.MINE == 3
"""
    result = run("-c", source)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("sb3-energy could not register itself in rl_zoo3.") == 4
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_literal_command(tmp_path, algo):
    arguments = f"-m rl_zoo3.train --algo {algo} --env Pendulum-v1 -n 150 --eval-freq -1 --num-threads 1 -f".split()
    result = run(*arguments, str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / algo / "Pendulum-v1_1" / "Pendulum-v1.zip").is_file()
    assert f"{algo}.yml" in result.stdout


@pytest.mark.parametrize("arguments", [[], ["trian"]])
def test_an_unknown_script_is_one_sentence(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["python -m sb3_energy.zoo", *arguments])
    with pytest.raises(SystemExit, match="SCRIPT one of train, enjoy, record_video") as error:
        main()
    assert "\n" not in error.value.code
