from typing import NamedTuple

import pytest
import torch as th

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.energies import QEnergy, aggregate_q_values
from sb3_energy.types import Networks


class Quadratics(NamedTuple):
    """Critics ``-|a - centre_c - s|²``: encoding is the identity."""

    centres: th.Tensor  # (C, A)

    def encode(self, obs):
        return obs

    def evaluate(self, features, actions):
        return -(actions - features.unsqueeze(1) - self.centres[:, None, None]).square().sum(-1)


CRITIC = Quadratics(th.tensor([[0.5, 0.0], [-0.5, 0.2], [0.0, 1.0]], dtype=th.float64))
OBS = th.tensor([[0.0, 0.1], [0.3, -0.2], [0.0, 0.0]], dtype=th.float64)
ACTIONS = 2.0 * th.rand(3, 20, 2, dtype=th.float64, generator=th.Generator().manual_seed(0)) - 1.0


def member_gradients():
    return -2.0 * (ACTIONS - OBS.unsqueeze(1) - CRITIC.centres[:, None, None])


def test_min_has_the_gradient_of_the_lowest_member_particle_by_particle():
    energies, gradients = energy_and_grad(QEnergy("min").bind(Networks(CRITIC), OBS), ACTIONS)
    lowest = CRITIC.evaluate(OBS, ACTIONS).argmin(0)
    assert set(lowest.flatten().tolist()) == {0, 1, 2}
    expected = th.stack(
        [[-member_gradients()[c] for c in range(3)][c][b, n] for b in range(3) for n, c in enumerate(lowest[b])]
    )
    th.testing.assert_close(gradients.reshape(-1, 2), expected)
    th.testing.assert_close(energies, -CRITIC.evaluate(OBS, ACTIONS).amin(0))


def test_min_of_equal_members_has_one_member_s_gradient():
    twins = Quadratics(CRITIC.centres[[0, 0]])
    single = Quadratics(CRITIC.centres[[0]])
    results = [energy_and_grad(QEnergy("min").bind(Networks(c), OBS), ACTIONS) for c in (twins, single)]
    assert all(th.equal(a, b) for a, b in zip(*results, strict=True))


def test_mean():
    energies, gradients = energy_and_grad(QEnergy("mean").bind(Networks(CRITIC), OBS), ACTIONS)
    th.testing.assert_close(energies, -CRITIC.evaluate(OBS, ACTIONS).mean(0))
    th.testing.assert_close(gradients, -member_gradients().mean(0))
    assert QEnergy() == QEnergy("mean")


@pytest.mark.parametrize("coefficient", [None, 0.0, 0.5, 2.0])
def test_lcb_is_mean_minus_standard_deviation(coefficient):
    energies = QEnergy("lcb", coefficient).bind(Networks(CRITIC), OBS)(ACTIONS)
    q_values = CRITIC.evaluate(OBS, ACTIONS)
    weight = 1.0 if coefficient is None else coefficient
    th.testing.assert_close(energies, -(q_values.mean(0) - weight * q_values.std(0, correction=0)))


def test_lcb_of_two_critics_is_their_minimum():
    q_values = CRITIC.evaluate(OBS, ACTIONS)[:2]
    th.testing.assert_close(aggregate_q_values(q_values, "lcb", 1.0), q_values.amin(0), rtol=0, atol=1e-5)


def test_lcb_has_a_finite_gradient_where_critics_agree():
    twins = Quadratics(CRITIC.centres[[0, 0]])
    gradients = energy_and_grad(QEnergy("lcb").bind(Networks(twins), OBS), ACTIONS)[1]
    th.testing.assert_close(gradients, 2.0 * (ACTIONS - OBS.unsqueeze(1) - twins.centres[0]))


@pytest.mark.parametrize("aggregate", ["max", "", None, 3])
def test_unknown_aggregates_are_refused(aggregate):
    with pytest.raises(ValueError, match=r"aggregate must be one of \['mean', 'min', 'lcb'\], got"):
        QEnergy(aggregate)


def test_a_coefficient_without_use_is_refused():
    for aggregate in ("mean", "min"):
        with pytest.raises(ValueError, match=r"coefficient is used by aggregate='lcb' only, got 0\.5"):
            QEnergy(aggregate, 0.5)


@pytest.mark.parametrize("coefficient", [-0.1, float("nan"), float("inf")])
def test_a_coefficient_out_of_range_is_refused(coefficient):
    with pytest.raises(ValueError, match=r"coefficient must be (finite|at least 0), got"):
        QEnergy("lcb", coefficient)


@pytest.mark.parametrize("coefficient", ["1", True, [1.0]])
def test_a_coefficient_that_is_no_number_is_refused(coefficient):
    with pytest.raises(TypeError, match="coefficient must be a number, got"):
        QEnergy("lcb", coefficient)
