"""The density a flow leaves: against solutions in closed form, against autograd, and by its integral."""

import math

import pytest
import torch as th
from torch import nn

from sb3_energy.entropy import DivergenceEntropy
from sb3_energy.refiners import Flow, MeanFlow
from sb3_energy.refiners.flow import SOLVERS
from sb3_energy.types import Target, Tick
from tests.entropy.policies import Setting, context_of, flat, refinement_of, taught_head
from tests.laws import grid, knn_entropy_on_box

MATRIX = th.tensor([[0.4, -0.9], [0.5, -0.7]], dtype=th.float64)
SHIFT = th.tensor([0.3, -0.2], dtype=th.float64)
ORDERS = {"euler": 1, "heun": 2, "rk4": 4}


def linear(x, t):
    """``A x + b``, whose flow over one unit of time is ``exp(A)`` and a shift."""
    return x @ MATRIX.T + SHIFT


def linear_average(x, t, r):
    """``(x_r - x_t) / (r - t)``, from the exponential of ``[[A, b], [0, 0]]``."""
    dt = (r - t).unsqueeze(-1)
    block = th.zeros(3, 3, dtype=th.float64)
    block[:2, :2], block[:2, 2] = MATRIX, SHIFT
    flow = th.linalg.matrix_exp(dt.unsqueeze(-1) * block)
    after = (flow @ th.cat([x, th.ones_like(x[..., :1])], dim=-1).unsqueeze(-1))[..., :2, 0]
    return (after - x) / dt


def network(seed=0, hidden=16):
    th.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 2)).double()
    return lambda x, t: 2.0 * net(th.cat([x, t.unsqueeze(-1)], dim=-1))


def points(n=6, batch=3):
    return th.randn(batch, n, 2, dtype=th.float64, generator=th.Generator().manual_seed(0))


def log_volume(refiner, target, x, n_steps, **kwargs):
    """``(B, 1)``: by how much the estimator says that the flow has spread the particles."""
    return -DivergenceEntropy(**kwargs).estimate(context_of(refiner, target, x, x.new_zeros(x.shape[:2]), n_steps)).log_prob


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_a_linear_flow_s_volume_is_that_of_the_solver_s_polynomial(solver, n_steps):
    """A step of order ``p`` multiplies by ``Σ_{k≤p} (A dt)^k / k!``; its limit is ``exp(A)`` with ``tr A``."""
    found = log_volume(Flow(solver), Target(flat, velocity=linear), points(), n_steps)
    step = MATRIX / n_steps
    polynomial = sum(th.linalg.matrix_power(step, k) / math.factorial(k) for k in range(ORDERS[solver] + 1))
    th.testing.assert_close(found, (n_steps * th.linalg.det(polynomial).abs().log()).expand(3, 1))
    if solver == "rk4":
        th.testing.assert_close(found, MATRIX.trace().expand(3, 1), rtol=0, atol=2e-3 / n_steps**4)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_exact_is_the_determinant_of_the_whole_map(solver, n_steps):
    refiner, target, x = Flow(solver), Target(flat, velocity=network()), points(n=1)

    def whole(start):
        state = start.reshape(1, 1, 2)
        for k in range(n_steps):
            state = refiner.transport(state, target, Tick(k, n_steps))
        return state.flatten()

    exact = [th.linalg.slogdet(th.autograd.functional.jacobian(whole, p)).logabsdet for p in x[:, 0]]
    th.testing.assert_close(log_volume(refiner, target, x, n_steps), th.stack(exact).unsqueeze(1))


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_the_density_it_leaves_integrates_to_one(solver):
    """The density at the ends, on a grid of starts: each cell goes somewhere and keeps its mass, its volume does not."""
    starts, cell = grid(120, 2, -5.0, 5.0)
    refiner, target = Flow(solver), Target(flat, velocity=network(1))
    log_prob = th.distributions.Normal(0.0, 1.0).log_prob(starts).sum(-1)
    singles = starts.reshape(-1, 1, 2)
    found = DivergenceEntropy().estimate(context_of(refiner, target, singles, log_prob.reshape(-1, 1), 2)).log_prob.flatten()
    ends = singles
    for k in range(2):
        ends = refiner.transport(ends, target, Tick(k, 2))
    # Where the cells went: the area of the image of each by the corners' cross product
    square = ends.reshape(120, 120, 2)
    along, across = square[1:, :-1] - square[:-1, :-1], square[:-1, 1:] - square[:-1, :-1]
    areas = (along[..., 0] * across[..., 1] - along[..., 1] * across[..., 0]).abs()
    assert (areas / cell).std() > 0.05, "the flow stretches"
    density = found.exp().reshape(120, 120)
    corners = 0.25 * (density[:-1, :-1] + density[1:, :-1] + density[:-1, 1:] + density[1:, 1:])
    assert (corners * areas).sum().item() == pytest.approx(1.0, abs=2e-3)


