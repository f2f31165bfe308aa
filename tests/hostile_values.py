"""Values that no argument expects, and where each argument is given."""

from typing import Any

import numpy as np
from torch import nn

from sb3_energy import PGAC
from tests.contracts.test_argument_contract import COMPARISONS

SAMPLES = np.random.default_rng(0).uniform(-1.0, 1.0, size=(20, 2))


class Thing:
    """Of no use."""

    def __repr__(self):
        return "<a thing>"


def function(*args: Any) -> None:
    """Returns nothing."""


VALUES: list[Any] = [
    *(float("nan"), float("inf"), float("-inf"), -1, 0, -0.5, 1.5, 2**63, -(2**63), 10**12, 1e308, 1j, True),
    *("", "no such thing", "auto_nan", b"bytes", None, [], {}, (), [0], [None], {"a": 1}, {1: 2}, (1, "step", 2)),
    *(Thing(), Thing, int, nn.Linear, function, np.float32("nan"), np.int64(-3), np.array([1.0, 2.0]), np.array("x")),
]

NOT_THROWN = {
    (place, name) for place in ("EnergySAC", "PGAC") for name in ("_init_setup_model", "tensorboard_log")
}  # SB3's own, and a folder that would be made
SMALL_MATCHING = dict(net_arch=[4], batch_size=8, n_steps=3, warm_up_steps=1, device="cpu", seed=0)


def is_of_pgac(place: str) -> bool:
    """
    :param place: of an argument
    :return: whether its algorithm is PGAC
    """
    found = [comparison for (where, _), comparison in COMPARISONS.items() if where == place]
    return place == "PotentialPolicy" or (bool(found) and found[0].algorithm is PGAC)


def arguments(place: str, name: str, value: Any) -> dict[str, Any]:
    """
    :param place: what the argument is one of
    :param name: its name
    :param value: its value
    :return: arguments of the algorithm, or of EnergyMatching, under which it would make a difference
    """
    if place == "EnergyMatching":
        return SMALL_MATCHING | {name: value}
    found = COMPARISONS.get((place, name))
    if found is not None:
        return _with(found.without, found.beside, name, value)
    if place in ("EnergySAC", "PGAC"):
        return {name: value}
    if place in ("RefinedPolicy", "PotentialPolicy"):
        return dict(policy_kwargs={"net_arch": [8], name: value})
    refiner = place.removeprefix("refiner ")  # those of which no training says anything
    return dict(policy_kwargs=dict(net_arch=[8], refiner=refiner, refiner_kwargs={name: value}))


def _with(without: dict[str, Any], beside: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    (key, inner), *_ = beside.items()
    if key == name:
        return without | {name: value}
    below = without.get(key, {"net_arch": [8]} if key == "policy_kwargs" else {})
    return without | {key: _with(below, inner, name, value)}
