"""A keyword that a constructor does not know is answered in one sentence: where it belongs, or which is nearly the same."""

from dataclasses import dataclass

import numpy as np
import pytest
from torch import nn

from sb3_energy import PGAC, EnergyMatching, EnergySAC
from sb3_energy.energies import QEnergy
from sb3_energy.keywords import accepted_keywords, plain_arguments
from sb3_energy.networks import PotentialNetwork, VelocityNetwork, find_activation

BOTH = [EnergySAC, PGAC]
EACH = [*BOTH, EnergyMatching, PotentialNetwork, VelocityNetwork, *(A.policy_aliases["MlpPolicy"] for A in BOTH)]


def make(algorithm, **kwargs):
    policy = kwargs.pop("policy", "MlpPolicy")
    return algorithm(policy, "Pendulum-v1", **kwargs)


def message_of(error, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_arguments_of_a_constructor_become_plain():
    class Own:
        @plain_arguments
        def __init__(self, n: int, *, flag: bool = False):
            self.found = (n, flag)

    assert repr(Own(np.int64(4), flag=np.False_).found) == "(4, False)"


def test_what_is_accepted_is_what_the_whole_line_of_constructors_takes():
    found = accepted_keywords(PGAC)
    assert {"transport_coef", "refine_target", "learning_rate", "env", "seed"} <= set(found)
    assert "transport_coef" not in accepted_keywords(EnergySAC)


@pytest.mark.parametrize("cls", EACH, ids=lambda cls: cls.__name__)
def test_every_argument_with_a_letter_missing_is_answered_with_the_argument(cls):
    names = [name for name in accepted_keywords(cls) if not name.startswith("_") and len(name) > 4]
    assert len(names) >= 4
    for name in names:
        typo = name[:3] + name[4:]
        message = message_of(TypeError, cls, **{typo: 1})
        assert message == f"{cls.__name__} has no argument {typo!r}; did you mean {name!r}?"


@pytest.mark.parametrize("cls", EACH, ids=lambda cls: cls.__name__)
def test_an_argument_like_no_other_is_named(cls):
    assert message_of(TypeError, cls, zzzzz=1) == f"{cls.__name__} has no argument 'zzzzz'"


@pytest.mark.parametrize("algorithm", BOTH)
def test_arguments_of_the_policy(algorithm):
    expected = "refiner is an argument of the policy: write policy_kwargs=dict(refiner='mala')"
    assert message_of(TypeError, make, algorithm, refiner="mala") == expected
    for name in set(accepted_keywords(algorithm.policy_aliases["MlpPolicy"])) - set(accepted_keywords(algorithm)):
        if name not in ("observation_space", "action_space", "lr_schedule"):
            assert f"{name} is an argument of the policy: " in message_of(TypeError, make, algorithm, **{name: 1})


@pytest.mark.parametrize("algorithm", BOTH)
def test_arguments_of_the_algorithm_among_the_policys(algorithm):
    message = message_of(TypeError, make, algorithm, policy_kwargs=dict(refine_target=True))
    expected = (
        f"refine_target is an argument of {algorithm.__name__} itself: write {algorithm.__name__}(..., refine_target=True)"
    )
    assert message == f"{expected}, not policy_kwargs=dict(refine_target=...)"
    for name in set(accepted_keywords(algorithm)) - set(accepted_keywords(algorithm.policy_aliases["MlpPolicy"])):
        message = message_of(TypeError, make, algorithm, policy_kwargs={name: 1})
        assert f"{name} is an argument of {algorithm.__name__} itself" in message


def test_arguments_of_refiner_and_energy():
    message = message_of(TypeError, make, EnergySAC, step_size=0.1)
    assert message == "step_size is an argument of the refiner: write policy_kwargs=dict(refiner_kwargs=dict(step_size=0.1))"
    message = message_of(TypeError, make, EnergySAC, policy_kwargs=dict(refiner="hmc", n_leapfrogs=3))
    assert message == "n_leapfrogs is an argument of the refiner 'hmc': write refiner_kwargs=dict(n_leapfrogs=3)"
    message = message_of(TypeError, make, EnergySAC, policy_kwargs=dict(aggregate="min"))
    assert message == "aggregate is an argument of the energy 'q': write energy_kwargs=dict(aggregate='min')"
    assert "did you mean" not in message_of(TypeError, make, EnergySAC, policy_kwargs=dict(n_leapfrogs=3))


def test_arguments_of_pgac():
    message = message_of(TypeError, make, EnergySAC, transport_coef=1.0)
    assert message == "transport_coef is an argument of PGAC, and EnergySAC has none of this name"
    message = message_of(TypeError, make, EnergySAC, sampling_time=1.0)
    assert message.startswith("sampling_time is an argument of the policies of PGAC, and neither EnergySAC nor")
    for name in ("transport_coef", "sampling_time"):
        message = message_of(TypeError, make, EnergySAC, policy_kwargs={name: 1.0})
        assert "PGAC, and the policies of EnergySAC have none of this name" in message


@pytest.mark.parametrize(
    ("policy_kwargs", "name"),
    [
        (dict(refinr="mala"), "refiner"),
        (dict(refiner_kwargs=dict(stepsize=0.1)), "step_size"),
        (dict(energy_kwargs=dict(agregate="min")), "aggregate"),
        (dict(refiner="flow", head_kwargs=dict(gate=True)), "gated"),
    ],
)
def test_a_keyword_of_a_part_is_answered_with_the_nearest(policy_kwargs, name):
    assert message_of(TypeError, make, EnergySAC, policy_kwargs=policy_kwargs).endswith(f"; did you mean {name!r}?")


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        (dict(entropy_estimator="soft_value", entropy_estimator_kwargs=dict(n_proposal=4)), "n_proposals"),
        (dict(policy_kwargs=dict(refiner="flow"), head_training_kwargs=dict(n_point=4)), "n_points"),
    ],
)
def test_a_keyword_of_the_training_is_answered_with_the_nearest(kwargs, name):
    assert message_of(TypeError, make, EnergySAC, **kwargs).endswith(f"; did you mean {name!r}?")
    message = message_of(TypeError, make, PGAC, potential_training_kwargs=dict(topk=4))
    assert message.endswith("; did you mean 'top_k'?")


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        (dict(policy="MlpPolcy"), "MlpPolicy"),
        (dict(policy_kwargs=dict(refiner="langevine")), "langevin"),
        (dict(policy_kwargs=dict(refiner="MALA")), "mala"),
        (dict(policy_kwargs=dict(energy="guided_potentials")), "guided_potential"),
        (dict(policy_kwargs=dict(backbone="layernorm")), "layer_norm"),
        (dict(policy_kwargs=dict(box="tan")), "tanh"),
        (dict(policy_kwargs=dict(initial_particles="mix_ture")), "mixture"),
        (dict(policy_kwargs=dict(critic="quantiles")), "quantile"),
        (dict(policy_kwargs=dict(activation_fn="SILU")), "SiLU"),
        (dict(policy_kwargs=dict(refiner="flow", head_kwargs=dict(activation_fn="Relu"))), "ReLU"),
        (dict(policy_kwargs=dict(energy_kwargs=dict(aggregate="meam"))), "mean"),
        (dict(entropy_estimator="softvalue"), "soft_value"),
        (dict(update="referense"), "reference"),
        (dict(capture="compil"), "compile"),
    ],
)
def test_a_name_that_is_nearly_one_is_answered_with_it(kwargs, name):
    assert message_of(ValueError, make, EnergySAC, **kwargs).endswith(f"; did you mean {name!r}?")


