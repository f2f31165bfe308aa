"""The scale of values: a factor whose change preserves values, by autograd, by hand and in files."""

import copy

import pytest
import torch as th
from torch import nn

from sb3_energy.networks import Stack, ValueScale, make_backbone, rescale, scaled_heads, set_scale
from sb3_energy.networks.value_scale import ScaledValues


class Critic(ScaledValues):
    """Two networks of several outputs."""

    def __init__(self, scale=True, n_outputs=3, activation=nn.SiLU, backbone="layer_norm"):
        super().__init__()
        self.value_scale = ValueScale(n_outputs) if scale else None
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
    assert critic.one[-1] is critic.two[-1] is critic.value_scale
    assert th.equal(critic.scaled(INPUTS), INPUTS * 7.5) and th.equal(critic.unscaled(INPUTS), INPUTS / 7.5)


@pytest.mark.parametrize("n_outputs", [1, 25])
def test_a_change_preserves_values(n_outputs):
    th.manual_seed(0)
    critic = Critic(n_outputs=n_outputs)
    target = copy.deepcopy(critic)
    assert target.value_scale is not critic.value_scale
    set_scale([critic, target], 3.0)
    before, weights = critic(INPUTS), critic.one[-2].weight.clone()
    for sigma in (3.7, 1e-4, 2e5, 17.0):
        rescale([critic, target], sigma)
        assert critic.value_scale.sigma == target.value_scale.sigma == th.tensor(sigma)
        assert difference(critic(INPUTS), before) < 1e-6 and difference(target(INPUTS), before) < 1e-6
    th.testing.assert_close(critic.one[-2].weight, weights * 3.0 / 17.0)
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
    critic.two[-2] = critic.one[-2]
    before = critic(INPUTS)
    rescale([critic, critic], 4.0)
    assert difference(critic(INPUTS), before) < 1e-6
    other = copy.deepcopy(critic)
    other.two[-2] = nn.Linear(16, 3)
    other.two[-2].weight = other.one[-2].weight
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
    nn.utils.parametrizations.weight_norm(critic.one[-2])


def weight_normed(critic):
    nn.utils.weight_norm(critic.one[-2])


def own(critic):
    critic.one[-2] = type("Own", (nn.Linear,), {})(16, 3)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("change", [parametrized, weight_normed, own])
def test_what_cannot_be_rescaled_is_refused(critic, change):
    change(critic)
    before = critic(INPUTS)
    with pytest.raises(TypeError, match=r"^value_scale='auto' rescales the linear layer before the scale"):
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
    assert moved.value_scale is moved.one[-1]
    assert difference(moved(INPUTS.double()), critic(INPUTS).double()) < 1e-6


def test_parameters_with_a_scale_are_refused_without_one(critic):
    with pytest.raises(ValueError, match=r"value_scale\.sigma was saved with value_scale='auto', and this model has"):
        Critic(scale=False).load_state_dict(critic.state_dict())
