"""The algorithms that benchmarks of trainings compare: names of (class, keyword arguments)."""

import importlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch as th
from stable_baselines3 import SAC

from sb3_energy.energy_sac.presets import flash_sac_kwargs
from sb3_energy.pgac.potential_training import PotentialTraining
from sb3_energy.schedules import Cosine

ENERGY_SAC = "sb3_energy:EnergySAC"
PGAC = "sb3_energy:PGAC"
REFINED = (ENERGY_SAC, PGAC)
"""Algorithms whose policy refines what a Gaussian says."""


@dataclass(frozen=True)
class Variant:
    """
    One line of the comparison.

    :param name: what it is called in tables, plots and file names
    :param algorithm: ``"module:Class"``, imported only in the process that trains
    :param kwargs: keyword arguments of the class, JSON types only (``activation_fn`` as the name of a ``torch.nn`` class)
    """

    name: str
    algorithm: str = ENERGY_SAC
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def _unrefined(name: str, backbone: str) -> Variant:
    """SAC's own update and a single unverified action, on another network body."""
    return Variant(name, ENERGY_SAC, {"policy_kwargs": {"refiner": "none", "n_particles": 1, "backbone": backbone}})


def _flash(name: str, **policy_kwargs: Any) -> Variant:
    """FlashSAC's settings with networks of a quarter of the paper's width, for a CPU."""
    widths: dict[str, Any] = {"net_arch": {"pi": [32, 32], "qf": [64, 64]}}
    kwargs = flash_sac_kwargs(policy_kwargs=widths | policy_kwargs)
    rate = kwargs["learning_rate"]
    kwargs |= {"learning_rate": {"cosine": [rate.initial, rate.final]}}
    kwargs["policy_kwargs"] |= {"log_std_range": list(kwargs["policy_kwargs"]["log_std_range"])}
    return Variant(name, ENERGY_SAC, kwargs)


_UNGUIDED: dict[str, Any] = {"policy_kwargs": {"energy_kwargs": {"guidance": 0.0}}}
_NO_WAYS = {"transport_coef": 0.0, "divergence_coef": 0.0}

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("sac", "stable_baselines3:SAC"),
        Variant("sac_networks", ENERGY_SAC, {"policy_kwargs": {"refiner": "none"}}),
        _unrefined("sac_layer_norm", "layer_norm"),
        _unrefined("sac_simba", "simba"),
        _unrefined("sac_bro", "bro"),
        Variant("energy_sac"),
        _flash("sac_flash", refiner="none"),
        _flash("energy_sac_flash"),
        Variant("pgac", PGAC),
        Variant("pgac_no_transport", PGAC, {"transport_coef": 0.0}),
        Variant("pgac_no_divergence", PGAC, {"divergence_coef": 0.0}),
        Variant("pgac_no_q", PGAC, {**_UNGUIDED}),
        Variant("pgac_no_value_weight", PGAC, {"value_weight": None}),
        Variant("pgac_best", PGAC, {"potential_training_kwargs": {"positives": "best"}}),
        Variant("pgac_cold", PGAC, {"policy_kwargs": {"energy_kwargs": {"temperature": 0.03}}}),
        Variant("pgac_gradient_matching", PGAC, {**_UNGUIDED, **_NO_WAYS, "matching_coef": 1.0}),
        Variant("pgac_end_to_end", PGAC, {**_UNGUIDED, "end_to_end_coef": 1.0}),
    )
}