def test_hutchinson_is_unbiased_for_the_sum_of_divergences():
    refiner, velocity, x = Flow("heun"), network(2), points(n=1, batch=1)
    target = Target(flat, velocity=velocity)
    expected, at = 0.0, x
    for k in range(2):
        for stage in refiner.stages(at, target, Tick(k, 2)):

            def field(y, time=stage.time):
                return velocity(y.reshape(1, 1, 2), time).flatten()

            expected += stage.weight * th.autograd.functional.jacobian(field, stage.particles.flatten()).trace().item()
        at = refiner.transport(at, target, Tick(k, 2))
    many = x.repeat(20_000, 1, 1)
    found = log_volume(refiner, target, many, 2, method="hutchinson")
    spread = found.std().item()
    assert spread > 0.01
    assert found.mean().item() == pytest.approx(expected, abs=4.0 * spread / math.sqrt(20_000))
    more = log_volume(refiner, target, many, 2, method="hutchinson", n_probes=4)
    assert more.std().item() == pytest.approx(0.5 * spread, rel=0.05)
    assert more.mean().item() == pytest.approx(expected, abs=2.0 * spread / math.sqrt(20_000))


def test_hutchinson_tends_to_exact_with_short_steps():
    target, x = Target(flat, velocity=network(3)), points(n=1, batch=2000)
    gaps = []
    for n_steps in (2, 8):
        th.manual_seed(0)
        sums, exact = (log_volume(Flow("euler"), target, x, n_steps, **kw) for kw in (dict(method="hutchinson"), {}))
        gaps.append((sums - exact).mean().abs().item())
    assert gaps[0] > 3.0 * gaps[1] and gaps[1] < 0.1


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("method", ["exact", "learned"])
def test_a_linear_mean_flow_has_the_trace_for_its_volume(method, n_steps):
    """``det exp(A) = exp(tr A)``, and the mean divergence of ``A x + b`` is ``tr A`` everywhere."""
    target = Target(
        flat,
        average_velocity=linear_average,
        average_divergence=lambda x, t, r: MATRIX.trace().expand(x.shape[:2]),
    )
    found = log_volume(MeanFlow(), target, points(), n_steps, method=method)
    th.testing.assert_close(found, MATRIX.trace().expand(3, 1))


def test_learned_asks_for_each_part_of_the_way():
    asked = []

    def divergence(x, t, r):
        asked.append((t[0, 0].item(), r[0, 0].item()))
        return t + 10.0 * r

    target = Target(flat, average_velocity=linear_average, average_divergence=divergence)
    found = log_volume(MeanFlow(), target, points(), 2, method="learned")
    assert asked == [(0.0, 0.5), (0.5, 1.0)]
    th.testing.assert_close(found, th.full((3, 1), 0.5 * 5.0 + 0.5 * 10.5, dtype=th.float64))


def test_hutchinson_of_a_mean_flow_is_the_divergence_of_its_average_velocity():
    target = Target(flat, average_velocity=linear_average)
    found = log_volume(MeanFlow(), target, points(batch=20_000, n=1), 1, method="hutchinson")
    # (exp(A) - I): the first order, which is why one step is too long for it
    expected = (th.linalg.matrix_exp(MATRIX) - th.eye(2)).trace().item()
    assert found.mean().item() == pytest.approx(expected, abs=4.0 * found.std().item() / math.sqrt(20_000) + 1e-9)
    assert abs(expected - MATRIX.trace().item()) > 0.02


@pytest.mark.parametrize("method, tolerance", [("exact", 0.04), ("hutchinson", 0.15)])
@pytest.mark.parametrize("dimension", [1, 2])
def test_a_taught_flow_has_the_entropy_of_its_draws(method, tolerance, dimension):
    policy = Setting(refinement_of("flow"), dimension, taught_head("flow", dimension))
    th.manual_seed(0)
    truth = knn_entropy_on_box(policy.latent(20_000))
    found, _ = policy.estimate(DivergenceEntropy(method), 20_000, 5000)
    assert found == pytest.approx(truth, abs=tolerance)


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        (dict(method="trace"), ValueError, r"method must be one of \['exact', 'hutchinson', 'learned'\], got 'trace'"),
        (dict(method=1), ValueError, "method must be one of"),
        (dict(n_probes=2), ValueError, "n_probes is used by method='hutchinson' only, got 2 with 'exact'"),
        (dict(method="hutchinson", n_probes=0), ValueError, "n_probes must be at least 1, got 0"),
        (dict(method="hutchinson", n_probes=1.0), TypeError, "n_probes must be an integer, got 1.0"),
        (dict(n_chains=0), ValueError, "n_chains must be at least 1, got 0"),
        (dict(n_chains=True), TypeError, "n_chains must be an integer, got True"),
    ],
)
def test_bad_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        DivergenceEntropy(**kwargs)
