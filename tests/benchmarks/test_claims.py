"""The experiments of the claims: walls, plays and tables."""

import numpy as np
import pytest
import torch as th

from benchmarks.goal_claims import main as goals
from benchmarks.goal_trainings import play, stopped
from benchmarks.good_starts import STARTS, draws_of, start_of
from benchmarks.tables import put_table
from benchmarks.wide_targets import Truth, Wells


def test_a_wall_stops_who_would_cross_it():
    before = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 3.0], [3.0, 0.0], [2.0, 1.5]])
    after = np.array([[3.0, 0.5], [2.4, 0.0], [3.0, 3.0], [2.0, 0.0], [3.0, 3.5]])
    found = stopped(before, after, 2.5, 2.0)
    np.testing.assert_allclose(found[0], [2.499, 0.5])
    for free in (1, 2, 3, 4):  # does not reach it, passes above, goes back, crosses above its end
        np.testing.assert_array_equal(found[free], after[free])


@pytest.mark.parametrize("wall, east, lost", [(None, 0.5, 0.0), ((2.5, 2.0), 0.0, 0.5)])
def test_episodes_end_at_goals_and_not_behind_walls(wall, east, lost):
    def act(states):
        at_start = np.where(np.arange(len(states)) % 2 == 0, 1.0, -1.0)
        side = np.where(states[:, 0] == 0.0, at_start, np.sign(states[:, 0]))
        return np.stack([side, np.zeros(len(states))], axis=1)

    played = play(act, 10, wall)
    assert played.shares == [east, 0.0, 0.5, 0.0] and played.lost == lost
    # five steps of length 1: -30 each, minus the squared distances 4², 3², 2², 1², plus the bonus
    assert played.returns[1] == pytest.approx(-150.0 - 30.0 + 10.0)


def test_starts_and_steps():
    target = Wells(3)
    truth = Truth(target)
    th.manual_seed(0)
    energies = {}
    for name in STARTS:
        begin = start_of(name, target)
        energies[name] = [float(target.energy(draws_of(begin, target, n, 500).unsqueeze(0)).mean()) / 3 for n in (0, 30)]
    assert all(after < before + 0.05 for before, after in energies.values())
    assert energies["actor"][0] < energies["box"][0] < energies["wide normal"][0]
    assert abs(energies["actor"][1] - truth.energy) < 0.15


def test_tables_are_put_where_the_page_says(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- one -->\nold\n<!-- /one -->\nafter\n")
    put_table(page, "one", "new\n")
    put_table(page, "one", "newer\n")
    assert page.read_text() == "before\n<!-- one -->\nnewer\n<!-- /one -->\nafter\n"


def test_a_training_is_played_and_kept(tmp_path, capsys):
    arguments = [
        "preferred",
        "--timesteps",
        "80",
        "--episodes",
        "3",
        "--seeds",
        "0",
        "--policies",
        "sac",
        "--output",
        str(tmp_path),
    ]
    goals(arguments)
    first = capsys.readouterr().out
    assert (tmp_path / "models" / "sac_bonus3_steps80_seed0.zip").exists() and "| `sac` | wall | deterministic |" in first
    goals(arguments)
    assert "played" not in capsys.readouterr().out
