"""Every numeric argument, found by its signature, takes NumPy's numbers, gives the same with them, and keeps Python's."""

import dataclasses
import inspect
import typing

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_energy import PGAC, EnergyMatching, EnergySAC
from sb3_energy.energies import ENERGIES
from sb3_energy.entropy import ENTROPY_ESTIMATORS
from sb3_energy.envs import MultiGoalEnv, RandomGoalsEnv
from sb3_energy.networks import PotentialNetwork, VelocityNetwork
from sb3_energy.pgac.potential_training import PotentialTraining
from sb3_energy.policies.heads import HEAD_ARGUMENTS, HeadTraining
from sb3_energy.refinement.weighted_candidates import CandidateSettings
from sb3_energy.refiners import REFINERS
from sb3_energy.schedules import Constant, Cosine, LinearRamp, Polynomial

NUMPY = {bool: np.bool_, int: np.int64, float: np.float32}
WITHOUT_DEFAULT = {bool: True, int: 2, float: 0.5}
SETTINGS = [*REFINERS.values(), *ENERGIES.values(), *ENTROPY_ESTIMATORS.values(), HeadTraining, PotentialTraining]
SETTINGS += [CandidateSettings, Constant, Cosine, LinearRamp, Polynomial]
ALGORITHMS = [EnergySAC, PGAC]
POLICIES = [algorithm.policy_aliases["MlpPolicy"] for algorithm in ALGORITHMS]
FIXED = {EnergySAC: dict(buffer_size=20, seed=0), PGAC: dict(buffer_size=20, seed=0), EnergyMatching: dict(seed=0)}
NEEDED = {Constant: dict(value=1.0), Cosine: dict(initial=1.0, final=0.0), Polynomial: dict(initial=1.0, final=0.0)}


def kind_of(parameter):
    default, annotation = parameter.default, parameter.annotation
    if type(default) in NUMPY:
        return type(default)
    named = (annotation, *typing.get_args(annotation))
    return next((kind for kind in NUMPY if kind in named), None)


def numeric_arguments(cls):
    """Names, and what is given for each in Python's numbers and in NumPy's."""
    found = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        for name, parameter in parameters.items():
            kind = kind_of(parameter)
            if kind is not None and not name.startswith("_"):
                default = parameter.default
                value = WITHOUT_DEFAULT[kind] if type(default) not in NUMPY else kind(default)
                found.setdefault(name, NUMPY[kind](value))
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return found


def pairs(classes):
    return [pytest.param(cls, name, id=f"{cls.__name__}-{name}") for cls in classes for name in numeric_arguments(cls)]


def numpy_in(value, seen=()):
    """Numbers of NumPy's that an object has kept."""
    if isinstance(value, np.generic):
        return [value]
    if isinstance(value, (list, tuple)):
        return [found for part in value for found in numpy_in(part)]
    if isinstance(value, dict):
        return [found for part in value.values() for found in numpy_in(part)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return numpy_in([getattr(value, field.name) for field in dataclasses.fields(value)])
    return []


def outcome(make, **kwargs):
    """What is made, or how it is refused."""
    try:
        return make(**kwargs), None
    except (TypeError, ValueError) as error:
        return None, type(error)


def both(make, name, value, fixed=None):
    """The same twice: with the Python number, which is accepted or refused, and with NumPy's."""
    plain, refused = outcome(make, **(fixed or {}) | {name: value.item()})
    for given in (value, np.array(value)):
        found, also_refused = outcome(make, **(fixed or {}) | {name: given})
        assert also_refused is refused
        if refused is None:
            yield plain, found


def test_the_arguments_are_found():
    assert {"step_size", "noise_scale", "max_grad_norm", "differentiable"} <= set(numeric_arguments(REFINERS["langevin"]))
    assert {"seed", "learning_rate", "policy_delay", "refine_target", "buffer_size"} <= set(numeric_arguments(PGAC))
    assert {"n_particles", "sampling_time", "precondition", "tolerance", "n_critics"} <= set(numeric_arguments(POLICIES[1]))


@pytest.mark.parametrize(("cls", "name"), pairs(SETTINGS))
def test_settings(cls, name):
    n = 0
    for plain, found in both(cls, name, numeric_arguments(cls)[name], NEEDED.get(cls)):
        n += 1
        assert found == plain and type(getattr(found, name)) is type(getattr(plain, name))
    assert n == 2 or numeric_arguments(cls)[name].item() in WITHOUT_DEFAULT.values()


@pytest.mark.parametrize(("cls", "name"), pairs(POLICIES))
def test_policies(cls, name):
    def make(**kwargs):
        th.manual_seed(0)
        return cls(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), lambda _: 1e-3, net_arch=[np.int64(8)], **kwargs)

    for plain, found in both(make, name, numeric_arguments(cls)[name]):
        th.testing.assert_close(found.state_dict(), plain.state_dict(), rtol=0, atol=0)
        assert found.refinement == plain.refinement and not numpy_in(found.refinement)
        assert not numpy_in(found._get_constructor_parameters())