def parse_json_object(text: str, what: str) -> dict[str, Any]:
    """
    Read keyword arguments from the command line.

    :param text: a JSON object
    :param what: the option's name, for the error message
    :return: the keyword arguments
    :raises ValueError: if the text is anything else
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} must be a JSON object of keyword arguments, got {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object of keyword arguments, got {text!r}")
    return value


def parse_variant(text: str) -> Variant:
    """
    Read ``NAME=JSON`` (or ``NAME:ALGORITHM=JSON``, with the name of a known variant whose class and arguments are the start).

    :param text: the option's value
    :return: EnergySAC with these keyword arguments (or the named variant with these changes)
    :raises ValueError: if the form is another, or the name is taken
    """
    head, equals, kwargs = text.partition("=")
    name, _, base = head.partition(":")
    if not equals or not name or not name.replace("_", "").replace("-", "").replace(".", "").isalnum():
        raise ValueError(f"--variant must be NAME=JSON with a NAME of letters, digits, '_', '-' and '.', got {text!r}")
    if name in VARIANTS:
        raise ValueError(f"--variant must have a name of its own, got {name!r}, which is one of {sorted(VARIANTS)}")
    start = find_variant(base or "energy_sac", VARIANTS)
    return Variant(name, start.algorithm, merge(start.kwargs, parse_json_object(kwargs, f"--variant {name}")))


def find_variant(name: str, variants: Mapping[str, Variant]) -> Variant:
    """
    :param name: the variant's name
    :param variants: the table to look in
    :return: the variant
    :raises ValueError: if there is none
    """
    if name not in variants:
        raise ValueError(f"--algos must be among {sorted(variants)} or defined with --variant, got {name!r}")
    return variants[name]


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param below: keyword arguments
    :param above: keyword arguments that win over them; dictionaries are merged key by key
    :return: both
    """
    merged = dict(below)
    for key, value in above.items():
        both_dicts = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both_dicts else value
    return merged


def algorithm_class(path: str) -> type[SAC]:
    """
    :param path: ``"module:Class"``
    :return: the class
    """
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def constructor_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param kwargs: keyword arguments in JSON types
    :return: the same with the activation function's name replaced by the class, and ``{"cosine": [initial, final]}`` as a
        learning rate by the schedule
    """
    arguments = merge({}, kwargs)
    if isinstance(arguments.get("learning_rate"), dict):
        arguments["learning_rate"] = Cosine(*arguments["learning_rate"]["cosine"])
    policy_kwargs = arguments.get("policy_kwargs")
    if policy_kwargs and isinstance(policy_kwargs.get("activation_fn"), str):
        policy_kwargs["activation_fn"] = getattr(th.nn, policy_kwargs["activation_fn"])
    return arguments


def defaults_of(variant: Variant) -> dict[str, str]:
    """
    The default of every argument of a variant's algorithm, ``MlpPolicy``, refiner and energy, base classes included.
    Stored with a run, so that a result trained with yesterday's defaults is never shown as today's.

    :param variant: the algorithm and its keyword arguments
    :return: ``"Class.argument" -> repr(default)``
    """
    algorithm = algorithm_class(variant.algorithm)
    owners: list[type] = [algorithm, algorithm.policy_aliases["MlpPolicy"]]
    if variant.algorithm in REFINED:
        owners += _parts(owners[1], variant.kwargs.get("policy_kwargs", {}))
    if variant.algorithm == PGAC:
        owners.append(PotentialTraining)
    found: dict[str, str] = {}
    for owner in owners:
        for cls in reversed(owner.__mro__):
            if cls.__module__.partition(".")[0] in ("sb3_energy", "stable_baselines3"):
                found |= {f"{owner.__name__}.{name}": _stable_repr(default) for name, default in _own_defaults(cls)}
    return found


def _parts(policy: type, policy_kwargs: Mapping[str, Any]) -> list[type]:
    """The refiner's and the energy's class, named in ``policy_kwargs`` or by default."""
    from sb3_energy.energies import ENERGIES
    from sb3_energy.refiners import REFINERS

    defaults = {name: parameter.default for name, parameter in inspect.signature(policy).parameters.items()}
    parts: list[type] = []
    for registry, key in ((REFINERS, "refiner"), (ENERGIES, "energy")):
        name = policy_kwargs.get(key, defaults[key])
        if name not in registry:
            raise ValueError(f"{key} must be one of {sorted(registry)}, got {name!r}")
        parts.append(registry[name])
    return parts


def _own_defaults(cls: type) -> list[tuple[str, Any]]:
    constructor = vars(cls).get("__init__")
    parameters = inspect.signature(constructor).parameters.values() if constructor is not None else ()
    found = [(parameter.name, parameter.default) for parameter in parameters]
    class_wide = [(name, value) for name, value in vars(cls).items() if name.startswith("default_")]
    return [(name, value) for name, value in found + class_wide if value is not inspect.Parameter.empty]


def _stable_repr(value: Any) -> str:
    """``repr`` without memory addresses, which differ between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
