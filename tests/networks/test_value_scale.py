"""The scale of values: a factor whose change preserves values, by autograd, by hand and in files."""

import copy

import pytest
import torch as th
from torch import nn

from sb3_energy.networks import ScaledLinear, Stack, ValueScale, make_backbone, rescale, scaled_heads, set_scale
from sb3_energy.networks.value_scale import ScaledValues


class Critic(ScaledValues):
    """Two networks of several outputs."""

    def __init__(self, scale=True, n_outputs=3, activation=nn.SiLU, backbone="layer_norm"):
        super().__init__()
        self.value_scale = ValueScale() if scale else None
        for name in ("one", "two"):
            trunk, width = make_backbone(backbone, 4, [16, 16], activation)
            setattr(self, name, self.with_scale(nn.Sequential(*trunk, nn.Linear(width, n_outputs))))

    def forward(self, x):
        return th.stack([self.one(x), self.two(x)])


@pytest.fixture
def critic():
    th.manual_seed(0)
    return Critic()


INPUTS = th.randn(50, 4, generator=th.Generator().manual_seed(1))


def difference(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def test_values_are_sigma_times_the_outputs_of_the_head(critic):
    before = critic(INPUTS)
    set_scale([critic], 7.5)
    assert th.equal(critic(INPUTS), before * 7.5) and bool(critic.value_scale.is_set)
    assert critic.one[-1].scale is critic.two[-1].scale is critic.value_scale
    assert th.equal(critic.scaled(INPUTS), INPUTS * 7.5) and th.equal(critic.unscaled(INPUTS), INPUTS / 7.5)


@pytest.mark.parametrize("n_outputs", [1, 25])
def test_a_change_preserves_values(n_outputs):
    th.manual_seed(0)
    critic = Critic(n_outputs=n_outputs)
    target = copy.deepcopy(critic)
    assert target.value_scale is not critic.value_scale
    set_scale([critic, target], 3.0)
    before, weights = critic(INPUTS), critic.one[-1].weight.clone()
    for sigma in (3.7, 1e-4, 2e5, 17.0):
        rescale([critic, target], sigma)
        assert critic.value_scale.sigma == target.value_scale.sigma == th.tensor(sigma)
        assert difference(critic(INPUTS), before) < 1e-6 and difference(target(INPUTS), before) < 1e-6
    th.testing.assert_close(critic.one[-1].weight, weights * 3.0 / 17.0)
    set_scale([critic], 34.0)
    assert difference(critic(INPUTS), 2.0 * before) < 1e-6, "preserving is not what happens anyway"


def test_each_network_s_own_scale_is_preserved(critic):
    """A target network may have been loaded from elsewhere."""
    target = copy.deepcopy(critic)
    set_scale([critic], 3.0)
    set_scale([target], 5.0)
    before = critic(INPUTS), target(INPUTS)
    rescale([critic, target], 4.0)
    for found, expected in zip((critic, target), before, strict=True):
        assert difference(found(INPUTS), expected) < 1e-6


def test_a_shared_layer_is_rescaled_once(critic):
    critic.two[-1] = critic.one[-1]
    before = critic(INPUTS)
    rescale([critic, critic], 4.0)
    assert difference(critic(INPUTS), before) < 1e-6
    other = copy.deepcopy(critic)
    other.two[-1] = ScaledLinear(nn.Linear(16, 3), other.value_scale)
    other.two[-1].weight = other.one[-1].weight
    before = other(INPUTS)
    rescale([other], 9.0)
    assert difference(other(INPUTS), before) < 1e-6


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_by_hand_is_autograd(activation):
    th.manual_seed(0)
    critic = Critic(activation=activation)
    set_scale([critic], 7.5)
    x = INPUTS.clone().requires_grad_()
    stack, parameters = Stack.of(critic.one), list(critic.one.parameters())
    cotangents = th.randn(50, 3)
    found = th.autograd.grad((stack(x) * cotangents).sum(), [x, *parameters])
    expected = th.autograd.grad((critic.one(x) * cotangents).sum(), [x, *parameters])
    assert stack is not None and th.equal(stack(x), critic.one(x))
    for ours, theirs in zip(found, expected, strict=True):
        assert difference(ours, theirs) < 1e-5


def parametrized(critic):
    nn.utils.parametrizations.weight_norm(critic.one[-1])


def weight_normed(critic):
    nn.utils.weight_norm(critic.one[-1])


def own(critic):
    critic.one[-1] = type("Own", (ScaledLinear,), {})(nn.Linear(16, 3), critic.value_scale)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("change", [parametrized, weight_normed, own])
def test_what_cannot_be_rescaled_is_refused(critic, change):
    change(critic)
    before = critic(INPUTS)
    with pytest.raises(TypeError, match=r"^value_scale='auto' rescales the last linear layer of each network"):
        rescale([critic], 2.0)
    assert th.equal(critic(INPUTS), before)


@pytest.mark.parametrize("network", [nn.Sequential(nn.Linear(4, 3), nn.Tanh()), nn.Linear(4, 3), nn.Sequential()])
def test_a_network_without_a_linear_layer_at_its_end_is_refused(critic, network):
    with pytest.raises(TypeError, match=r"^value_scale='auto' needs networks that are nn.Sequential and end with nn.Linear"):
        critic.with_scale(network)


def test_a_network_that_a_user_puts_in_place_keeps_its_units(critic):
    critic.two = nn.Sequential(nn.Linear(4, 3))
    before = critic(INPUTS)
    rescale([critic], 5.0)
    assert difference(critic(INPUTS), before) < 1e-6 and len(scaled_heads([critic])) == 1


def test_parameters_without_a_scale_are_in_the_units_of_the_reward(critic):
    th.manual_seed(1)
    saved = Critic(scale=False)
    set_scale([critic], 4.0)
    assert saved.scaled(INPUTS) is INPUTS and saved.unscaled(INPUTS) is INPUTS
    critic.load_state_dict(saved.state_dict())
    assert th.equal(critic(INPUTS), saved(INPUTS))
    assert critic.value_scale.sigma == 1.0 and bool(critic.value_scale.is_set)


def test_a_head_has_the_parameters_of_a_linear_layer_under_their_names(critic):
    assert isinstance(critic.one[-1], nn.Linear)
    assert [name for name, _ in critic.one[-1].named_parameters()] == ["weight", "bias"]
    assert list(critic.one[-1].state_dict()) == ["weight", "bias", "sigma"]
    assert critic.one[-1].in_features == 16 and critic.one[-1].out_features == 3
    assert "ScaledLinear(in_features=16, out_features=3, bias=True)" in repr(critic)


def test_a_single_network_keeps_its_values_where_it_is_loaded(critic):
    """Whatever the scale there, which is that of other networks, too."""
    th.manual_seed(1)
    other, plain = Critic(), Critic(scale=False)
    set_scale([critic], 4.0)
    set_scale([other], 6.0)
    second = other.two(INPUTS)
    for source in (critic.one, plain.one):
        other.one.load_state_dict(source.state_dict())
        assert difference(other.one(INPUTS), source(INPUTS)) < 1e-6
        assert th.equal(other.two(INPUTS), second) and other.value_scale.sigma == 6.0


def test_a_scale_that_is_made_after_the_networks_is_loaded_first(critic):
    set_scale([critic], 4.0)
    other = Critic()
    other.value_scale = other._modules.pop("value_scale")  # now the last one in the order of loading
    other.load_state_dict(critic.state_dict())
    assert difference(other(INPUTS), critic(INPUTS)) < 1e-6


def test_a_part_of_the_parameters_leaves_the_scale(critic):
    set_scale([critic], 4.0)
    whole = nn.ModuleDict(dict(critic=critic, other=nn.Linear(1, 1)))
    part = {name: value for name, value in whole.state_dict().items() if "other" in name}
    whole.load_state_dict(part, strict=False)
    assert critic.value_scale.sigma == 4.0


def test_a_scale_is_saved_and_loaded(critic):
    set_scale([critic], 4.0)
    rescale([critic], 3.0)
    th.manual_seed(1)
    other = Critic()
    other.load_state_dict(critic.state_dict())
    assert th.equal(other(INPUTS), critic(INPUTS)) and bool(other.value_scale.is_set)
    moved = copy.deepcopy(critic).double()
    assert moved.value_scale is moved.one[-1].scale
    assert difference(moved(INPUTS.double()), critic(INPUTS).double()) < 1e-6


def test_parameters_with_a_scale_are_refused_without_one(critic):
    with pytest.raises(ValueError, match=r"value_scale\.sigma was saved with value_scale='auto', and this model has"):
        Critic(scale=False).load_state_dict(critic.state_dict())
