"""A refinement argument is declared once: policies, their docstrings and files, and the zoo's search take it from there."""

import inspect
import pickle
from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_energy import EnergySAC
from sb3_energy.checks import check_number
from sb3_energy.keywords import argument, changed, choices_of, documented, takes_arguments
from sb3_energy.pgac.arguments import PotentialArguments
from sb3_energy.pgac.potential_policy import PotentialPolicy
from sb3_energy.policies.arguments import PolicyArguments
from sb3_energy.policies.refined_policy import RefinedPolicy
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.proposals import INITIAL_PARTICLES

SPACE = spaces.Box(-1.0, 1.0, (2,), np.float32)
each_policy = pytest.mark.parametrize("policy", [RefinedPolicy, PotentialPolicy])


@documented
@dataclass(frozen=True)
class MoreArguments(PolicyArguments):
    """With a new argument and a new default."""

    strength: float = argument(1.0, "How strong it is", check_number)
    box: str = changed(PolicyArguments, "box", default="reflect")


@takes_arguments(MoreArguments)
class MorePolicy(RefinedPolicy):
    """
    A policy with a new argument.

    :raises ValueError: if it is negative
    """


def make(policy, **kwargs):
    return policy(SPACE, SPACE, lambda _: 1e-3, net_arch=[4], **kwargs)


def test_a_new_argument_is_one_line(tmp_path):
    parameter = inspect.signature(MorePolicy.__init__).parameters["strength"]
    assert parameter.default == 1.0 and parameter.annotation is float
    assert ":param strength: How strong it is\n:raises ValueError" in MorePolicy.__doc__
    assert ":param strength: How strong it is" in MoreArguments.__doc__
    policy = make(MorePolicy, strength=np.float64(2.0))
    assert type(policy.arguments.strength) is float and type(policy.refinement.box).__name__ == "ReflectingBox"
    policy.save(tmp_path / "policy")
    assert MorePolicy.load(tmp_path / "policy").arguments == policy.arguments
    with pytest.raises(ValueError, match=r"^strength must be at least 0, got -1.0$"):
        make(MorePolicy, strength=-1.0)
    with pytest.raises(TypeError, match=r"^MorePolicy has no argument 'strenth'; did you mean 'strength'\?$"):
        make(MorePolicy, strenth=1.0)


@each_policy
def test_signature_and_docstring_are_those_of_the_arguments(policy):
    parameters = inspect.signature(policy.__init__).parameters
    for field in fields(policy.arguments_class):
        assert parameters[field.name].default == field.default and parameters[field.name].annotation == field.type
        assert policy.__doc__.count(f":param {field.name}: ") == 1
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


@each_policy
def test_the_policy_has_its_arguments_as_they_were_given(policy):
    given = dict(refiner_steps=np.int64(4), n_particles=3, trust_region=0.5, critic="quantile", n_quantiles=5)
    made = make(policy, **given)
    saved = made._get_constructor_parameters()
    assert {name: saved[name] for name in given} == given
    defaults = {field.name: field.default for field in fields(policy.arguments_class)}
    assert {name: saved[name] for name in defaults} == defaults | given


def test_refinement_arguments_need_no_policy():
    arguments = pickle.loads(pickle.dumps(RefinementArguments("mala", n_particles=4, initial_particles="uniform")))
    refinement = arguments.make_refinement()
    base = Gaussian(th.zeros(3, 2), th.ones(3, 2))
    draws = refinement.sample(base, lambda a: a.square().sum(-1), th.ones(()))
    assert draws.shape == (3, 2) and (refinement.n_steps, refinement.n_particles) == (3, 4)
    assert arguments == RefinementArguments("mala", n_particles=4, initial_particles="uniform") != RefinementArguments()


def test_choices_are_those_of_the_registries(monkeypatch):
    assert choices_of(RefinementArguments, "initial_particles") == ("base", "uniform", "mixture")
    monkeypatch.setitem(INITIAL_PARTICLES, "quarter", 0.25)
    assert choices_of(PolicyArguments, "initial_particles") == ("base", "uniform", "mixture", "quarter")
    assert choices_of(PotentialArguments, "initial_particles") == ("base", "uniform", "mixture", "quarter", "normal")
    assert RefinementArguments(initial_particles="quarter").make_refinement().initial_particles == "quarter"


def activations(network):
    return {type(layer) for layer in network.modules() if isinstance(layer, nn.SiLU | nn.ReLU | nn.Tanh)}


@pytest.mark.parametrize(
    "policy_kwargs, of_actor, of_critic",
    [
        ({}, nn.SiLU, nn.ReLU),
        (dict(backbone="plain"), nn.ReLU, nn.ReLU),
        (dict(activation_fn="SiLU"), nn.SiLU, nn.SiLU),
        (dict(activation_fn=nn.Tanh), nn.Tanh, nn.Tanh),
    ],
)
def test_actor_and_critics_have_the_backbone_s_activations_unless_one_is_given(tmp_path, policy_kwargs, of_actor, of_critic):
    model = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs | dict(net_arch=[8]), buffer_size=10)
    model.policy.save(tmp_path / "policy")
    model.save(tmp_path / "model")
    obs = np.ones((4, 3), np.float32)
    expected = model.policy.predict(obs, deterministic=True)[0]
    for policy in (
        model.policy,
        RefinedPolicy.load(tmp_path / "policy", device="cpu"),
        EnergySAC.load(tmp_path / "model").policy,
        RefinedPolicy(**model.policy._get_constructor_parameters()),
    ):
        assert activations(policy.actor) == {of_actor}
        assert activations(policy.critic) == activations(policy.critic_target) == {of_critic}
    for policy in (RefinedPolicy.load(tmp_path / "policy", device="cpu"), EnergySAC.load(tmp_path / "model").policy):
        assert np.array_equal(policy.predict(obs, deterministic=True)[0], expected)
