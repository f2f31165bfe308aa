import copy
import pickle

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN, create_mlp
from stable_baselines3.common.utils import get_parameters_by_name, polyak_update
from torch import nn

from sb3_energy.networks import BACKBONES, RunningNorm, default_activation, make_backbone, make_normalizer

RESIDUAL = ["simba", "bro", "flash"]
FLAT = spaces.Box(-1, 1, (5,))


@pytest.mark.parametrize("net_arch", [[], [32], [64, 32, 16]])
def test_plain_is_create_mlp(net_arch):
    th.manual_seed(3)
    expected = nn.Sequential(*create_mlp(7, -1, net_arch, nn.Tanh))
    after_expected = th.rand(1)
    th.manual_seed(3)
    trunk, _ = make_backbone("plain", 7, net_arch, nn.Tanh)
    assert th.equal(th.rand(1), after_expected)
    assert list(trunk.state_dict()) == list(expected.state_dict())
    x = th.randn(4, 7)
    assert th.equal(trunk(x), expected(x))


@pytest.mark.parametrize("name", BACKBONES)
def test_shapes_and_gradients(name):
    trunk, output_dim = make_backbone(name, 7, [32, 32], default_activation(name))
    x = th.randn(4, 3, 7, requires_grad=True)
    y = trunk(x)
    assert y.shape == (4, 3, output_dim) == (4, 3, 32)
    # A weighted sum: the sum of a normalised vector is constant
    (y * th.randn(32)).sum().backward()
    assert x.grad.abs().amin(dim=-1).min() > 0
    for parameter_name, parameter in trunk.named_parameters():
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", ["plain", "layer_norm"])
def test_no_layers_is_the_identity(name):
    trunk, output_dim = make_backbone(name, 7, [], nn.ReLU)
    x = th.randn(4, 7)
    assert output_dim == 7 and th.equal(trunk(x), x)


def test_layer_norm_formula():
    trunk, _ = make_backbone("layer_norm", 5, [16, 8], nn.SiLU)
    x = expected = th.randn(4, 5)
    linear_layers = [module for module in trunk if isinstance(module, nn.Linear)]
    for linear in linear_layers:
        expected = nn.functional.silu(nn.functional.layer_norm(linear(expected), (linear.out_features,)))
    assert len(linear_layers) == 2
    assert th.allclose(trunk(x), expected, atol=1e-6)


def test_simba_formula():
    trunk, _ = make_backbone("simba", 5, [16, 16], nn.ReLU)
    linear_layers = [module for module in trunk.modules() if isinstance(module, nn.Linear)]
    assert [layer.out_features for layer in linear_layers] == [16, 64, 16, 64, 16]
    x = th.randn(4, 5)
    expected = linear_layers[0](x)
    for wide, narrow in (linear_layers[1:3], linear_layers[3:5]):
        expected = expected + narrow(nn.functional.relu(wide(nn.functional.layer_norm(expected, (16,)))))
    assert th.allclose(trunk(x), nn.functional.layer_norm(expected, (16,)), atol=1e-6)


def test_bro_formula():
    trunk, _ = make_backbone("bro", 5, [16, 16], nn.ReLU)
    linear_layers = [module for module in trunk.modules() if isinstance(module, nn.Linear)]
    x = th.randn(4, 5)
    expected = nn.functional.relu(nn.functional.layer_norm(linear_layers[0](x), (16,)))
    for first, second in (linear_layers[1:3], linear_layers[3:5]):
        hidden = nn.functional.relu(nn.functional.layer_norm(first(expected), (16,)))
        expected = expected + nn.functional.layer_norm(second(hidden), (16,))
    assert len(linear_layers) == 5
    assert th.allclose(trunk(x), expected, atol=1e-6)


