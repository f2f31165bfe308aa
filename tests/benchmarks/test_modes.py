"""The benchmark of modes: its options, its measurements, its restarts after a kill, its refusals, its report."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger

from benchmarks import modes
from benchmarks.files import RunFiles
from benchmarks.goal_trainings import play
from benchmarks.mode_report import Score, score_of
from benchmarks.mode_runs import EvaluateModes, columns_of, total_variation, training_env
from benchmarks.report import Run
from sb3_energy.envs import World, draw_world

ROOT = Path(__file__).resolve().parents[2]
ANSWER = {
    "world": {
        "goals": [[1.5, 0.0], [-1.5, 0.0], [0.0, 4.0]],
        "bonuses": [9.0, 8.0, 7.0],
        "reward_scale": 0.5,
        "goal_threshold": 0.6,
    },
    "alpha": 2.0,
    "alpha_in_scales": 4.0,
    "exact": {
        "shares": [0.6, 0.3, 0.1],
        "first_actions": [[0.5, 0.0], [-0.5, 0.0], [0.0, 0.5]],
        "q_values": [-3.0, -4.0, -9.0],
    },
}
"""In place of a solved world: goals that are near, so that a tiny training finds them."""


@pytest.fixture
def unsolved(monkeypatch):
    monkeypatch.setattr(modes, "solved", lambda args, seed: ANSWER)


def arguments(output, *extra):
    tiny = "--worlds 1 --steps 300 --eval-freq 100 --eval-episodes 5 --seeds 0 --algos sac".split()
    return [*tiny, "--output", str(output), "--common", '{"learning_starts": 50, "batch_size": 16}', *extra]


# -- options ---------------------------------------------------------------------------------------------------------


def test_worlds_by_comma_and_in_ranges():
    assert modes.worlds("0-2,8") == [0, 1, 2, 8]
    assert modes.worlds("4") == [4]


@pytest.mark.parametrize("text", ["", "5-3", "a"])
def test_worlds_that_are_none_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        modes.parser().parse_args(["--worlds", text])
    assert "argument --worlds" in capsys.readouterr().err


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--algos", "sca"], "--algos must be among"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--seeds", "x"], "--seeds must be whole numbers by comma, got 'x'"),
        (["--alpha", "0"], "--alpha must be above 0, got 0"),
        (["--reward-scale", "-1"], "reward_scale must be above 0, got -1"),
        (["--report-only"], "found none"),
    ],
)
def test_bad_command_lines_are_refused(tmp_path, capsys, extra, message):
    assert modes.main([*arguments(tmp_path), *extra]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_all_algorithms_get_the_temperature_and_arguments_of_variants_win(tmp_path, unsolved):
    own = ["--variant", 'mine:pgac={"policy_kwargs": {"energy_kwargs": {"temperature": 7.0}}}', "--common", '{"gamma": 0.9}']
    args = modes.parser().parse_args(["--algos", "sac,sac_networks,energy_sac,pgac,mine", "--output", str(tmp_path), *own])
    jobs = modes.plan(args)
    assert len(jobs) == 6 * 5
    kwargs = {job.config["variant"]: job.config["kwargs"] for job in jobs}
    assert all(values["ent_coef"] == 2.0 and values["gamma"] == 0.9 for values in kwargs.values())
    assert "policy_kwargs" not in kwargs["sac"] and "policy_kwargs" not in kwargs["energy_sac"]
    assert kwargs["sac_networks"]["policy_kwargs"] == {"refiner": "none"}
    energy = {"guidance": 1.0, "normalize_q": False, "temperature": 2.0}
    assert kwargs["pgac"]["policy_kwargs"]["energy_kwargs"] == energy
    assert kwargs["mine"]["policy_kwargs"]["energy_kwargs"] == energy | {"temperature": 7.0}


def test_a_world_is_solved_once_and_at_the_scale_and_temperature_that_are_asked_for(tmp_path, monkeypatch):
    args = modes.parser().parse_args([*arguments(tmp_path), "--reward-scale", "3", "--alpha", "2"])
    job = modes.plan(args)[0]
    config, world = job.config, draw_world(1)
    assert job.files.csv == tmp_path / "world1_scale3_alpha2" / "sac_seed0.csv"
    assert config["world"] == {
        "goals": [list(goal) for goal in world.goals],
        "bonuses": list(world.bonuses),
        "reward_scale": 3.0,
        "goal_threshold": 0.5,
    }
    assert config["alpha"] == pytest.approx(2.0 * 3.0) and sum(config["exact"]["shares"]) == pytest.approx(1.0, abs=1e-3)
    job.files.write_config(config)
    monkeypatch.setattr(modes, "balanced_temperature", None)  # it must not be called any more
    assert modes.plan(args) == [job]


def test_the_temperature_is_never_below_the_balanced_one(tmp_path):
    args = modes.parser().parse_args(["--worlds", "3", "--alpha", "0.1", "--output", str(tmp_path)])
    world = draw_world(3)
    assert modes.solved(args, 3)["alpha"] == pytest.approx(modes.balanced_temperature(world), rel=1e-5)
    args.alpha = modes.ALPHA
    assert modes.solved(args, 3)["alpha"] == pytest.approx(modes.ALPHA * world.reward_scale, rel=1e-5)


# -- measurements ----------------------------------------------------------------------------------------------------


def test_total_variation_counts_episodes_without_a_goal():
    exact = np.array([0.5, 0.5])
    assert total_variation(np.array([0.5, 0.5]), exact) == 0.0
    assert total_variation(np.array([1.0, 0.0]), exact) == 0.5
    assert total_variation(np.array([0.5, 0.25]), exact) == 0.25
    assert total_variation(np.array([0.0, 0.0]), exact) == 1.0


def test_episodes_are_played_in_the_world_that_is_given():
    world = World([(1.5, 0.0), (0.0, -2.5)], [4.0, 0.0], reward_scale=2.0)

    def act(states):
        first = (np.arange(len(states)) % 2 == 0) if (states == 0.0).all() else states[:, 0] > 0.0
        return np.where(first[:, None], [[0.75, 0.0]], [[0.0, -0.75]])

    played = play(act, 4, world=world)
    assert played.goals.tolist() == [0, 1, 0, 1] and played.shares == [0.5, 0.5] and played.lost == 0.0
    assert played.returns[0] == pytest.approx(2.0 * (2 * -30.0 * 0.75**2 - 0.75**2 + 4.0))


def measuring(tmp_path, rows):
    config = ANSWER | {"eval_episodes": 50, "eval_freq": 100, "steps": 100, "env": "world1"}
    model = SAC("MlpPolicy", training_env(config), policy_kwargs={"net_arch": [4]}, seed=0)
    model.set_logger(Logger(None, []))
    callback = EvaluateModes(config, RunFiles(tmp_path / "sac_seed0"), rows)
    callback.init_callback(model)
    return callback


def test_what_is_measured_of_an_untrained_model(tmp_path):
    callback = measuring(tmp_path, [])
    row = callback.measured()
    assert sorted([*row, "timesteps", "cpu_seconds"]) == sorted(columns_of(3))
    assert sum(row[f"share_{goal}"] for goal in range(3)) + row["no_goal"] == pytest.approx(1.0)
    # critics that say 1 everywhere: their error in units of alpha
    for critic in callback.model.critic.q_networks:
        critic[-1].weight.data.zero_()
        critic[-1].bias.data.fill_(1.0)
    row = callback.measured()
    assert [row[f"q_error_{goal}"] for goal in range(3)] == pytest.approx([4.0 / 2.0, 5.0 / 2.0, 10.0 / 2.0])


def test_visits_are_counted_and_go_on_from_the_last_row(tmp_path):
    callback = measuring(tmp_path, [])
    for step, goals in enumerate([[-1], [1], [0], [-1], [1]], start=1):
        callback.num_timesteps, callback.locals = step, {"infos": [{"goal": goal} for goal in goals]}
        assert callback._on_step()
    row = callback.measured()
    found = [[row[f"{name}_{goal}"] for goal in range(3)] for name in ("visits", "first_visit", "last_visit")]
    np.testing.assert_array_equal(found, [[1, 2, 0], [3, 2, np.nan], [3, 5, np.nan]])
    resumed = measuring(tmp_path, [row | {"timesteps": 5.0, "cpu_seconds": 1.0}])
    resumed.num_timesteps, resumed.locals = 9, {"infos": [{"goal": 2}, {"goal": 1}]}
    resumed._on_step()
    row = resumed.measured()
    found = [[row[f"{name}_{goal}"] for goal in range(3)] for name in ("visits", "first_visit", "last_visit")]
    np.testing.assert_array_equal(found, [[1, 3, 1], [3, 2, 9], [3, 9, 9]])


# -- runs ------------------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_and_a_finished_or_changed_one_does_not(tmp_path, capsys, unsolved):
    files = RunFiles.of(tmp_path, "world1", "sac", 0)
    files.write_config(modes.plan(modes.parser().parse_args(arguments(tmp_path)))[0].config)
    command = [sys.executable, "-m", "benchmarks.mode_runs", str(files.config)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while files.latest_checkpoint() is None:
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = files.csv.read_text().splitlines()
    assert 1 <= len(before) - 1 < 3, "the kill must come in the middle"

    assert modes.main(arguments(tmp_path)) == 0
    rows = files.read_rows()
    assert [row["timesteps"] for row in rows] == [100, 200, 300] and list(rows[0]) == columns_of(3)
    assert files.csv.read_text().splitlines()[: len(before)] == before
    assert "goes on at" in files.log.read_text() and not files.checkpoints.exists()
    visits = np.array([[row[f"visits_{goal}"] for goal in range(3)] for row in rows])
    assert visits[0].sum() > 0 and (np.diff(visits, axis=0) >= 0).all()
    assert rows[-1]["ent_coef"] == 2.0 and all(np.isfinite(row["q_error_0"]) for row in rows)
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out and "| world1 | 0.5 | 4 | `sac` | 0 | .60 .30 .10 |" in table
    assert len(np.unique(matplotlib.image.imread(tmp_path / "modes.png").reshape(-1, 4), axis=0)) > 50

    written = files.csv.stat().st_mtime_ns
    assert modes.main(arguments(tmp_path)) == 0
    assert "finished before: world1 sac seed 0" in capsys.readouterr().out
    assert modes.main([*arguments(tmp_path), "--common", '{"learning_starts": 60}']) == 2
    error = capsys.readouterr().err
    assert "was begun with another configuration" in error and "kwargs.learning_starts was 50, is 60" in error
    assert files.csv.stat().st_mtime_ns == written


@pytest.mark.slow
def test_every_algorithm_trains(tmp_path, unsolved):
    options = ["--algos", "sac_networks,energy_sac,pgac", "--steps", "120", "--eval-freq", "60"]
    assert modes.main([*arguments(tmp_path), *options]) == 0
    for name in ("sac_networks", "energy_sac", "pgac"):
        rows = RunFiles.of(tmp_path, "world1", name, 0).read_rows()
        assert [row["timesteps"] for row in rows] == [60, 120] and np.isfinite(rows[-1]["q_error_2"])


# -- report ----------------------------------------------------------------------------------------------------------


def write_run(output, world, variant, shares, seed=0, until=3):
    files = RunFiles.of(output, world, variant, seed)
    config = ANSWER | {"env": world, "variant": variant, "seed": seed, "steps": 300}
    files.write_config(config)
    rows = [dict.fromkeys(columns_of(3), 0.0) for _ in range(until)]
    for k, row in enumerate(rows):
        row.update(timesteps=100 * (k + 1), total_variation=total_variation(np.array(shares), np.array([0.6, 0.3, 0.1])))
        row.update(
            {f"share_{goal}": share for goal, share in enumerate(shares)}, q_error_1=-2.5, visits_1=40, last_visit_1=123
        )
    files.write_rows(rows, columns_of(3))
    return Run(config, rows)


def test_lost_modes_are_those_that_count_and_the_largest_is_the_worst(tmp_path):
    score = Score(np.array([0.2, 0.3, 0.1, 0.4]), np.array([0.04, 0.0, 0.0, 0.96]), *np.zeros((3, 4)), 0.56)
    assert score.modes.tolist() == [0, 1, 3] and score.lost.tolist() == [1, 0]
    score = score_of(write_run(tmp_path, "world1", "sac", [1.0, 0.0, 0.0]))
    assert score.lost.tolist() == [1] and score.total_variation == pytest.approx(0.4)


def test_report_has_every_run_and_every_algorithm(tmp_path, capsys):
    for world in ("world10", "world2"):
        write_run(tmp_path, world, "sac", [1.0, 0.0, 0.0])
        write_run(tmp_path, world, "energy_sac", [0.6, 0.3, 0.1])
        write_run(tmp_path, world, "energy_sac", [0.4, 0.5, 0.1], seed=1)
    write_run(tmp_path, "world2", "pgac", [0.0, 0.0, 0.0], until=2)
    assert modes.main(["--report-only", "--output", str(tmp_path)]) == 0
    table = (tmp_path / "table.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith("| world")][1:]
    assert [line.split(" | ")[0] for line in lines] == ["| world2"] * 3 + ["| world10"] * 3
    assert "| 0.40 | 1 of 2 | 1: 0.30 → 0.00, visited 40 times, last at step 123 | 2.5 |" in lines[0]
    assert "| `sac` | 2 | 0.40 | 0.40 | 2 of 4 | 2 of 2 | 2.5 |" in table
    assert "| `energy_sac` | 4 | 0.10 | 0.20 | 0 of 8 | 0 of 2 | 2.5 |" in table
    assert "* Not finished, so not in the tables: world2 `pgac` seed 0 at 200 of 300 steps, TV 1.00." in table

    picture = matplotlib.image.imread(tmp_path / "modes.png")
    assert modes.main(["--report-only", "--output", str(tmp_path), "--worlds", "2", "--algos", "sac"]) == 0
    assert "world10" not in (tmp_path / "table.md").read_text()
    assert matplotlib.image.imread(tmp_path / "modes.png").shape != picture.shape
