"""Networks on numpy give torch's outputs and gradients, and see changes of the parameters."""

import copy

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.utils import polyak_update
from torch import nn

from sb3_energy.networks import BACKBONES, ScaledLinear, ValueScale, make_backbone, rescale, set_scale
from sb3_energy.policies.fast_predict.numpy_networks import NumpyNetwork
from tests.batches import with_statistics

N_FEATURES, N_ACTIONS = 7, 3
ACTIVATIONS = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}
SHAPES = [(1, 1), (1, 3), (3, 1), (2, 5), (5, 2)]  # of one row, of few and of many


def members(n=2, activation=nn.ReLU, backbone="plain", n_outputs=2):
    networks = []
    for _ in range(n):
        trunk, width = make_backbone(backbone, N_FEATURES + N_ACTIONS, [16, 16], activation)
        networks.append(nn.Sequential(*trunk, nn.Linear(width, n_outputs)))
    for network in map(with_statistics, networks):
        for parameter in network.parameters():  # no bias is zero and no weight of a layer norm is one
            nn.init.normal_(parameter, mean=0.1, std=0.4)
    return networks


def difference(ours, torchs):
    """Largest one, in units of the largest number (of 1, where all are smaller: what is left of a difference)."""
    torchs = torchs.detach().numpy()
    return np.abs(ours.reshape(torchs.shape) - torchs).max() / max(np.abs(torchs).max(), 1.0)


def differences(network, networks, shape=(2, 5)):
    """Of the outputs, and of their gradients with respect to the actions."""
    th.manual_seed(3)
    features, actions = th.randn(shape[0], N_FEATURES), th.randn(*shape, N_ACTIONS, requires_grad=True)
    inputs = th.cat([features.unsqueeze(1).expand(-1, shape[1], -1), actions], dim=-1)
    outputs = th.stack([member(inputs) for member in networks])
    cotangents = th.randn_like(outputs)
    (gradients,) = th.autograd.grad((outputs * cotangents).sum(), actions)
    ours, pull = network.bind(features.numpy())(actions.detach().numpy())
    pulled = pull(cotangents.numpy().reshape(len(networks), -1, outputs.shape[-1]))
    return difference(ours, outputs), difference(pulled, gradients)


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("n_members", [1, 2])
def test_outputs_and_gradients_are_torchs(n_members, activation, backbone):
    th.manual_seed(0)
    networks = members(n_members, ACTIVATIONS[activation], backbone)
    network = NumpyNetwork.of(*networks, n_actions=N_ACTIONS)
    for shape in SHAPES:
        assert max(differences(network, networks, shape)) < 2e-6
    inputs = th.randn(4, N_FEATURES + N_ACTIONS)
    whole = NumpyNetwork.of(*networks)(inputs.numpy())
    assert difference(whole, th.stack([member(inputs) for member in networks])) < 2e-6


@pytest.mark.parametrize("layer", [nn.Linear(16, 16, bias=False), nn.LayerNorm(16, elementwise_affine=False)], ids=["l", "n"])
def test_layers_without_parameters(layer):
    networks = [nn.Sequential(nn.Linear(10, 16, bias=False), layer, nn.Linear(16, 2)) for _ in range(2)]
    assert max(differences(NumpyNetwork.of(*networks, n_actions=N_ACTIONS), networks)) < 2e-6


def with_scale(networks, scales):
    for network, scale in zip(networks, scales, strict=True):
        network[-1] = ScaledLinear(network[-1], scale)
    return networks


@pytest.mark.parametrize("shape", SHAPES)
def test_scales_of_values(shape):
    """One of all members, or of each its own; they may be changed in place."""
    shared = ValueScale()
    for scales in ([shared, shared], [ValueScale(), ValueScale()]):
        networks = with_scale(members(), scales)
        network = NumpyNetwork.of(*networks, n_actions=N_ACTIONS)
        set_scale(scales[:1], 7.0)
        set_scale(scales[1:], 3.0)
        assert max(differences(network, networks, shape)) < 2e-6
        rescale([*networks, *scales], 0.2)
        assert max(differences(network, networks, shape)) < 2e-6
    networks[0][-1].scale.sigma = networks[0][-1].scale.sigma.double()
    assert NumpyNetwork.of(*networks, n_actions=N_ACTIONS) is None


def step_of_an_optimiser(networks):
    optimizer = th.optim.Adam([p for n in networks for p in n.parameters()], lr=0.1)
    sum(n(th.ones(1, 10)).sum() for n in networks).backward()
    optimizer.step()


def polyak(networks):
    for network in networks:
        polyak_update(members(1)[0].parameters(), network.parameters(), 0.5)


def load(networks):
    for network in networks:
        network.load_state_dict(members(1)[0].state_dict())


@pytest.mark.parametrize("change", [step_of_an_optimiser, polyak, load])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5)])
def test_changes_in_place_are_seen(change, shape):
    networks = members()
    network = NumpyNetwork.of(*networks, n_actions=N_ACTIONS)
    differences(network, networks, shape)
    inputs = np.ones((1, N_FEATURES + N_ACTIONS), np.float32)
    before = network(inputs)
    change(networks)
    assert not np.allclose(before, network(inputs))
    assert max(differences(network, networks, shape)) < 2e-6


class Doubled(nn.Linear):
    def forward(self, x):
        return 2.0 * super().forward(x)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(),
        nn.Sequential(nn.ReLU(), nn.Linear(3, 3)),
        nn.Sequential(Doubled(3, 3)),
        nn.Sequential(nn.Linear(3, 3), nn.Dropout()),
        nn.Sequential(nn.Linear(3, 3), nn.GELU()),
        nn.Sequential(nn.Linear(3, 3), nn.Softplus()),
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)),
        nn.Sequential(nn.Linear(3, 3)).double(),
        nn.Sequential(nn.Linear(3, 3, device="meta")),
        nn.ModuleList([nn.Linear(3, 3)]),
    ],
    ids=lambda network: str(network).replace("\n", ""),
)
def test_what_is_not_known_is_refused(network):
    assert NumpyNetwork.of(network) is None


def test_members_that_differ_are_refused():
    assert NumpyNetwork.of(nn.Linear(3, 3), nn.Linear(3, 4)) is None
    assert NumpyNetwork.of(nn.Sequential(nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 3), nn.ReLU())) is None
    assert NumpyNetwork.of(*(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3, eps)) for eps in (1e-5, 1e-3))) is None


def test_a_replaced_forward_is_refused():
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: x
    assert NumpyNetwork.of(layer) is None


def test_a_copy_of_the_modules_has_other_memory():
    networks = members()
    copies = copy.deepcopy(networks)
    network = NumpyNetwork.of(*copies, n_actions=N_ACTIONS)
    with th.no_grad():
        for parameter in networks[0].parameters():
            parameter.zero_()
    assert max(differences(network, copies)) < 2e-6