def test_flash_formula():
    trunk, _ = make_backbone("flash", 5, [16, 16], nn.ReLU)
    linear_layers = [module for module in trunk.modules() if isinstance(module, nn.Linear)]
    assert [layer.out_features for layer in linear_layers] == [16, 64, 16, 64, 16]
    assert all(layer.bias is None for layer in linear_layers)

    def normed(x):
        return (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()

    x = th.randn(40, 5)
    expected = normed(x) @ linear_layers[0].weight.T
    for wide, narrow in (linear_layers[1:3], linear_layers[3:5]):
        hidden = normed(expected @ wide.weight.T).relu()
        expected = expected + normed(hidden @ narrow.weight.T).relu()
    expected = expected / (expected.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
    assert th.allclose(trunk(x), expected, atol=1e-5)


def test_initialisation():
    trunk, _ = make_backbone("simba", 8, [64, 64], nn.ReLU)
    first, wide = trunk[0], trunk[1].layers[1]
    assert th.allclose(first.weight.T @ first.weight, th.eye(8), atol=1e-5)
    assert wide.weight.var().item() == pytest.approx(2 / 64, rel=0.1)
    trunk, _ = make_backbone("bro", 8, [64, 64], nn.ReLU)
    assert th.allclose(trunk[0].weight.T @ trunk[0].weight, 2 * th.eye(8), atol=1e-5)
    assert all((module.bias == 0).all() for module in trunk.modules() if isinstance(module, nn.Linear))
    trunk, _ = make_backbone("flash", 8, [64, 64], nn.ReLU)
    wide, narrow = trunk[2].layers[0].weight, trunk[2].layers[3].weight
    assert th.allclose(narrow @ narrow.T, th.eye(64), atol=1e-5)
    assert th.allclose(wide.T @ wide, 4.0 * th.eye(64), atol=1.0), "orthogonal, then of rows of length 1"
    assert th.allclose(wide.norm(dim=1), th.ones(256))


@pytest.mark.parametrize("name", RESIDUAL)
@pytest.mark.parametrize("net_arch", [[], [64, 32]])
def test_residual_blocks_need_one_width(name, net_arch):
    with pytest.raises(ValueError, match=rf"net_arch of backbone '{name}' must be the same width .* got \[.*\]"):
        make_backbone(name, 7, net_arch, nn.ReLU)


@pytest.mark.parametrize("name", ["resnet", None, ["plain"]])
def test_unknown_backbone(name):
    message = r"backbone must be one of \['bro', 'flash', 'layer_norm', 'plain', 'simba'\], got"
    with pytest.raises(ValueError, match=message):
        make_backbone(name, 7, [32], nn.ReLU)
    with pytest.raises(ValueError, match=message):
        default_activation(name)
    with pytest.raises(ValueError, match=message):
        make_normalizer(name, FlattenExtractor(FLAT), 5)


def test_default_activations():
    assert {name: default_activation(name) for name in BACKBONES} == {
        "plain": nn.ReLU,
        "layer_norm": nn.SiLU,
        "simba": nn.ReLU,
        "bro": nn.ReLU,
        "flash": nn.ReLU,
    }
    assert {default_activation(name, of_critic=True) for name in BACKBONES} == {nn.ReLU}


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_can_be_copied(name):
    trunk, _ = make_backbone(name, 7, [32, 32], nn.ReLU)
    x = th.randn(4, 7)
    for twin in (copy.deepcopy(trunk), pickle.loads(pickle.dumps(trunk))):
        assert th.equal(twin(x), trunk(x))
    assert pickle.loads(pickle.dumps(BACKBONES[name])) == BACKBONES[name]


def test_running_norm_is_numpy_over_all_batches():
    generator = np.random.default_rng(0)
    batches = [generator.normal([5.0, -300.0, 0.01], [2.0, 30.0, 0.001], (n, 3)) for n in (1, 7, 256, 2, 1000)]
    norm = RunningNorm(3)
    for batch in batches:
        norm.update(th.as_tensor(batch, dtype=th.float32))
    everything = np.concatenate(batches)
    np.testing.assert_allclose(norm.running_mean, everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.running_var, everything.var(0), rtol=1e-3)
    assert norm.running_count == len(everything)
    normalised = norm(th.as_tensor(everything, dtype=th.float32))
    assert normalised.mean(0).abs().max() < 1e-2
    # The third feature's variance is 1e-6, so eps = 1e-8 shows
    np.testing.assert_allclose(normalised.std(0, correction=0), 1.0, atol=1e-2)


def test_running_norm_before_the_first_update_is_the_identity():
    x = 100 * th.randn(50, 3)
    assert th.equal(RunningNorm(3)(x), x)


def test_running_norm_survives_constant_features():
    norm = RunningNorm(2)
    norm.update(th.full((10, 2), 3.0))
    assert th.equal(norm(th.full((4, 2), 3.0)), th.zeros(4, 2))


def test_running_norm_forward_never_updates():
    norm = RunningNorm(3).train()
    norm.update(th.randn(10, 3))
    before = copy.deepcopy(norm.state_dict())
    norm(th.randn(10, 3))
    assert all(th.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_running_norm_keeps_the_tensors_that_sb3_refers_to():
    norm, target = RunningNorm(3), RunningNorm(3)
    statistics = get_parameters_by_name(norm, ["running_"])
    target_statistics = get_parameters_by_name(target, ["running_"])
    norm.update(3 * th.randn(10, 3))
    norm.update(3 * th.randn(10, 3))
    polyak_update(statistics, target_statistics, 1.0)
    assert len(statistics) == 3 and target.running_count == 20
    x = th.randn(4, 3)
    assert not th.equal(norm(x), x) and th.equal(norm(x), target(x))
    assert all(value.is_floating_point() for value in statistics)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (4, 2), (4, 5, 3)])
def test_running_norm_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"batch must have shape \(B, 3\) with B > 0, got \("):
        RunningNorm(3).update(th.zeros(shape))


def test_only_simba_on_unlearned_features_is_normalised():
    image = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)
    vectors = CombinedExtractor(spaces.Dict(a=FLAT, b=spaces.Discrete(3)))
    mixed = CombinedExtractor(spaces.Dict(a=FLAT, b=image))
    assert isinstance(make_normalizer("simba", FlattenExtractor(FLAT), 5), RunningNorm)
    assert isinstance(make_normalizer("simba", vectors, 8), RunningNorm)
    assert isinstance(make_normalizer("simba", mixed, mixed.features_dim), nn.Identity)
    assert isinstance(make_normalizer("simba", NatureCNN(image), 512), nn.Identity)
    for name in ("plain", "layer_norm", "bro", "flash"):
        assert isinstance(make_normalizer(name, FlattenExtractor(FLAT), 5), nn.Identity)
