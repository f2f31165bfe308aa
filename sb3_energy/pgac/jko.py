"""The JKO scheme of a potential's policy, as refiners in sequence: transport without noise, then a chain."""

import math
from typing import Any, NamedTuple

from sb3_energy.checks import check_integer
from sb3_energy.refiners import REFINERS, Langevin, MetropolisAdjustedLangevin, jko_langevin
from sb3_energy.registry import resolve
from sb3_energy.schedules import Geometric

TESTED, UNTESTED = ("mala", MetropolisAdjustedLangevin), ("langevin", Langevin)
"""Refiners that take the steps of the scheme, with and without a Metropolis test of those with noise."""

SHORTEST_STEP = 0.1
"""Of the steps that are tested the last one is shorter than the first by this factor. Two modes in a box have more curvature
than a step of the transport allows: what the test rejects, a later and shorter step moves."""


class Members(NamedTuple):
    """
    Refiners in sequence as arguments of a refinement.

    :param refiners: names or classes
    :param kwargs: keyword arguments of each
    :param steps: how many each takes
    """

    refiners: list[Any]
    kwargs: list[Any]
    steps: list[Any]


def is_jko(refiner: Any) -> bool:
    """
    Whether a potential's refiner takes the steps of the JKO scheme.

    :param refiner: a name or a class
    :return: whether it is ``"mala"`` or ``"langevin"``
    """
    return any(refiner == one or refiner is one for one in TESTED + UNTESTED)


def jko_members(
    refiner: Any, kwargs: Any, n_steps: int, *, temperature: float, sampling_time: float, transport_time: float
) -> Members:
    """
    The scheme with steps of ``Δt = sampling_time / n_steps`` (Jordan, Kinderlehrer and Otto 1998; Energy Matching, Balcerak et
    al. 2025, section 3). Steps that begin before ``τ*`` are ``a ← a - Δt ∇U(a)``. The others sample ``exp(-U / ε)``: by
    ``"mala"`` at ``ε`` from the first one on, since a Metropolis test needs one law, and with steps that become shorter; by
    ``"langevin"`` with a noise that rises to that of ``ε``, and no test.

    :param refiner: one that :func:`is_jko`
    :param kwargs: its keyword arguments, without those that follow from the times
    :param n_steps: of transport and sampling together
    :param temperature: ``ε``
    :param sampling_time: of all steps together
    :param transport_time: ``τ*``
    :return: the refiners that are to follow each other
    :raises ValueError: if an argument is out of range, or a keyword argument follows from the times
    :raises TypeError: if something has the wrong type
    """
    given = dict(kwargs) if isinstance(kwargs, dict) else {}
    name = "mala" if refiner in TESTED else "langevin"
    fixed = sorted({"step_size", "noise_scale"} & set(given))
    if fixed:
        raise ValueError(
            f"refiner_kwargs of a potential's {name!r} must leave {fixed} to sampling_time and transport_time, got {given}"
        )
    resolve(REFINERS, refiner, kwargs, "refiner")  # raises for wrong arguments
    check_integer("refiner_steps", n_steps, minimum=1)
    jko = jko_langevin(n_steps, temperature, sampling_time, transport_time)
    if name == "langevin":
        return Members([refiner], [given | dict(step_size=jko.step_size, noise_scale=jko.noise_scale)], [n_steps])
    longest = float(jko.step_size)  # type: ignore[arg-type]
    bounds = {key: given[key] for key in ("max_grad_norm", "max_displacement") if key in given}
    # Less the rounding of the two times, which must not cost a step
    n_transport = max(0, min(math.ceil(n_steps * transport_time / sampling_time - 1e-9), n_steps))
    if n_transport == n_steps and given.get("target_acceptance") is not None:
        raise ValueError(
            "target_acceptance needs steps with noise, transport_time below sampling_time, "
            f"got {transport_time!r} and {sampling_time!r}"
        )
    members = [
        ("langevin", bounds | dict(step_size=longest, noise_scale=0.0), n_transport),
        (refiner, given | dict(step_size=Geometric(longest, SHORTEST_STEP * longest)), n_steps - n_transport),
    ]
    return Members(*map(list, zip(*(member for member in members if member[2] > 0), strict=True)))