@pytest.mark.parametrize("policy", [None, 3, ["MlpPolicy"]])
def test_a_policy_that_is_neither_name_nor_class(policy):
    message = message_of(TypeError, make, EnergySAC, policy=policy)
    assert message.startswith("policy must be one of ['MlpPolicy',") and message.endswith(f"RefinedPolicy, got {policy!r}")


def test_names_of_the_others():
    assert message_of(ValueError, make, PGAC, value_weight="rellu").endswith("got 'rellu'; did you mean 'relu'?")
    assert message_of(ValueError, make, PGAC, policy_kwargs=dict(initial_particles="normall")).endswith("mean 'normal'?")
    for kwargs, name in (
        (dict(box="reflct"), "reflect"),
        (dict(base="normall"), "normal"),
        (dict(activation_fn="silu"), "SiLU"),
    ):
        assert message_of(ValueError, EnergyMatching, **kwargs).endswith(f"; did you mean {name!r}?")


def test_activations_by_name():
    assert find_activation("SiLU") is nn.SiLU and find_activation(nn.Tanh) is nn.Tanh
    for value in (nn.SiLU(), 3, None):
        assert "activation_fn must be a class of torch.nn or its name" in message_of(TypeError, find_activation, value)
    kwargs = dict(net_arch=[8], refiner="flow", activation_fn="Tanh", head_kwargs=dict(activation_fn="Mish"))
    policy = make(EnergySAC, policy_kwargs=kwargs).policy
    assert any(type(layer) is nn.Tanh for layer in policy.actor.latent_pi)
    assert any(type(layer) is nn.Mish for layer in policy.head.velocity.network)


