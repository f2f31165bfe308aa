"""Whatever a user does to gradients has the effect that it has in SB3: the default update against ``update="reference"``."""

import io
import warnings

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.sac.policies import Actor
from torch.nn import functional as F

from sb3_energy import PGAC, EnergySAC
from sb3_energy.fast_updates.sac_gradients import SACGradients, are_autograds_own
from sb3_energy.networks import BACKBONES
from tests.contracts.gradient_ways import ERRORS, WAYS, applied, inner_pair, layers_of

N_ROWS, BATCH, UPDATES = 64, 16, 4
SMALL = dict(net_arch=[12, 12, 12])
CLOSE = 1e-5
"""Rounding: fused Adam's first steps make more of it where gradients are small. One step of a learning rate is 3e-4."""


def make(cls, update, policy_kwargs, **kwargs):
    own = {} if cls is SAC else dict(update=update)
    model = cls("MlpPolicy", "Pendulum-v1", seed=1, policy_kwargs=policy_kwargs, buffer_size=N_ROWS, **own, **kwargs)
    model.set_logger(Logger(None, []))
    rng, buffer = np.random.default_rng(0), model.replay_buffer
    for _ in range(N_ROWS):
        obs, next_obs = rng.standard_normal((2, 1, 3)).astype(np.float32)
        buffer.add(obs, next_obs, rng.uniform(-1, 1, (1, 1)), rng.standard_normal(1), np.zeros(1), [{}])
    return model


def learned(model):
    found = {name: value.detach().clone() for name, value in model.policy.state_dict().items() if name != "temperature"}
    found |= {"log_ent_coef": model.log_ent_coef.detach().clone()}
    return found


def train(model, calls=UPDATES):
    np.random.seed(3)
    th.manual_seed(3)
    for _ in range(calls):
        model.train(gradient_steps=1, batch_size=BATCH)
    return learned(model)


def gap(some, others):
    assert some.keys() == others.keys()
    return max((some[name].double() - others[name].double()).abs().max().item() for name in some)


def compared(way, policy_kwargs, cls=EnergySAC, **kwargs):
    results = []
    for update in ("reference", "lean"):
        model = make(cls, update, policy_kwargs, **kwargs)
        with applied(way, model):
            results.append(train(model))
    return results


@pytest.fixture(scope="module")
def untouched():
    """What is learned where nobody changes anything, by backbone and critic."""
    found = {}

    def of(policy_kwargs):
        key = repr(policy_kwargs)
        if key not in found:
            found[key] = train(make(EnergySAC, "reference", policy_kwargs))
        return found[key]

    return of


# At (-5, 5) a rounding of SimBa's first weights changes what the reference learns by up to 6e-5
CRITICS = {"scalar": {}, "quantile": dict(critic="quantile"), "categorical": dict(critic="categorical", support=(-6.0, 6.0))}
MARKED = ["scalar", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("quantile", "categorical"))]


