from dataclasses import dataclass, field

import pytest

from sb3_energy.energies import ENERGIES
from sb3_energy.entropy import ENTROPY_ESTIMATORS
from sb3_energy.refiners import REFINERS, Langevin
from sb3_energy.registry import NOT_REGISTERED, resolve


@dataclass(frozen=True)
class Own:
    size: int = 3
    fixed: int = field(default=1, init=False)


class Plain:
    def __init__(self, size=3):
        self.size = size


@pytest.mark.parametrize("registry", [REFINERS, ENERGIES, ENTROPY_ESTIMATORS])
def test_every_name_resolves_to_its_class_without_arguments(registry):
    for name, cls in registry.items():
        assert type(resolve(registry, name)) is cls


def test_arguments_arrive():
    assert resolve(REFINERS, "langevin", dict(step_size=0.3)) == Langevin(step_size=0.3)
    assert resolve({}, Own, dict(size=5)).size == 5
    assert resolve({}, Plain, dict(size=5)).size == 5


def test_a_dict_of_arguments_is_not_kept():
    kwargs = dict(step_size=0.3)
    refiner = resolve(REFINERS, "langevin", kwargs)
    kwargs["step_size"] = 1.0
    assert refiner.step_size == 0.3


@pytest.mark.parametrize("registry", [REFINERS, ENERGIES, ENTROPY_ESTIMATORS])
def test_an_unknown_name_is_answered_with_the_known_ones(registry):
    with pytest.raises(ValueError) as error:
        resolve(registry, "langevni", what="refiner")
    near = "; did you mean 'langevin'?" if registry is REFINERS else NOT_REGISTERED
    assert str(error.value) == f"refiner must be one of {sorted(registry)} or a class, got 'langevni'{near}"


@pytest.mark.parametrize("value", [None, 3, Langevin(), ["langevin"]])
def test_what_is_neither_name_nor_class_is_a_type_error(value):
    with pytest.raises(TypeError, match=r"refiner must be one of \['annealed_.*'svgd'\] or a class, got "):
        resolve(REFINERS, value, what="refiner")


def test_an_unknown_argument_is_answered_with_the_known_ones():
    with pytest.raises(TypeError, match=r"refiner_kwargs of Langevin must be among \['step_size', .*got \['stepsize'\]"):
        resolve(REFINERS, "langevin", dict(stepsize=0.1), "refiner")
    with pytest.raises(TypeError, match=r"energy_kwargs of Own must be among \['size'\], got \['fixed'\]"):
        resolve({}, Own, dict(fixed=2), "energy")
    with pytest.raises(TypeError, match="unexpected keyword"):
        resolve({}, Plain, dict(sise=2), "energy")


@pytest.mark.parametrize("kwargs", [[("step_size", 0.1)], "step_size", 3])
def test_arguments_must_be_a_dict(kwargs):
    with pytest.raises(TypeError, match="refiner_kwargs must be a dict of the arguments of Langevin, got"):
        resolve(REFINERS, "langevin", kwargs, "refiner")


def test_registries_are_plain_dicts():
    registry = dict(REFINERS)
    registry["own"] = Own
    assert resolve(registry, "own", dict(size=4)) == Own(4)
    assert all(type(r) is dict for r in (REFINERS, ENERGIES, ENTROPY_ESTIMATORS))