def test_activations_by_name_are_saved_and_loaded(tmp_path):
    model = make(EnergySAC, policy_kwargs=dict(net_arch=[8], activation_fn="Tanh"))
    model.save(tmp_path / "model")
    loaded = EnergySAC.load(tmp_path / "model")
    assert any(type(layer) is nn.Tanh for layer in loaded.policy.actor.latent_pi)
    assert EnergyMatching(activation_fn="Mish").settings.activation_fn == "Mish"


@pytest.mark.parametrize("name, value", [("refiner", "mala"), ("n_particles", 8), ("backbone", "simba")])
def test_what_a_loaded_policy_cannot_become(tmp_path, name, value):
    """SB3 makes attributes of unknown arguments, and nothing reads them."""
    model = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[8]), buffer_size=10)
    model.save(tmp_path / "model")
    with pytest.raises(TypeError, match=rf"{name} is an argument of the policy, which is loaded as it was saved: .*{name}="):
        EnergySAC.load(tmp_path / "model", **{name: value})


def test_what_may_change_when_a_model_is_loaded(tmp_path):
    model = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[8]), buffer_size=10)
    model.save(tmp_path / "model")
    changes = dict(lr_schedule=float, action_space=model.action_space, num_timesteps=3, refine_target=True, batch_size=8)
    loaded = EnergySAC.load(tmp_path / "model", **changes)
    assert {name: getattr(loaded, name) for name in changes} == changes | dict(lr_schedule=loaded.lr_schedule)


@dataclass(frozen=True)
class Weighing(QEnergy):
    """An energy whose argument has the name of one of the policy's."""

    box: float = 1.0


@pytest.mark.parametrize("part, arguments", [("refiner", dict(n_particles=4)), ("energy", dict(box="tanh"))])
@pytest.mark.parametrize("algorithm", BOTH)
def test_an_argument_of_the_policy_that_is_one_level_too_deep(algorithm, part, arguments):
    (name,) = arguments
    message = message_of(TypeError, make, algorithm, policy_kwargs={f"{part}_kwargs": arguments})
    assert message.startswith(f"{name} is an argument of the policy: write policy_kwargs=dict({name}=")
    assert message.endswith(f"not {part}_kwargs=dict({name}=...)")


def test_an_energy_of_ones_own_may_have_an_argument_of_the_policys_name():
    policy_kwargs = dict(net_arch=[8], energy=Weighing, energy_kwargs=dict(box=2.0))
    assert make(EnergySAC, policy_kwargs=policy_kwargs).policy.energy.box == 2.0


def test_a_policy_for_dictionaries_says_what_it_needs():
    message = message_of(ValueError, make, EnergySAC, policy="MultiInputPolicy")
    assert message.startswith("CombinedExtractor, which MultiInputPolicy has, needs a Dict observation space, got Box")
