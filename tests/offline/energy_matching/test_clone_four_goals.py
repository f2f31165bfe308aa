"""The example's clones: all four goals by Energy Matching, none to speak of by a Gaussian."""

import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.mark.slow
def test_energy_matching_keeps_the_experts_four_ways(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from clone_four_goals import main

    expert, gaussian, ours = main(["--output", str(tmp_path / "clones.png")])
    monkeypatch.delitem(sys.modules, "clone_four_goals")
    assert (tmp_path / "clones.png").stat().st_size > 10_000
    for picture in (expert, ours):
        np.testing.assert_allclose(picture.shares, 0.25, atol=0.07)
    assert (ours.goals < 0).mean() < 0.1
    assert np.linalg.norm(gaussian.first_actions.mean(axis=0)) < 0.1, "the mean of four ways is none of them"
    assert (np.abs(gaussian.shares - 0.25) > 0.07).any()
