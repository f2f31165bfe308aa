import ast
import pathlib

import pytest
import torch as th
from torch import nn

import sb3_energy
from sb3_energy.autodiff import directional_derivative, energy_and_grad, hessian_trace, jacobian


def network():
    th.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def energy_of(net):
    return lambda x: net(x).squeeze(-1)


def points(*shape, seed=1):
    return th.randn(*shape, dtype=th.float64, generator=th.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 1, 3), (4, 1, 3), (2, 5, 3), (2, 5, 4, 3)])
def test_gradient_of_a_quadratic(shape):
    scale = th.arange(1.0, 4.0, dtype=th.float64)
    x = points(*shape)
    energies, gradients = energy_and_grad(lambda y: (0.5 * scale * y.square()).flatten(2).sum(-1), x)
    th.testing.assert_close(gradients, scale * x, rtol=1e-14, atol=0)
    assert energies.shape == shape[:2]


def test_gradient_agrees_with_finite_differences():
    net, x, h = network(), points(2, 4, 3), 1e-6
    gradients = energy_and_grad(energy_of(net), x)[1]
    with th.no_grad():
        for j in range(3):
            shift = h * th.eye(3, dtype=th.float64)[j]
            difference = (energy_of(net)(x + shift) - energy_of(net)(x - shift)) / (2 * h)
            th.testing.assert_close(gradients[..., j], difference, rtol=0, atol=1e-8)


def test_neither_parameters_nor_particles_are_touched():
    net, x = network(), points(2, 4, 3).requires_grad_(True)
    for parameter in net.parameters():
        parameter.grad = th.ones_like(parameter)
    energies, gradients = energy_and_grad(energy_of(net), x)
    assert not energies.requires_grad and not gradients.requires_grad
    assert x.grad is None
    assert all(th.equal(p.grad, th.ones_like(p)) for p in net.parameters())


def test_works_without_grad_and_leaves_the_mode_alone():
    net, x = network(), points(2, 4, 3)
    expected = energy_and_grad(energy_of(net), x)
    with th.no_grad():
        result = energy_and_grad(energy_of(net), x)
        assert not th.is_grad_enabled()
    assert all(th.equal(a, b) for a, b in zip(result, expected, strict=True))
    assert th.is_grad_enabled()


def test_an_energy_that_does_not_ask_the_particles_has_gradient_zero():
    x = points(2, 4, 3)
    energies, gradients = energy_and_grad(lambda y: th.zeros(y.shape[:2], dtype=y.dtype), x)
    assert th.equal(gradients, th.zeros_like(x)) and energies.shape == (2, 4)


def test_an_energy_of_parameters_alone_has_gradient_zero():
    bias = nn.Parameter(th.ones(2, 4, dtype=th.float64))
    energies, gradients = energy_and_grad(lambda y: bias * 2.0, points(2, 4, 3))
    assert th.equal(gradients, th.zeros(2, 4, 3, dtype=th.float64)) and not energies.requires_grad


def test_features_that_carry_a_graph_keep_it():
    features = points(2, 1, 3).requires_grad_(True)
    squares = features.square()  # backward needs what autograd saved here
    for _ in range(2):
        energy_and_grad(lambda y: (squares * y.square()).sum(-1), points(2, 4, 3))
    squares.sum().backward()
    th.testing.assert_close(features.grad, 2.0 * features.detach())


def test_create_graph_differentiates_again():
    net, x = network(), points(2, 4, 3).requires_grad_(True)
    energies, gradients = energy_and_grad(energy_of(net), x, create_graph=True)
    assert energies.requires_grad and gradients.requires_grad
    assert th.autograd.gradcheck(lambda y: energy_and_grad(energy_of(net), y, create_graph=True), (x,))
    penalty = gradients.square().sum()
    assert all(g is not None for g in th.autograd.grad(penalty, [net[0].weight, net[2].weight]))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_one_bad_energy_does_not_spoil_the_others(value):
    x = points(1, 3, 2)

    def energy(y):
        bad = th.zeros(y.shape[:2], dtype=y.dtype)
        bad[0, 1] = value
        return 0.5 * y.square().sum(-1) + bad

    energies, gradients = energy_and_grad(energy, x)
    th.testing.assert_close(gradients[0, [0, 2]], x[0, [0, 2]])
    assert not th.isfinite(energies[0, 1])


