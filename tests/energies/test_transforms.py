import pickle

import pytest
import torch as th

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.energies import added, near_proposal, on_box, squashed, standardized, tempered
from sb3_energy.energies.transforms import log_tanh_jacobian


def bowl(x):
    return (0.5 * x.square()).flatten(2).sum(-1)


def flat(x):
    return th.zeros(x.shape[:2], dtype=x.dtype)


def points(*shape, dtype=th.float64):
    return 2.0 * th.randn(*shape, dtype=dtype, generator=th.Generator().manual_seed(0))


@pytest.mark.parametrize("dimension", [1, 3])
def test_the_jacobian_is_autograd_s(dimension):
    x = points(2, 4, dimension)
    expected = [[th.autograd.functional.jacobian(th.tanh, x[b, n]).logdet() for n in range(4)] for b in range(2)]
    th.testing.assert_close(log_tanh_jacobian(x), th.tensor(expected, dtype=th.float64), rtol=0, atol=1e-12)


def test_the_jacobian_sums_over_plans():
    x = points(2, 4, 3, 2)
    th.testing.assert_close(log_tanh_jacobian(x), log_tanh_jacobian(x.reshape(2, 4, 6)))


@pytest.mark.parametrize("u", [0.0, 1e-4, 3.0, 9.0, 20.0, 50.0, 1e3, 1e8])
def test_the_jacobian_holds_at_the_walls_in_32_bits(u):
    for sign in (1.0, -1.0):
        value, slope = energy_and_grad(lambda x: -log_tanh_jacobian(x), th.full((1, 1, 1), sign * u))
        magnitude = th.tensor(u, dtype=th.float64)
        expected = 2.0 * (magnitude + th.nn.functional.softplus(-2.0 * magnitude) - th.tensor(2.0).double().log())
        assert value.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
        assert slope.item() == pytest.approx(sign * 2.0 * th.tanh(magnitude).item(), rel=1e-6, abs=1e-6)


def test_squashed_score_is_the_chain_rule_with_the_jacobian_s_pull():
    x = points(2, 4, 3)
    action = th.tanh(x)
    slope = energy_and_grad(squashed(bowl), x)[1]
    th.testing.assert_close(slope, (1.0 - action.square()) * action + 2.0 * action, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dimension", [1, 2])
def test_a_squashed_energy_has_the_same_normalizer(dimension):
    line = th.linspace(-12.0, 12.0, 801, dtype=th.float64)
    x = th.cartesian_prod(*[line] * dimension).reshape(1, -1, dimension)
    before = (-squashed(flat)(x)).logsumexp(1) + dimension * (line[1] - line[0]).log()
    assert before.item() == pytest.approx(dimension * th.tensor(2.0).log().item(), abs=1e-4)


def test_temperature_divides_the_energy_and_not_the_jacobian():
    x = points(2, 4, 3)
    th.testing.assert_close(squashed(tempered(bowl, 0.2))(x), 5.0 * bowl(th.tanh(x)) - log_tanh_jacobian(x))
    assert not th.allclose(squashed(tempered(bowl, 0.2))(x), tempered(squashed(bowl), 0.2)(x))


def test_temperature_may_differ_between_observations():
    x, temperature = points(2, 4, 3), th.tensor([[0.5], [2.0]])
    th.testing.assert_close(tempered(bowl, temperature)(x)[0], 2.0 * bowl(x)[0])
    th.testing.assert_close(tempered(bowl, temperature)(x)[1], 0.5 * bowl(x)[1])


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature must be positive, got"):
        tempered(bowl, temperature)


def test_on_box_is_squashed_without_the_jacobian():
    x = points(2, 4, 3)
    th.testing.assert_close(on_box(bowl)(x), bowl(th.tanh(x)))
    th.testing.assert_close(squashed(bowl)(x), on_box(bowl)(x) - log_tanh_jacobian(x))


def test_added_is_a_product_of_experts():
    x = points(2, 4, 3)
    th.testing.assert_close(added(bowl, flat, bowl)(x), 2.0 * bowl(x))
    th.testing.assert_close(added(bowl)(x), bowl(x))
    with pytest.raises(ValueError, match="added needs at least one energy, got none"):
        added()


@pytest.mark.parametrize("n_proposals", [1, 4])
def test_near_proposal_is_the_transport_cost(n_proposals):
    x, proposal = points(2, 4, 3), points(2, 4, 3)[:, :n_proposals] + 1.0
    cost = ((x - proposal) ** 2).sum(-1) / (2.0 * 0.25)
    th.testing.assert_close(near_proposal(flat, proposal, 0.25)(x), cost)


def test_one_implicit_step_of_the_heat_flow():
    # argmin of |x|²/2 + |x - p|²/(2 Δt) is p / (1 + Δt): backward Euler
    proposal = points(2, 1, 3)
    energy = near_proposal(bowl, proposal, 0.25)
    slope = energy_and_grad(energy, proposal / 1.25)[1]
    th.testing.assert_close(slope, th.zeros_like(slope), rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan")])
def test_the_transport_s_step_must_be_positive(step):
    with pytest.raises(ValueError, match="step must be positive, got"):
        near_proposal(bowl, points(1, 1, 1), step)


def test_standardized_is_a_change_of_variables():
    x, loc, scale = points(2, 4, 3), points(2, 1, 3), points(2, 1, 3).exp()
    energies, slope = energy_and_grad(standardized(bowl, loc, scale), (x - loc) / scale)
    th.testing.assert_close(energies, bowl(x))
    th.testing.assert_close(slope, scale * x)


def test_compositions_can_be_pickled():
    x, one = points(2, 4, 3), th.ones(2, 1, 3, dtype=th.float64)
    fn = standardized(squashed(tempered(added(bowl, near_proposal(flat, one, 0.5)), 0.3)), one, 2.0 * one)
    assert th.equal(pickle.loads(pickle.dumps(fn))(x), fn(x))
    assert th.equal(pickle.loads(pickle.dumps(on_box(bowl)))(x), on_box(bowl)(x))
