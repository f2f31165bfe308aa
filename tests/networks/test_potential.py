"""The potential's network: 0 at first, gradients by hand, no activation whose derivative would teach nothing."""

import pytest
import torch as th
from torch import nn

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.networks import PotentialNetwork
from sb3_energy.networks.potential import SMOOTH_ACTIVATIONS

B, N, F, A = 3, 5, 4, 2
DOUBLE = th.float64


def learned(seed=0, features_dim=F, **kwargs):
    """A potential whose last layer is no longer 0."""
    th.manual_seed(seed)
    network = PotentialNetwork(features_dim, A, [16, 8], **kwargs).double()
    if not kwargs.get("spectral_norm"):
        nn.init.normal_(network.network[-1].weight)
    return network


def inputs(features_dim=F, n=N):
    generator = th.Generator().manual_seed(1)
    return (
        th.randn(B, features_dim, dtype=DOUBLE, generator=generator),
        th.randn(B, n, A, dtype=DOUBLE, generator=generator),
    )


@pytest.mark.parametrize("n", [1, N])
@pytest.mark.parametrize("features_dim", [F, 0])
@pytest.mark.parametrize("norms", [dict(), dict(layer_norm=True), dict(spectral_norm=True)], ids=str)
@pytest.mark.parametrize("activation_fn", SMOOTH_ACTIVATIONS)
def test_gradients_by_hand_are_those_of_autograd(activation_fn, norms, features_dim, n):
    network = learned(features_dim=features_dim, activation_fn=activation_fn, **norms).eval()
    features, actions = inputs(features_dim, n)
    with th.no_grad():
        bound = network.bind(features)
        values, gradients = energy_and_grad(bound, actions)
        alone = bound(actions)
    expected = network(features, actions)
    points = actions.clone().requires_grad_(True)
    (by_autograd,) = th.autograd.grad(network(features, points).sum(), points)
    assert values.shape == (B, n) and gradients.abs().max() > 1e-3
    th.testing.assert_close(values, expected.detach(), rtol=1e-12, atol=1e-12)
    th.testing.assert_close(alone, expected.detach(), rtol=1e-12, atol=1e-12)
    th.testing.assert_close(gradients, by_autograd, rtol=1e-10, atol=1e-12)
    assert not values.requires_grad and not gradients.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("layer_norm", [False, True])
def test_known_layers_need_no_autograd(monkeypatch, layer_norm):
    network = learned(layer_norm=layer_norm)
    features, actions = inputs()
    with th.no_grad():
        monkeypatch.setattr(th.autograd, "grad", None)
        energy_and_grad(network.bind(features), actions)
        network.by_hand = False
        with pytest.raises(TypeError):
            energy_and_grad(network.bind(features), actions)


def test_who_wants_a_graph_gets_one():
    """Of the potential as it is now: the parameters learn by the gradient's derivative."""
    network = learned()
    features, actions = inputs()
    with th.no_grad():
        bound = network.bind(features)
    gradients = energy_and_grad(bound, actions, create_graph=True)[1]
    gradients.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in network.named_parameters() if name != "network.4.bias")


@pytest.mark.parametrize("layer_norm", [False, True])
def test_it_is_zero_at_first(layer_norm):
    features, actions = inputs()
    network = PotentialNetwork(F, A, [16], layer_norm=layer_norm).double()
    values, gradients = energy_and_grad(network.bind(features), actions)
    assert not values.any() and not gradients.any()


def test_a_normalised_spectrum_bounds_the_slope():
    """Of four layers none stretches, and SiLU stretches by 1.1 at the most."""
    network = learned(spectral_norm=True)
    with th.no_grad():
        for layer in network.network:
            if isinstance(layer, nn.Linear):
                layer.parametrizations.weight.original *= 100.0
    features, actions = inputs()
    for _ in range(100):  # while it learns, each look improves the estimate of the largest singular value
        network(features, actions)
    network.eval()
    lengths = energy_and_grad(network.bind(features), 10.0 * actions)[1].norm(dim=-1)
    assert 0.0 < lengths.max() < 1.1**2 * 1.01
    state = {name: value.clone() for name, value in network.state_dict().items()}
    network(features, actions)
    assert all(th.equal(state[name], value) for name, value in network.state_dict().items()), "looking changes nothing now"


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        (dict(net_arch=[]), ValueError, r"net_arch of a potential must be a list of at least one positive integer, got \[\]"),
        (dict(net_arch=[8, 0]), ValueError, r"net_arch of a potential must be .*, got \[8, 0\]"),
        (dict(net_arch=[True]), ValueError, r"net_arch of a potential must be .*, got \[True\]"),
        (dict(net_arch=8), ValueError, "net_arch of a potential must be .*, got 8"),
        (dict(net_arch=dict(pi=[8])), ValueError, "net_arch of a potential must be .*, got {'pi.*"),
        (dict(activation_fn=nn.ReLU), ValueError, r"activation_fn of a potential must be smooth, one of .*'SiLU'.*, got ReLU"),
        (dict(activation_fn="SiLU"), ValueError, "activation_fn of a potential must be smooth, .*, got 'SiLU'"),
        (dict(layer_norm=1), TypeError, "layer_norm must be True or False, got 1"),
        (dict(spectral_norm=None), TypeError, "spectral_norm must be True or False, got None"),
    ],
    ids=str,
)
def test_wrong_arguments(kwargs, error, match):
    with pytest.raises(error, match=f"^{match}$"):
        PotentialNetwork(F, A, **(dict(net_arch=[8]) | kwargs))


def test_a_gain_makes_the_first_layer_steeper_in_the_actions_alone():
    found = []
    for input_gain in (1.0, 4.0):
        th.manual_seed(0)
        found.append(PotentialNetwork(2, 3, [5], input_gain=input_gain).network[0])
    plain, steep = found
    assert th.equal(steep.weight[:, :2], plain.weight[:, :2]), "observations come in their own scale"
    assert th.equal(steep.weight[:, 2:], 4.0 * plain.weight[:, 2:]) and th.equal(steep.bias, 4.0 * plain.bias)
