"""Shares of modes, counted by the nearest one."""

import numpy as np
import pytest

from benchmarks.mode_shares import DENSITIES, main


@pytest.mark.parametrize("name", sorted(DENSITIES))
def test_draws_have_the_shares_that_they_are_said_to_have(name):
    modes = DENSITIES[name]
    draws = modes.draw(20_000, np.random.default_rng(0))
    np.testing.assert_allclose(modes.shares_of(draws), modes.shares, atol=0.015)
    means = np.array(modes.means)
    np.testing.assert_allclose(modes.shares_of(means, np.array(modes.shares)), modes.shares)


def test_a_table_is_printed(capsys):
    assert main(["--gradient-steps", "2", "--densities", "two, .6 and .4"]) == 0
    assert "| two, .6 and .4 | 0.6 0.4 | " in capsys.readouterr().out
