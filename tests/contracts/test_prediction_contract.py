"""Whatever a user changes after a first ``predict`` changes the next one, as it does in SB3."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.sac.policies import Actor
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from sb3_energy import PGAC, EnergySAC
from sb3_energy.policies.fast_predict.fast_predict import FastPredict
from tests.contracts.gradient_ways import HalvedTanh, ReversedLinear, layers_of

OBSERVATION = np.array([[0.3, -0.8, 1.2]], np.float32)


def reversed_(layer):
    return lambda x: -2.0 * F.linear(x, layer.weight, layer.bias)


def replaced_forward(policy):
    layer = layers_of(policy.actor.latent_pi)[0]
    layer.forward = reversed_(layer)


def replaced_forward_of_mean(policy):
    policy.actor.mu.forward = reversed_(policy.actor.mu)


def replaced_forward_of_trunk(policy):
    trunk = policy.actor.latent_pi
    trunk.forward = lambda x: -2.0 * nn.Sequential.forward(trunk, x)


def replaced_features(policy):
    policy.actor.features_extractor.forward = lambda obs: -2.0 * obs


def replaced_call(policy):
    layer = layers_of(policy.actor.latent_pi)[0]
    layer._call_impl = lambda x: -2.0 * layer.forward(x)


def replaced_distribution(policy):
    distribution = policy.actor.action_dist
    original = distribution.actions_from_params
    distribution.actions_from_params = lambda *args, **kwargs: 0.5 * original(*args, **kwargs)


def replaced_parameters(policy):
    actor = policy.actor
    actor.get_action_dist_params = lambda obs: (th.ones(len(obs), 1), th.full((len(obs), 1), -3.0), {})


def forward_hook(policy):
    layers_of(policy.actor.latent_pi)[0].register_forward_hook(lambda module, inputs, output: -2.0 * output)


def other_class(policy):
    class Reversed(ReversedLinear):
        def forward(self, x):
            return -2.0 * nn.Linear.forward(self, x)

    layers_of(policy.actor.latent_pi)[0].__class__ = Reversed


def other_layer(policy):
    policy.actor.mu = nn.Linear(policy.actor.mu.in_features, 1)


def other_parameter(policy):
    policy.actor.mu.weight = nn.Parameter(-2.0 * policy.actor.mu.weight.detach())


def changed_numbers(policy):
    with th.no_grad():
        policy.actor.mu.bias.add_(1.0)


def changed_bounds(policy):
    policy.action_space.high[:] = 4.0


def weight_that_is_no_parameter(policy):
    weight = policy.actor.mu.weight.detach().clone()
    del policy.actor.mu.weight
    policy.actor.mu.weight = -2.0 * weight


CHANGES = [
    *(replaced_forward, replaced_forward_of_mean, replaced_forward_of_trunk, replaced_features, replaced_call),
    *(replaced_distribution, replaced_parameters, forward_hook, other_class, other_layer, other_parameter),
    *(changed_numbers, changed_bounds, weight_that_is_no_parameter),
]


def make_policy(cls=EnergySAC, **policy_kwargs):
    model = cls("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs=dict(net_arch=[8, 8]) | policy_kwargs)
    return model.policy


def predictions(policy):
    """Without noise and drawn, of actor and critic."""
    found = [policy.predict(OBSERVATION, deterministic=True)[0]]
    th.manual_seed(0)
    found.append(policy.predict(OBSERVATION)[0])
    return np.concatenate([*found, policy.q_values(OBSERVATION, np.zeros((1, 1)))[None]])


def by_torch(policy):
    policy.fast_predict = False
    try:
        return predictions(policy)
    finally:
        policy.fast_predict = True


@pytest.fixture
def counted(monkeypatch):
    """How often the fast path was taken."""
    calls, base = [], FastPredict._base
    monkeypatch.setattr(FastPredict, "_base", lambda *args: calls.append(1) or base(*args))
    return calls


@pytest.mark.parametrize("refiner", ["none", "langevin"])
@pytest.mark.parametrize("backbone", ["bro", "layer_norm", "plain", "simba"])  # those that numpy knows
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_after_the_first_prediction_counts(change, backbone, refiner, counted):
    policy = make_policy(backbone=backbone, refiner=refiner)
    before = predictions(policy)
    assert counted, "the first prediction is a fast one"
    change(policy)
    after = predictions(policy)
    np.testing.assert_allclose(after, by_torch(policy), atol=2e-5)
    if refiner == "none":  # a refined action may end where it did
        assert np.abs(after - before)[:2].max() > 1e-3


def replaced_critic(policy):
    network = policy.critic.q_networks[0]
    network.forward = lambda x: nn.Sequential.forward(network, x) - 5.0 * x[:, -1:]


def replaced_critic_layer(policy):
    layer = layers_of(policy.critic.qf0)[-1]
    layer.forward = lambda x: -3.0 * F.linear(x, layer.weight, layer.bias)


def hooked_critic(policy):
    layers_of(policy.critic.qf1)[-1].register_forward_hook(lambda module, inputs, output: -3.0 * output)


def replaced_potential(policy):
    potential = policy.potential
    potential.forward = lambda features, actions: (actions - 0.7).square().sum(-1) * 50.0


def hooked_potential(policy):
    policy.potential.register_forward_hook(lambda module, inputs, output: output + 50.0 * (inputs[1] + 0.3).square().sum(-1))


def replaced_potential_layer(policy):
    layer = layers_of(policy.potential.network)[-1]
    layer.forward = lambda x: 20.0 * x[..., :1]


@pytest.mark.parametrize(
    ("cls", "change"),
    [(EnergySAC, change) for change in (replaced_critic, replaced_critic_layer, hooked_critic)]
    + [(PGAC, change) for change in (replaced_potential, hooked_potential, replaced_potential_layer, replaced_critic)],
    ids=lambda part: part.__name__,
)
def test_energies_see_the_change(cls, change, counted):
    policy = make_policy(cls)
    before = predictions(policy)
    assert counted
    change(policy)
    after = predictions(policy)
    np.testing.assert_allclose(after, by_torch(policy), atol=2e-5)
    assert np.abs(after - before).max() > 1e-3


def test_settings_of_layers_count(counted):
    policy = make_policy(backbone="layer_norm", refiner="none")
    before = predictions(policy)
    for layer in policy.actor.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = 10.0
    after = predictions(policy)
    assert counted and np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, by_torch(policy), atol=2e-5)


@pytest.mark.parametrize("cls", [nn.Linear, nn.SiLU, nn.LayerNorm], ids=lambda cls: cls.__name__)
def test_a_class_that_is_changed_counts(cls, monkeypatch):
    policy = make_policy(backbone="layer_norm", refiner="none")
    before, forward = predictions(policy), cls.forward
    monkeypatch.setattr(cls, "forward", lambda self, x: -2.0 * forward(self, x))
    after = predictions(policy)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, by_torch(policy), atol=2e-5)


def test_a_method_of_sb3_that_is_changed_counts(monkeypatch):
    policy = make_policy(refiner="none")
    before = predictions(policy)
    monkeypatch.setattr(Actor, "get_action_dist_params", lambda self, obs: (th.ones(1, 1), th.zeros(1, 1), {}))
    after = predictions(policy)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, by_torch(policy), atol=2e-5)


def test_hooks_of_all_modules_and_modes_count():
    policy = make_policy(backbone="layer_norm", refiner="none")
    before = predictions(policy)

    def twice(module, inputs, output):
        return 2.0 * output if isinstance(module, nn.Linear) else None

    handle = torch_module.register_module_forward_hook(twice)
    try:
        hooked = predictions(policy)
    finally:
        handle.remove()
    with HalvedTanh():
        halved = predictions(policy)
    assert min(np.abs(hooked - before).max(), np.abs(halved - before).max()) > 1e-3
    np.testing.assert_allclose(predictions(policy), before, atol=1e-6)


def test_actions_that_are_not_to_be_rescaled_are_not(counted):
    policy = make_policy(refiner="none")
    before = predictions(policy)
    policy._squash_output = False
    after = predictions(policy)
    assert counted
    np.testing.assert_allclose(after[:2], before[:2] / 2.0, atol=1e-5)  # Pendulum's actions lie in [-2, 2]
