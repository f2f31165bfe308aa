"""The benchmark of clones on the particle: its runs, restarts, refusals, table, and the search on a grid."""

import json

import numpy as np
import pytest
import torch as th

from benchmarks import particle
from benchmarks.files import RunFiles
from benchmarks.particle_runs import GRID, GridSearch, demonstrations, measured, train
from sb3_energy import IBC
from sb3_energy.envs import ParticleExpert

TINY = "--dims 1 --steps 4 --demonstrations 5 --eval-episodes 2 --eval-freq 2 --net-arch 8 --seeds 0".split()


def arguments(output, *extra):
    return particle.parser().parse_args([*TINY, "--output", str(output), *extra])


def runs_of(output, *extra):
    found = particle.plan(arguments(output, *extra))
    for job in found:
        job.files.write_config(job.config)
    return found


def test_demonstrations_are_the_experts():
    data = demonstrations(2, 30)
    assert data.n_episodes == 30 and len(data) == 1500 and data.returns.mean() == 1.0
    assert np.array_equal(data.actions, demonstrations(2, 30).actions), "always the same"


def test_the_expert_succeeds_where_clones_are_measured():
    row = measured(ParticleExpert(3), dict(eval_episodes=20, n_dims=3))
    assert row["success"] == 1.0 and row["nearest_first"] < 0.05 and np.isnan(row["grid_success"])


class Bowl(th.nn.Module):
    """Lowest where the action is half of the first feature."""

    def bind(self, features):
        return lambda x: (x - 0.5 * features[:, None, :1]).square().sum(-1)


def test_a_grid_finds_the_lowest_energy_up_to_its_spacing():
    model = IBC(
        "MlpPolicy", demonstrations(2, 5), device="cpu", policy_kwargs=dict(net_arch=[8], normalize_observations=False)
    )
    model.policy.energy_network = Bowl()
    seen = np.random.default_rng(0).uniform(0.0, 1.0, (50, 16)).astype(np.float32)
    found = GridSearch(model, GRID[2]).predict(seen)[0]
    assert np.abs(2.0 * found - 1.0 - 0.5 * seen[:, :1]).max() <= 1.0 / (GRID[2] - 1) + 1e-6


@pytest.mark.parametrize("algo", ["ibc", "mse", "nearest"])
def test_a_run_that_was_killed_goes_on(algo, tmp_path):
    (job,) = runs_of(tmp_path, "--algos", algo)
    train(job.config, job.files)
    whole = job.files.read_rows()
    assert [row["timesteps"] for row in whole] == ([1] if algo == "nearest" else [2, 4])
    assert job.files.is_finished(job.config["steps"])
    job.files.write_rows(whole[:-1], list(whole[0]))  # as if killed before the last row
    train(job.config, job.files)
    again = job.files.read_rows()
    for name in ("timesteps", "success", "nearest_first", "final_second"):
        assert [row[name] for row in again] == pytest.approx([row[name] for row in whole]), name


def test_a_model_goes_on_from_its_file(tmp_path):
    whole, killed = (runs_of(tmp_path / name, "--algos", "mse")[0] for name in ("whole", "killed"))
    train(whole.config, whole.files)
    with pytest.MonkeyPatch.context() as patch:
        from sb3_energy.offline.offline_algorithm import OfflineAlgorithm

        step = OfflineAlgorithm._step

        def kill(self, tick):
            if self.num_timesteps == 3:
                raise KeyboardInterrupt
            return step(self, tick)

        patch.setattr(OfflineAlgorithm, "_step", kill)
        with pytest.raises(KeyboardInterrupt):
            train(killed.config, killed.files)
    assert [row["timesteps"] for row in killed.files.read_rows()] == [2]
    train(killed.config, killed.files)
    for name in ("timesteps", "nearest_first", "final_second"):
        assert [row[name] for row in killed.files.read_rows()] == [row[name] for row in whole.files.read_rows()], name


def test_all_seeds_and_worlds_are_planned_and_a_changed_run_is_refused(tmp_path):
    found = particle.plan(arguments(tmp_path, "--dims", "1,4", "--seeds", "0,3", "--variant", 'slow={"learning_rate": 1e-4}'))
    assert len(found) == 2 * 2 * len(particle.DEFAULT)
    own = particle.plan(arguments(tmp_path, "--algos", "slow", "--variant", 'slow={"learning_rate": 1e-4}'))[0].config
    assert own["algorithm"] == particle.IBC and own["kwargs"]["learning_rate"] == 1e-4
    assert own["kwargs"]["policy_kwargs"]["net_arch"] == [8] and json.loads(json.dumps(own)) == own
    (job,) = runs_of(tmp_path, "--algos", "mse")
    assert job.files.stem == RunFiles.of(tmp_path, "particle1", "mse", 0).stem
    with pytest.raises(ValueError, match="begun with another configuration"):
        particle.plan(arguments(tmp_path, "--algos", "mse", "--demonstrations", "6"))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--dims", "0"], "--dims must be whole numbers above 0"),
        (["--dims", "33"], "--dims must be at most 32"),
        (["--net-arch", "8,x"], "--net-arch must be whole numbers"),
        (["--demonstrations", "0"], "--demonstrations must be at least 1"),
        (["--algos", "gail"], "--algos must be among"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(extra, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        particle.plan(arguments(tmp_path, *extra))


def test_the_table_has_a_row_for_each_clone(tmp_path, capsys):
    for job in runs_of(tmp_path, "--algos", "mse,nearest", "--seeds", "0,1"):
        rows = [dict(timesteps=job.config["steps"], success=0.25 + 0.5 * job.config["seed"], grid_success=float("nan"))]
        job.files.write_rows([rows[0] | dict(cpu_seconds=3.0)], ("timesteps", "success", "grid_success", "cpu_seconds"))
    particle.report(arguments(tmp_path, "--report-only"))
    assert "| 1 | mse | 0.50 (0.25, 0.75) | – | 2 | 4 | 3 |" in capsys.readouterr().out
    assert (tmp_path / "table.md").read_text().count("\n") == 4