@pytest.mark.parametrize("critic", MARKED)
@pytest.mark.parametrize("backbone", sorted(BACKBONES))
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_is_learned_is_what_autograd_learns(way, backbone, critic, untouched):
    policy_kwargs = SMALL | dict(backbone=backbone) | CRITICS[critic]
    reference, lean = compared(way, policy_kwargs)
    assert gap(reference, lean) < CLOSE
    plain = untouched(policy_kwargs)
    if reference.keys() == plain.keys():  # else it has changed what there is to learn
        assert gap(reference, plain) > 1e-4, "the way changes something"


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
@pytest.mark.parametrize("way", ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_learned_from_is_an_error(way, backbone):
    policy_kwargs = SMALL | dict(backbone=backbone)
    for update in ("reference", "lean"):
        model = make(EnergySAC, update, policy_kwargs)
        with pytest.raises(RuntimeError, match="grad"), applied(way, model):
            train(model)


@pytest.mark.parametrize("way", (WAYS | ERRORS).values(), ids=WAYS | ERRORS)
def test_the_reference_is_sb3s_sac(way):
    """So that the oracle is one: the same numbers as SB3's, or SB3's error."""
    results = []
    for cls in (SAC, EnergySAC):
        model = make(cls, "reference", SMALL if cls is SAC else SMALL | dict(backbone="plain", refiner="none"))
        try:
            with applied(way, model):
                results.append(train(model))
        except RuntimeError:
            results.append(None)
    assert (results[0] is None) == (results[1] is None) == (way.__name__ in ERRORS)
    if results[0] is not None:
        assert gap(*results) == 0.0


PGAC_WAYS = [way for name, way in WAYS.items() if name != "replaced_forward_of_critic"]


@pytest.mark.parametrize("way", PGAC_WAYS, ids=lambda way: way.__name__)
def test_potentials_learn_what_autograd_learns(way):
    """Through refined targets, chains and the potential's losses, all of which ask the changed critic."""
    reference, lean = compared(way, SMALL, PGAC, refine_target=True, policy_delay=1)
    assert gap(reference, lean) < 100 * CLOSE


def test_hooks_of_the_critic_that_energies_do_not_call_are_warned_of():
    """Once, since tools that look on hook every module."""
    model, calls = make(EnergySAC, "lean", SMALL), []
    model.critic.register_forward_hook(lambda *args: calls.append(1))
    with pytest.warns(UserWarning, match="hook critic.q_networks"):
        model.predict(np.zeros(3, np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(np.zeros(3, np.float32))
    assert not calls
    train(model)
    assert len(calls) == 2 * UPDATES  # in the critic's loss and the actor's


def test_a_compiled_critic_is_no_other_critic():
    model = make(EnergySAC, "lean", SMALL)
    before, _ = model.predict(np.zeros(3, np.float32), deterministic=True)
    model.critic._compiled_call_impl = model.critic._call_impl  # what critic.compile() leaves
    after, _ = model.predict(np.zeros(3, np.float32), deterministic=True)
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_a_critic_that_energies_do_not_go_through_is_refused():
    model = make(EnergySAC, "lean", SMALL)
    with applied(WAYS["replaced_forward_of_critic"], model), pytest.raises(TypeError, match="override evaluate as well"):
        model.predict(np.zeros(3, np.float32))
    model.critic.evaluate = lambda features, actions: th.zeros(2, *actions.shape[:2])
    model.predict(np.zeros(3, np.float32))


def hooks_on_potential_tensors(model):
    for parameter in model.policy.potential.parameters():
        parameter.register_hook(th.neg)
    yield


def frozen_layer_of_potential(model):
    layers_of(model.policy.potential)[1].requires_grad_(False)
    yield


def shared_in_potential(model):
    first, second = inner_pair(model.policy.potential)
    second.weight = first.weight
    yield


def hook_of_potential(model):
    model.policy.potential.register_forward_hook(lambda module, inputs, output: output - 2.0 * inputs[1].square().sum(-1))
    yield


def replaced_layer_of_potential(model):
    layer = layers_of(model.policy.potential)[1]
    layer.forward = lambda x: 0.5 * F.linear(x, layer.weight, layer.bias)
    yield


POTENTIAL_WAYS = [
    *(hooks_on_potential_tensors, frozen_layer_of_potential, shared_in_potential),
    *(hook_of_potential, replaced_layer_of_potential),
]


@pytest.mark.parametrize("way", POTENTIAL_WAYS, ids=lambda way: way.__name__)
def test_potentials_that_are_changed_learn_what_autograd_learns(way):
    reference, lean = compared(way, SMALL, PGAC, refine_target=True, policy_delay=1)
    assert gap(reference, lean) < 100 * CLOSE
    assert gap(reference, train(make(PGAC, "reference", SMALL, refine_target=True, policy_delay=1))) > 3e-4


@pytest.mark.parametrize("update", ["lean", "reference"])
def test_a_frozen_potential_stays_what_it_is(update):
    model = make(PGAC, update, SMALL, policy_delay=1)
    model.policy.potential.requires_grad_(False)
    before = learned(model)
    after = train(model)
    moved = {name for name in after if not th.equal(after[name], before[name])}
    assert any(name.startswith("critic.") for name in moved) and any(name.startswith("actor.") for name in moved)
    assert not any(name.startswith("potential.") for name in moved)


def test_untouched_networks_go_the_fast_way(untouched):
    """The price of the question is paid for something: the default update is by hand."""
    model = make(EnergySAC, "lean", SMALL)
    assert are_autograds_own(model.actor, model.critic)
    assert isinstance(SACGradients.of(model.policy), SACGradients)
    assert gap(train(model), untouched(SMALL)) < CLOSE
    assert model.actor.by_hand and model.critic.by_hand


@pytest.mark.parametrize("owner, name", [(Actor, "get_action_dist_params"), (ContinuousCritic, "forward")])
def test_a_method_of_sb3_that_ours_call_counts_where_it_is_replaced(owner, name, monkeypatch):
    """Ours override it and call it: it is not looked up on their classes."""
    original = getattr(owner, name)

    def halved(self, *args):
        return tuple(part if isinstance(part, dict) else 0.5 * part for part in original(self, *args))

    monkeypatch.setattr(owner, name, halved)
    reference, lean = (make(EnergySAC, update, SMALL | dict(refiner="none")) for update in ("reference", "lean"))
    assert not are_autograds_own(lean.actor, lean.critic)
    assert gap(train(reference), train(lean)) < CLOSE


def test_each_call_of_train_asks_again():
    reference, lean = (make(EnergySAC, update, SMALL) for update in ("reference", "lean"))
    for model in (reference, lean):
        train(model, 1)
        layers_of(model.actor)[0].weight.requires_grad_(False)
        handle = layers_of(model.critic)[0].weight.register_hook(th.neg)
        train(model, 2)
        layers_of(model.actor)[0].weight.requires_grad_(True)
        handle.remove()
        train(model, 2)
    assert gap(learned(reference), learned(lean)) < CLOSE
    assert lean.critic.by_hand, "the hook is gone"


def test_gradients_that_somebody_keeps_stay_what_they_were():
    model = make(EnergySAC, "lean", SMALL)
    train(model, 1)
    kept = [parameter.grad for parameter in model.critic.parameters()]
    copies = [gradient.clone() for gradient in kept]
    train(model, 1)
    assert all(th.equal(gradient, copy) for gradient, copy in zip(kept, copies, strict=True))
    assert not all(th.equal(parameter.grad, copy) for parameter, copy in zip(model.critic.parameters(), copies, strict=True))


def test_a_frozen_model_stays_frozen_when_it_is_loaded():
    """SB3 does not save which parameters are frozen: both load them trainable."""
    model = make(EnergySAC, "lean", SMALL)
    model.actor.requires_grad_(False)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    assert all(parameter.requires_grad for parameter in EnergySAC.load(file).actor.parameters())