def field(n=3):
    th.manual_seed(0)
    return nn.Sequential(nn.Linear(n, 8), nn.Tanh(), nn.Linear(8, n)).double()


def test_the_derivative_along_a_direction_is_autograd_s():
    net, x, t, v, w = field(), points(2, 4, 3), points(2, 4, seed=2), points(2, 4, 3, seed=3), points(2, 4, seed=4)

    def fn(x, t):
        return net(x) * th.sin(t).unsqueeze(-1)

    found = directional_derivative(fn, (x, t), (v, w))
    expected = th.autograd.functional.jvp(fn, (x, t), (v, w))[1]
    th.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_jacobian_is_autograd_s():
    net, x = field(), points(2, 4, 3)
    found = jacobian(net, x)
    for b in range(2):
        for k in range(4):
            th.testing.assert_close(found[b, k], th.autograd.functional.jacobian(net, x[b, k]), rtol=1e-10, atol=1e-12)


def test_the_jacobian_of_plans_has_a_row_for_each_result():
    matrix = points(6, 6, seed=5)
    found = jacobian(lambda x: (x.flatten(2) @ matrix.T).reshape(x.shape), points(2, 4, 2, 3))
    th.testing.assert_close(found, matrix.expand(2, 4, 6, 6))
    assert th.equal(jacobian(lambda x: th.ones_like(x.detach()), points(2, 4, 3)), th.zeros(2, 4, 3, 3).double())


def test_the_trace_of_the_hessian_is_autograd_s():
    net, x, z = network(), points(2, 4, 3), points(2, 4, 3, seed=6)
    found = hessian_trace(energy_of(net), x, z)
    basis = sum(hessian_trace(energy_of(net), x, th.eye(3).double()[j].expand_as(x)) for j in range(3))
    for b in range(2):
        for k in range(4):
            hessian = th.autograd.functional.hessian(lambda y: net(y).squeeze(-1), x[b, k])
            th.testing.assert_close(found[b, k], z[b, k] @ hessian @ z[b, k], rtol=1e-9, atol=1e-11)
            th.testing.assert_close(basis[b, k], hessian.trace(), rtol=1e-9, atol=1e-11)


def test_the_trace_where_there_is_none():
    x = points(2, 4, 3)
    assert th.equal(hessian_trace(lambda y: y.sum(-1), x, x), th.zeros(2, 4).double())
    assert th.equal(hessian_trace(lambda y: th.zeros(y.shape[:2]).double(), x, x), th.zeros(2, 4).double())


@pytest.mark.parametrize("grad_enabled", [True, False])
def test_derivatives_leave_no_graph_no_gradient_and_the_mode(grad_enabled):
    vectors, scalars, x = field(), network(), points(2, 4, 3).requires_grad_(True)
    parameters = [*vectors.parameters(), *scalars.parameters()]
    for parameter in parameters:
        parameter.grad = th.ones_like(parameter)
    z = points(2, 4, 3, seed=6)
    with th.set_grad_enabled(grad_enabled):
        found = [directional_derivative(vectors, (x,), (z,)), jacobian(vectors, x), hessian_trace(energy_of(scalars), x, z)]
        assert th.is_grad_enabled() == grad_enabled
    th.testing.assert_close(found[0], (found[1] @ z.unsqueeze(-1)).squeeze(-1))
    assert all(not one.requires_grad and one.abs().sum() > 0.0 for one in found)
    assert x.grad is None and all(th.equal(p.grad, th.ones_like(p)) for p in parameters)


def test_derivatives_of_features_that_carry_a_graph_leave_it_whole():
    features, z = points(2, 1, 3).requires_grad_(True), points(2, 4, 3, seed=6)
    squares = features.square()
    for _ in range(2):
        directional_derivative(lambda y: squares * y.square(), (z,), (z,))
        jacobian(lambda y: squares * y.square(), z)
        hessian_trace(lambda y: (squares * y.pow(3)).sum(-1), z, z)
    assert features.grad is None
    squares.sum().backward()
    th.testing.assert_close(features.grad, 2.0 * features.detach())


def test_autograd_is_called_here_alone():
    root = pathlib.Path(sb3_energy.__file__).parent
    calls = {
        path.name
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and (ast.unparse(node).endswith("autograd.grad") or ast.unparse(node).startswith(("th.func.", "torch.func.")))
    }
    assert calls == {"autodiff.py"}
