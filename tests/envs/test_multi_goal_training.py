import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "multi_goal.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("multi_goal_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.slow
def test_energy_sac_reaches_every_goal_and_sac_does_not(example, tmp_path, capsys):
    output = tmp_path / "multi_goal.png"
    exact, sac, energy_sac = example.main(["--seed", "0", "--device", "cpu", "--output", str(output)])
    assert exact.shares.min() >= 0.15
    assert sac.shares.min() < 0.15
    assert energy_sac.shares.min() >= 0.15
    assert output.stat().st_size > 50_000
    printed = capsys.readouterr().out
    for picture in (exact, sac, energy_sac):
        assert np.isfinite(picture.landscape).all()
        assert f"none {(picture.goals < 0).sum()} of 400 episodes" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--timesteps", "0"], "--timesteps must be at least 1, got 0"),
        (["--n-envs", "0"], "--n-envs must be at least 1, got 0"),
        (["--episodes", "-1"], "--episodes must be at least 1, got -1"),
        (["--ent-coef", "0"], "--ent-coef must be above 0, got 0"),
        (["--reward-scale", "-1"], "--reward-scale must be above 0, got -1"),
        (["--output", "no/such/folder/a.png"], "--output must lie in a folder that exists"),
    ],
)
def test_example_names_bad_arguments(example, capsys, arguments, message):
    with pytest.raises(SystemExit):
        example.parse(arguments)
    assert message in capsys.readouterr().err


def test_rollouts_stop_at_the_first_goal_and_count_it(example):
    directions = np.array([[0.85, 0.0], [0.0, 0.85], [-0.85, 0.0], [0.0, -0.85], [0.0, 0.0]])
    paths, goals = example.rollout(lambda states: directions, len(directions))
    np.testing.assert_array_equal(goals, [0, 1, 2, 3, -1])
    np.testing.assert_allclose(paths[6], 6 * directions)  # 5.1: within .5 of the goal, 4.25 was not
    np.testing.assert_array_equal(paths[-1], paths[6])
    picture = example.Picture("straight", np.zeros((2, 2)), directions, paths, goals)
    np.testing.assert_allclose(picture.shares, 0.2)
