"""The energy's network: gradients by hand are autograd's on every backbone, spectra are bounded."""

import pytest
import torch as th
from torch import nn

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.networks import BACKBONES, EnergyNetwork

B, N, F, A = 3, 5, 4, 2
DOUBLE = th.float64
SUITABLE = sorted(name for name, backbone in BACKBONES.items() if backbone.beside is None)


def make(seed=0, features_dim=F, net_arch=(16, 16), **kwargs):
    th.manual_seed(seed)
    return EnergyNetwork(features_dim, A, list(net_arch), **kwargs).double()


def inputs(features_dim=F, n=N):
    generator = th.Generator().manual_seed(1)
    return (
        th.randn(B, features_dim, dtype=DOUBLE, generator=generator),
        th.randn(B, n, A, dtype=DOUBLE, generator=generator),
    )


@pytest.mark.parametrize("n", [1, N])
@pytest.mark.parametrize("features_dim", [F, 0])
@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize("activation_fn", [nn.ReLU, nn.SiLU])
@pytest.mark.parametrize("backbone", SUITABLE)
def test_energies_and_gradients_are_those_of_autograd(backbone, activation_fn, spectral_norm, features_dim, n):
    network = make(
        features_dim=features_dim, backbone=backbone, activation_fn=activation_fn, spectral_norm=spectral_norm
    ).eval()
    features, actions = inputs(features_dim, n)
    joined = th.cat([features.unsqueeze(1).expand(-1, n, -1), actions], dim=-1)
    points = joined.clone().requires_grad_()
    expected = network.network(points).squeeze(-1)
    (slopes,) = th.autograd.grad(expected.sum(), points)
    with th.no_grad():
        energies, gradients = energy_and_grad(network.bind(features), actions)
        alone = network.bind(features)(actions)
    assert energies.shape == (B, n) and gradients.abs().max() > 1e-4
    for found in (energies, alone, network(features, actions).detach()):
        th.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-12)
    th.testing.assert_close(gradients, slopes[..., features_dim:], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backbone", SUITABLE)
def test_known_layers_need_no_autograd(monkeypatch, backbone):
    network, (features, actions) = make(backbone=backbone), inputs()
    with th.no_grad():
        monkeypatch.setattr(th.autograd, "grad", None)
        energy_and_grad(network.bind(features), actions)
        network.by_hand = False
        with pytest.raises(TypeError):
            energy_and_grad(network.bind(features), actions)


def test_what_a_user_has_changed_is_autograd_s():
    class Doubled(EnergyNetwork):
        def forward(self, features, actions):
            return 2.0 * super().forward(features, actions)

    th.manual_seed(0)
    network = Doubled(F, A, [16, 16]).double()
    features, actions = inputs()
    with th.no_grad():
        energies, gradients = energy_and_grad(network.bind(features), actions)
        plain, plain_gradients = energy_and_grad(make().bind(features), actions)
    th.testing.assert_close(energies, 2.0 * plain)
    th.testing.assert_close(gradients, 2.0 * plain_gradients)


def test_who_wants_a_graph_gets_one():
    network, (features, actions) = make(activation_fn=nn.SiLU), inputs()
    gradients = energy_and_grad(network.bind(features), actions, create_graph=True)[1]
    gradients.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in network.named_parameters() if name != "network.4.bias")


@pytest.mark.parametrize("backbone", ["plain", "simba"])
def test_a_normalised_spectrum_bounds_the_weights(backbone):
    network, (features, actions) = make(backbone=backbone, spectral_norm=True), inputs()
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert len(layers) == (3 if backbone == "plain" else 6)
    with th.no_grad():
        for layer in layers:
            layer.parametrizations.weight.original *= 50.0
        for _ in range(100):
            network(features, actions)
        network.eval()
        largest = [th.linalg.matrix_norm(layer.weight, 2).item() for layer in layers]
    assert largest == pytest.approx([1.0] * len(layers), abs=0.02)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    other = make(seed=5, backbone=backbone, spectral_norm=True).eval()
    other.load_state_dict(state)
    th.testing.assert_close(other(features, actions), network(features, actions))


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        (dict(backbone="mlp"), ValueError, "backbone must be one of"),
        (dict(backbone="flash"), ValueError, "must not normalise over batches, got 'flash', .* 'layer_norm'"),
        (dict(backbone="simba", net_arch=(8, 16)), ValueError, "net_arch of backbone 'simba'"),
        (dict(spectral_norm=1), TypeError, "spectral_norm must be True or False, got 1"),
        (dict(depth=3), TypeError, "depth"),
    ],
    ids=str,
)
def test_wrong_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        make(**kwargs)
