"""The returns benchmark: its statistics, its restarts after a kill, its refusals, its report."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from scipy import stats

from benchmarks import returns
from benchmarks.envs import ActionRepeat, make_env
from benchmarks.evaluation import Rollouts, discounted_returns, isolated_randomness
from benchmarks.files import COLUMNS, RunFiles
from benchmarks.report import read_runs, verdict
from benchmarks.runs import main as run_main
from benchmarks.statistics import Interval, bootstrap, difference_interval, interquartile_mean, iqm_band, iqm_interval
from benchmarks.variants import VARIANTS, constructor_arguments, defaults_of, merge, parse_variant

ROOT = Path(__file__).resolve().parents[2]
TINY = "--steps 300 --eval-freq 100 --eval-episodes 1 --seeds 0 --algos sac --envs Pendulum-v1".split()


def arguments(output, *extra):
    return [*TINY, "--output", str(output), "--common", '{"learning_starts": 50, "batch_size": 16}', *extra]


# -- statistics ------------------------------------------------------------------------------------------------------


def test_interquartile_mean_is_the_mean_of_the_middle_half():
    assert interquartile_mean([100, 1, 2, 3, 4, 5, 6, -50]) == np.mean([2, 3, 4, 5])
    assert interquartile_mean([1.0, 2.0, 6.0]) == 3.0


def test_bootstrap_agrees_with_scipys_percentile_interval():
    scores = np.random.default_rng(1).normal(10.0, 3.0, size=40)
    ours = iqm_interval(scores)
    theirs = stats.bootstrap((scores,), interquartile_mean, method="percentile", n_resamples=5000).confidence_interval
    assert ours.value == interquartile_mean(scores)
    assert ours.low == pytest.approx(theirs.low, abs=0.15)
    assert ours.high == pytest.approx(theirs.high, abs=0.15)


def test_bootstrap_of_the_mean_has_the_normal_width():
    scores = np.random.default_rng(3).normal(0.0, 2.0, size=400)
    interval = bootstrap([scores], lambda draws: draws.mean(axis=1), confidence=0.9)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.645 * scores.std() / 20, rel=0.05)


def test_difference_resamples_each_algorithm_on_its_own():
    first, second = np.random.default_rng(4).normal(0.0, 1.0, size=(2, 100))
    interval = difference_interval(first + 5, second)
    alone = iqm_interval(first)
    assert interval.value == pytest.approx(float(interquartile_mean(first + 5) - interquartile_mean(second)))
    assert (interval.high - interval.low) == pytest.approx(np.sqrt(2) * (alone.high - alone.low), rel=0.2)
    assert difference_interval([7.0, 7.0], [3.0, 3.0]) == Interval(4.0, 4.0, 4.0)


def test_band_is_the_interval_of_every_column():
    curves = np.random.default_rng(5).normal(size=(6, 4)) + np.arange(4)
    middle, low, high = iqm_band(curves)
    for column in range(4):
        interval = iqm_interval(curves[:, column])
        np.testing.assert_allclose((middle[column], low[column], high[column]), interval, atol=0.08)


def test_verdict_needs_the_figure_outside_the_interval():
    sac = Interval(10.0, 8.0, 12.0)
    assert [verdict(Interval(x, x - 9, x + 9), sac) for x in (7.9, 8.0, 12.0, 12.1)] == ["below", "inside", "inside", "above"]


# -- environments and evaluation -------------------------------------------------------------------------------------


class _Counter(gym.Env):
    observation_space = gym.spaces.Dict({"a": gym.spaces.Box(-9, 9, (2,)), "b": gym.spaces.Box(-9, 9, (), np.float64)})
    action_space = gym.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        return self._observation(), float(self.steps), False, self.steps == 5, {}

    def _observation(self):
        return {"a": np.zeros(2, np.float32), "b": np.array(self.steps, np.float64)}


def test_action_repeat_adds_rewards_and_stops_at_the_end():
    env = ActionRepeat(_Counter(), 2)
    env.reset()
    steps = [env.step(np.zeros(1))[1:4] for _ in range(3)]
    assert steps == [(3.0, False, False), (7.0, False, False), (5.0, False, True)]
    with pytest.raises(ValueError, match="action_repeat must be at least 1, got 0"):
        ActionRepeat(_Counter(), 0)


def test_environments_are_flat_and_float32():
    gym.register("BenchmarkCounter-v0", _Counter)
    env = make_env("BenchmarkCounter-v0", 1)
    assert env.observation_space.shape == (3,) and env.observation_space.dtype == np.float32
    assert env.reset()[0].dtype == np.float32


def test_dm_control_is_seeded_and_repeats_actions():
    pytest.importorskip("shimmy")
    pytest.importorskip("dm_control")
    env = make_env("dm_control/walker-walk-v0", 2)
    np.testing.assert_array_equal(env.reset(seed=3)[0], env.reset(seed=3)[0])
    steps = 0
    while not env.step(env.action_space.sample())[3]:
        steps += 1
    assert steps + 1 == 500


def test_discounted_returns_go_on_behind_a_time_limit_only():
    rewards, alive = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]), np.array([[1, 1], [1, 1], [1, 0]], dtype=bool)
    rollouts = Rollouts([], [], rewards, alive, np.array([False, True]), np.zeros((2, 1)))
    np.testing.assert_allclose(
        discounted_returns(rollouts, np.array([8.0, 0.0]), 0.5), [[1.75 + 1.0, 1.5], [1.5 + 2.0, 1.0], [1.0 + 4.0, 0.0]]
    )


def test_evaluation_leaves_the_training_random_numbers_alone():
    np.random.seed(0)
    expected = np.random.rand(2)
    np.random.seed(0)
    first = np.random.rand()
    with isolated_randomness(5):
        np.random.rand(7)
    assert [first, np.random.rand()] == list(expected)


# -- variants --------------------------------------------------------------------------------------------------------


def test_variants_from_the_command_line():
    variant = parse_variant('mine={"refine_target": true, "policy_kwargs": {"refiner": "mppi", "activation_fn": "SiLU"}}')
    assert (variant.name, variant.algorithm) == ("mine", VARIANTS["energy_sac"].algorithm)
    assert constructor_arguments(variant.kwargs)["policy_kwargs"]["activation_fn"].__name__ == "SiLU"
    assert parse_variant('wide:sac={"policy_kwargs": {"net_arch": [400]}}').algorithm == "stable_baselines3:SAC"
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}


@pytest.mark.parametrize(
    "text, message",
    [
        ("mine", "--variant must be NAME=JSON"),
        ("../mine={}", "--variant must be NAME=JSON"),
        ("sac={}", "a name of its own, got 'sac'"),
        ("mine=[1]", "must be a JSON object of keyword arguments, got '\\[1\\]'"),
        ("mine={", "must be a JSON object"),
        ("mine:nothing={}", "got 'nothing'"),
    ],
)
def test_bad_variants_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_variant(text)


def test_stored_defaults_cover_algorithm_and_policy():
    defaults = defaults_of(VARIANTS["sac"])
    assert defaults["SAC.learning_starts"] == "100" and defaults["SACPolicy.n_critics"] == "2"


def test_stored_defaults_cover_the_refiner_in_use():
    mppi = parse_variant('mine={"policy_kwargs": {"refiner": "mppi"}}')
    assert "MetropolisAdjustedLangevin.step_size" in defaults_of(VARIANTS["energy_sac"])
    assert {"MPPI.default_steps", "EnergySAC.refine_target", "EnergySAC.gamma", "RefinedPolicy.n_particles"} <= set(
        defaults_of(mppi)
    )
    assert not any(" at 0x" in value for value in defaults_of(mppi).values())
    with pytest.raises(ValueError, match=r"refiner must be one of .*, got 'nothing'"):
        defaults_of(parse_variant('mine={"policy_kwargs": {"refiner": "nothing"}}'))


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--algos", "sca"], "--algos must be among"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--seeds", "0,-1"], "--seeds must be whole numbers by comma, got '0,-1'"),
        (["--common", "3"], "--common must be a JSON object"),
    ],
)
def test_bad_command_lines_are_refused(tmp_path, capsys, extra, message):
    assert returns.main([*arguments(tmp_path), *extra]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# -- runs ------------------------------------------------------------------------------------------------------------


def benchmark_process(output):
    command = [sys.executable, "-m", "benchmarks.returns", *arguments(output)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path, capsys):
    files = RunFiles.of(tmp_path, "Pendulum-v1", "sac", 0)
    process = benchmark_process(tmp_path)
    deadline = time.monotonic() + 120
    while files.latest_checkpoint() is None:
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = files.csv.read_text().splitlines()
    assert 1 <= len(before) - 1 < 3, "the kill must come in the middle"

    # The child sees its parent die, so the second call never meets the first one's child for long.
    for _ in range(100):
        if returns.main(arguments(tmp_path)) == 0:
            break
        time.sleep(0.1)
    rows = files.read_rows()
    assert [row["timesteps"] for row in rows] == [100, 200, 300]
    assert files.csv.read_text().splitlines()[:2] == before[:2]
    assert np.isfinite([[row["return_deterministic"], row["return_stochastic"], row["mean_q"]] for row in rows]).all()
    assert rows[0]["cpu_seconds"] < rows[1]["cpu_seconds"] < rows[2]["cpu_seconds"]
    assert "goes on at" in files.log.read_text()
    assert not files.checkpoints.exists()

    written = files.csv.stat().st_mtime_ns
    assert returns.main(arguments(tmp_path)) == 0
    assert files.csv.stat().st_mtime_ns == written
    assert "finished before: Pendulum-v1 sac seed 0" in capsys.readouterr().out

    assert returns.main([*arguments(tmp_path), "--steps", "400"]) == 2
    error = capsys.readouterr().err
    assert "was begun with another configuration" in error and "steps was 300, is 400" in error
    assert files.csv.stat().st_mtime_ns == written


def test_changed_defaults_are_refused_and_new_ones_are_not(tmp_path):
    args = returns.parser().parse_args(arguments(tmp_path))
    job = returns.plan(args)[0]
    defaults = dict(job.config["defaults"])
    del defaults["SAC.gamma"]
    job.files.write_config({**job.config, "defaults": defaults})
    assert returns.plan(args) == [job]
    job.files.write_config({**job.config, "defaults": {**defaults, "SAC.tau": "0.1"}})
    with pytest.raises(ValueError, match=r"\(defaults.SAC.tau was '0.1', is '0.005'\)"):
        returns.plan(args)


def test_an_incomplete_checkpoint_is_not_read(tmp_path):
    files = RunFiles(tmp_path / "sac_seed0")
    for name in ("100", "200", "300.tmp"):
        (files.checkpoints / name).mkdir(parents=True)
    assert files.latest_checkpoint() == files.checkpoints / "200"
    files.drop_checkpoints(keep=files.checkpoints / "200")
    assert [folder.name for folder in files.checkpoints.iterdir()] == ["200"]


def test_a_failed_run_is_reported(tmp_path, capsys):
    assert returns.main([*arguments(tmp_path, "--common", '{"nothing": 1}')]) != 0
    assert "FAILED with status 1" in capsys.readouterr().out
    assert "unexpected keyword argument 'nothing'" in RunFiles.of(tmp_path, "Pendulum-v1", "sac", 0).log.read_text()


# -- report ----------------------------------------------------------------------------------------------------------


def write_run(output, variant, seed, final, cpu=1.0, steps=1000, until=10):
    files = RunFiles.of(output, "Toy-v0", variant, seed)
    config = {"env": "Toy-v0", "variant": variant, "seed": seed, "steps": steps, "action_repeat": 1}
    files.write_config({**config, "eval_freq": steps // 10, "eval_episodes": 5})
    rows = [dict.fromkeys(COLUMNS, float("nan")) for _ in range(until)]
    for k, row in enumerate(rows):
        value = final if k >= 7 else final * k / 10
        row.update(timesteps=steps // 10 * (k + 1), cpu_seconds=cpu * k)
        row.update(return_deterministic=value, return_stochastic=value - 1)
    files.write_rows(rows)
    return files


def test_rows_survive_the_csv(tmp_path):
    rows = write_run(tmp_path, "sac", 0, 10.0).read_rows()
    assert list(rows[0]) == list(COLUMNS) and rows[9]["return_deterministic"] == 10.0 and np.isnan(rows[9]["return_base"])


def test_report_scores_finished_runs_beside_sac(tmp_path, capsys):
    for seed in range(3):
        write_run(tmp_path, "sac", seed, 100.0 + seed, cpu=2.0)
        write_run(tmp_path, "energy_sac", seed, 200.0 + seed, cpu=3.0)
    write_run(tmp_path, "half", 0, 50.0, until=5)
    assert returns.main(["--report-only", "--output", str(tmp_path)]) == 0
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == ["sac", "energy_sac"]
    assert "| 3 | 101.0 [100.0, 102.0] |" in lines[0] and lines[0].endswith("| 1.00 |")
    assert "| 201.0 [200.0, 202.0] | +100.0 [" in lines[1] and "| above |" in lines[1] and lines[1].endswith("| 1.50 |")
    assert "Not finished, so not in the table: `half` seed 0 at 500 of 1000 steps" in table
    assert "With 3 run(s) nothing is trimmed" in table
    assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")


def test_report_warns_of_different_protocols_and_keeps_the_order_asked_for(tmp_path):
    write_run(tmp_path, "sac", 0, 1.0)
    write_run(tmp_path, "energy_sac", 0, 2.0, steps=2000)
    assert returns.main(["--report-only", "--output", str(tmp_path)]) == 0
    assert "Caution: runs under different protocols" in (tmp_path / "table.md").read_text()
    assert list(read_runs(tmp_path, None, ["energy_sac", "sac"])["Toy-v0"]) == ["energy_sac", "sac"]


def test_report_without_runs_is_refused(tmp_path, capsys):
    assert returns.main(["--report-only", "--output", str(tmp_path)]) == 2
    assert "found none" in capsys.readouterr().err


def test_a_missing_configuration_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.runs.end_with_parent", int)
    assert run_main(str(tmp_path / "nothing_seed0.json")) == 2
    assert "found no such file" in capsys.readouterr().out


def test_configuration_is_json(tmp_path):
    jobs = returns.plan(returns.parser().parse_args(arguments(tmp_path)))
    assert json.loads(json.dumps(jobs[0].config)) == jobs[0].config
    assert jobs[0].config["kwargs"]["buffer_size"] == 300
