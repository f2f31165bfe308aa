"""Derivatives by hand against autograd's, for each backbone and each activation."""

import pytest
import torch as th
from torch import nn

from sb3_energy.networks import BACKBONES, BatchNorm, CategoricalMean, Stack, make_backbone
from sb3_energy.networks.by_hand.layers import RULES
from tests.batches import with_statistics

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.Mish, nn.Identity]
R, D, N_OUTPUTS = 12, 7, 3


def test_every_rule_is_tested():
    layers = {
        nn.Linear,
        nn.LayerNorm,
        BatchNorm,
        *(type(layer) for name in BACKBONES for layer in make_backbone(name, D, [8], nn.ReLU)[0]),
    }
    assert {rule.__name__ for rule in RULES} == {layer.__name__ for layer in [*ACTIVATIONS, *layers]} | {
        *("ParallelLinear", "Affine", "AffineBlock", "ScaledLinear", "ValueScale", "CategoricalMean")
    }


def network(backbone, activation, dtype=th.float64):
    th.manual_seed(0)
    trunk, width = make_backbone(backbone, D, [16, 16], activation)
    for parameter in trunk.parameters():  # norms begin with weights of 1 and biases of 0, which would hide mistakes
        parameter.data += 0.1 * th.randn_like(parameter)
    return with_statistics(nn.Sequential(*trunk, nn.Linear(width, N_OUTPUTS)).to(dtype))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_gradients(backbone, activation):
    net = network(backbone, activation)
    stack = Stack.of(net)
    x, weights = th.randn(R, D, dtype=th.float64, requires_grad=True), th.randn(R, N_OUTPUTS, dtype=th.float64)
    inputs = [x, *net.parameters()]
    expected = th.autograd.grad((net(x) * weights).sum(), inputs)
    th.testing.assert_close(stack(x), net(x), rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(th.autograd.grad((stack(x) * weights).sum(), inputs), expected, strict=True):
        th.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    tape = []
    with th.no_grad():
        stack.forward(x, tape)
        th.testing.assert_close(stack.backward(weights, tape), expected[0], rtol=1e-9, atol=1e-12)
    assert not tape, "what was kept on the way forward was needed on the way back"


def test_the_mean_of_bins():
    net = nn.Sequential(nn.Linear(D, 9), CategoricalMean(-2.0, 5.0, 9)).double()
    x, weights = th.randn(R, D, dtype=th.float64, requires_grad=True), th.randn(R, 1, dtype=th.float64)
    inputs = [x, *net.parameters()]
    theirs = th.autograd.grad((net(x) * weights).sum(), inputs)
    for ours, expected in zip(th.autograd.grad((Stack.of(net)(x) * weights).sum(), inputs), theirs, strict=True):
        th.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_gradients_in_32_bits(backbone):
    net = network(backbone, nn.SiLU, th.float32)
    x = th.randn(R, D, requires_grad=True)
    (expected,) = th.autograd.grad(net(x).sum(), x)
    (ours,) = th.autograd.grad(Stack.of(net)(x).sum(), x)
    assert (ours - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_rows_without_a_graph(activation):
    net = network("layer_norm", activation)
    heads = [nn.Linear(N_OUTPUTS, 2).double(), nn.Linear(N_OUTPUTS, 3).double()]
    stack, x = Stack.of(net, *heads), th.randn(R, D, dtype=th.float64, requires_grad=True)
    wanted, rest = stack.split(x, 5)
    assert not rest.requires_grad
    expected = th.cat([head(net(x)) for head in heads], dim=1)
    th.testing.assert_close(th.cat([wanted, rest]), expected)
    inputs = [x, *net.parameters(), *(parameter for head in heads for parameter in head.parameters())]
    weights = th.randn(5, 5, dtype=th.float64)
    ours = th.autograd.grad((wanted * weights).sum(), inputs)
    for mine, theirs in zip(ours, th.autograd.grad((expected[:5] * weights).sum(), inputs), strict=True):
        th.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_layers_without_bias_or_weights():
    net = nn.Sequential(nn.Linear(D, 8, bias=False), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 1, bias=False))
    x = th.randn(R, D, requires_grad=True)
    inputs = [x, *net.parameters()]
    theirs = th.autograd.grad(net(x).sum(), inputs)
    for ours, expected in zip(th.autograd.grad(Stack.of(net)(x).sum(), inputs), theirs, strict=True):
        th.testing.assert_close(ours, expected)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2.0 * super().forward(x)


def hooked():
    layer = nn.Linear(D, D)
    layer.register_forward_hook(lambda module, inputs, output: output + 1.0)
    return layer


@pytest.mark.parametrize(
    "layer",
    [Doubled(D, D), nn.Dropout(), nn.BatchNorm1d(D), BatchNorm(D), nn.ReLU(inplace=True), nn.PReLU(), hooked(),
     nn.utils.parametrizations.spectral_norm(nn.Linear(D, D))],
    ids=["subclass", "dropout", "batch norm", "learning", "in place", "unknown", "hook", "parametrised"],
)  # fmt: skip
def test_unknown_layers_are_left_to_autograd(layer):
    assert Stack.of(nn.Sequential(nn.Linear(D, D), layer, nn.Linear(D, 1))) is None


def test_what_is_given_stays_as_it_is():
    assert Stack.of(nn.Sequential(nn.ReLU(), nn.Linear(D, 1))) is None, "it would work in place on what it is given"
    assert Stack.of(nn.Linear(D, 1)) is None
    stack, x = Stack.of(nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.ReLU(), nn.ReLU(), nn.Linear(D, 1))), th.randn(R, D)
    before = x.clone()
    (ours,) = th.autograd.grad(stack(points := x.requires_grad_(True)).sum(), points)
    (theirs,) = th.autograd.grad(nn.Sequential(*stack.layers)(points).sum(), points)
    th.testing.assert_close(ours, theirs)
    assert th.equal(x.detach(), before)


def test_a_changed_parameter_is_noticed():
    net = network("plain", nn.ReLU)
    loss = Stack.of(net)(th.randn(R, D, dtype=th.float64)).sum()
    with th.no_grad():
        net[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_second_derivatives_by_mistake():
    x = th.randn(R, D, dtype=th.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="by_hand=False"):
        th.autograd.grad(Stack.of(network("plain", nn.SiLU))(x).sum(), x, create_graph=True)


def test_autocast_and_exports_see_plain_layers():
    net, x = network("plain", nn.ReLU, th.float32), th.randn(R, D)
    with th.autocast("cpu", dtype=th.bfloat16):
        assert Stack.of(net) is None
    found = []
    th.jit.trace(lambda x: (found.append(Stack.of(net)), 2.0 * x)[1], x, check_trace=False)
    assert found and set(found) == {None}
    assert Stack.of(net) is not None
