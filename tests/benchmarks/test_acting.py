"""Trained models of the returns benchmark, played under other settings of the policy."""

import numpy as np
import pytest
import torch as th

from benchmarks import acting, returns
from benchmarks.files import RunFiles
from sb3_energy import EnergySAC
from sb3_energy.refiners import REFINERS

OBS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    output = tmp_path_factory.mktemp("returns")
    command = "--steps 60 --eval-freq 60 --eval-episodes 1 --seeds 0 --algos energy_sac,pgac,sac --envs Pendulum-v1".split()
    common = '{"learning_starts": 20, "batch_size": 16, "policy_kwargs": {"net_arch": [16]}}'
    assert returns.main([*command, "--matmul-precision", "medium", "--common", common, "--output", str(output)]) == 0
    return output


def test_a_finished_run_leaves_its_model(runs):
    model = EnergySAC.load(RunFiles.of(runs, "Pendulum-v1", "energy_sac", 0).model)
    assert model.num_timesteps == 60 and model.policy.net_arch == [16]
    assert not list(runs.glob("*/*.tmp.zip"))


def test_other_settings_keep_networks_and_temperature(runs):
    policy = EnergySAC.load(RunFiles.of(runs, "Pendulum-v1", "energy_sac", 0).model).policy
    policy.temperature.fill_(0.3)
    changed = acting.with_settings(policy, {"n_particles": 64, "refiner_steps": 20, "energy_kwargs": {"aggregate": "min"}})
    assert (
        changed.refinement.n_particles == 64 and changed.refinement.n_steps == 20 and changed.temperature == policy.temperature
    )
    for name, value in policy.state_dict().items():
        assert th.equal(changed.state_dict()[name], value), name
    same = acting.with_settings(policy, {})
    np.testing.assert_array_equal(same.predict(OBS, deterministic=True)[0], policy.predict(OBS, deterministic=True)[0])
    assert not np.array_equal(changed.predict(OBS, deterministic=True)[0], policy.predict(OBS, deterministic=True)[0])


def test_table_has_a_line_for_each_setting(runs, capsys):
    command = ["--runs", str(runs), "--envs", "Pendulum-v1", "--episodes", "1"]
    assert acting.main([*command, "--setting", 'one={"n_particles": 1}']) == 0
    text = (runs / "acting_energy_sac.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith(("| as trained | 1 |", "| one | 1 |"))]
    assert len(lines) == 2 and text.strip() in capsys.readouterr().out
    first_row = RunFiles.of(runs, "Pendulum-v1", "energy_sac", 0).read_rows()[-1]
    assert f"| {first_row['return_deterministic']:.0f} [" in lines[0], "the same episodes as in the training's evaluation"


def test_potentials_are_played_too(runs):
    command = ["--runs", str(runs), "--algo", "pgac", "--envs", "Pendulum-v1", "--episodes", "1"]
    assert acting.main([*command, "--setting", 'hot={"energy_kwargs": {"temperature": 5.0}, "n_particles": 2}']) == 0
    lines = (runs / "acting_pgac.md").read_text().splitlines()
    as_trained, hot = (line.split("|")[3:] for line in lines if line.startswith(("| as trained", "| hot")))
    assert as_trained != hot


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--episodes", "0"], "--episodes must be at least 1, got 0"),
        (["--setting", "few"], "--setting must be NAME=JSON, got 'few'"),
        (["--setting", 'a={"particles": 1}'], "--setting must have keyword arguments of RefinedPolicy, got ['particles']"),
        (["--setting", 'a={"net_arch": [8]}'], "--setting must leave the networks as they are"),
        (["--setting", 'a={"refiner": "nothing"}'], "refiner must be one of"),
        (["--algo", "sac"], "--algo must be a variant of EnergySAC or PGAC, got 'sac'"),
        (["--algo", "absent"], "--runs must hold trained models of 'absent' on Pendulum-v1, found none"),
    ],
)
def test_bad_command_lines_are_refused(runs, capsys, extra, message):
    assert acting.main(["--runs", str(runs), "--envs", "Pendulum-v1", "--episodes", "1", *extra]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("refiner", ["none", "snis", "mppi"])
def test_another_refiner_has_its_own_arguments(refiner):
    policy_kwargs = dict(net_arch=[8], n_particles=16, refiner_kwargs=dict(step_size=0.1))
    policy = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs).policy
    changes = {"refiner": refiner} | ({"n_particles": 1} if refiner == "none" else {})
    changed = acting.with_settings(policy, changes)
    assert type(changed.refinement.refiner) is REFINERS[refiner]
    assert acting.with_settings(policy, {"n_particles": 2}).refinement.refiner.step_size == 0.1