@pytest.mark.parametrize(("cls", "name"), pairs(ALGORITHMS))
def test_algorithms(cls, name):
    def make(**kwargs):
        return cls("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[np.int64(8)], n_particles=np.int64(2)), **kwargs)

    for plain, found in both(make, name, numeric_arguments(cls)[name], FIXED[cls]):
        assert getattr(found, name, None) == getattr(plain, name, None)
        th.testing.assert_close(found.policy.state_dict(), plain.policy.state_dict(), rtol=0, atol=0)
        assert not numpy_in({key: value for key, value in vars(found).items() if not key.startswith("_last")})


@pytest.mark.parametrize(("cls", "name"), pairs([EnergyMatching]))
def test_energy_matching(cls, name):
    for plain, found in both(cls, name, numeric_arguments(cls)[name], FIXED[cls]):
        assert found.settings == plain.settings and not numpy_in(found.settings) and not numpy_in(vars(found))


def test_energy_matching_s_other_numbers():
    x = np.random.default_rng(0).normal(size=(8, 2))
    model = EnergyMatching(net_arch=[np.int64(8)], seed=np.int64(0), n_steps=np.int64(2))
    model.fit(x, gradient_steps=np.int64(2), log_interval=np.int64(1)).set_random_seed(np.int32(1))
    assert model.sample(np.int64(3)).shape == (3, 2) and type(model.n_updates) is int


@pytest.mark.parametrize(("cls", "name"), pairs([PotentialNetwork, VelocityNetwork]))
def test_networks(cls, name):
    def make(**kwargs):
        th.manual_seed(0)
        return cls(**dict(features_dim=3, action_dim=2, net_arch=[8]) | kwargs)

    for plain, found in both(make, name, numeric_arguments(cls)[name]):
        th.testing.assert_close(found.state_dict(), plain.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(set(HEAD_ARGUMENTS["average_velocity"]) - {"net_arch", "activation_fn", "backbone"}))
def test_heads(name):
    value = dict(gated=np.True_, n_frequencies=np.int64(2), same_fraction=np.float32(0.5))[name]
    kwargs = dict(net_arch=[8], refiner="mean_flow", head_kwargs={name: value, "net_arch": [np.int64(8)]})
    model = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=kwargs, learning_starts=4, batch_size=4, buffer_size=20)
    assert model.learn(6).policy.head is not None and not numpy_in(model.policy_kwargs)


@pytest.mark.parametrize("name", ["goal_threshold", "start_std"])
def test_environment(name):
    assert type(getattr(MultiGoalEnv(**{name: np.float32(0.5)}), name)) is float
    assert type(getattr(RandomGoalsEnv(np.int64(1), **{name: np.float32(0.5)}), name)) is float


def test_world():
    world = RandomGoalsEnv(goals=np.eye(2, dtype=np.float32), bonuses=np.arange(2), reward_scale=np.float32(2.0)).world
    numbers = [*world.goals[0], *world.goals[1], *world.bonuses, world.reward_scale, world.goal_threshold]
    assert {type(number) for number in numbers} == {float}


def test_what_is_saved_is_plain(tmp_path):
    kwargs = dict(net_arch=[8], n_particles=np.int64(2), refiner_kwargs=dict(step_size=np.float32(0.5)))
    model = EnergySAC("MlpPolicy", "Pendulum-v1", seed=np.int64(3), refine_target=np.True_, policy_kwargs=kwargs)
    model.save(tmp_path / "model")
    loaded = EnergySAC.load(tmp_path / "model", update_particles=np.int64(4), learning_rate=np.float32(0.5))
    assert not numpy_in(loaded.policy_kwargs) and loaded.policy_kwargs["refiner_kwargs"] == dict(step_size=0.5)
    assert (loaded.seed, loaded.update_particles, loaded.learning_rate, loaded.refine_target) == (3, 4, 0.5, True)
    assert not numpy_in([loaded.seed, loaded.update_particles, loaded.learning_rate, loaded.refine_target])
