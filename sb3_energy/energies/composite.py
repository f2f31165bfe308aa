"""Weighted sums of energies, which are products of experts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_energy.autodiff import energy_and_grad, has_gradient
from sb3_energy.checks import check_finite_number
from sb3_energy.energies.arithmetic import ENERGIES, Summable
from sb3_energy.energies.own import energy_name, make_energy
from sb3_energy.energies.potential import GuidedPotential, PotentialEnergy
from sb3_energy.energies.q_ensemble import QEnergy
from sb3_energy.types import Energy, EnergyFn, Networks

OF_A_POTENTIAL = ("temperature", "guidance", "aggregate", "coefficient", "temperature_of_q")
"""What PGAC reads from an energy that is made of its potential."""


@dataclass(frozen=True)
class Composite(Summable):
    """
    ``E(s, a) = Σ_i w_i E_i(s, a)``, so that ``exp(-E)`` is a product of experts ``Π_i exp(-E_i)^{w_i}`` (Hinton 2002).

    A term is an energy, a name in ``ENERGIES``, a class of energies, or a function ``(observations, actions) -> (B, N)``;
    ``(term, kwargs)`` gives it arguments. ``QEnergy() + 0.1 * FunctionEnergy(effort)`` makes one as well. Terms that are
    themselves sums are expanded; terms of weight 0 are not evaluated.

    Weights are numbers. A refinement draws from one energy: its refiner compares and accepts energies across steps, so weights
    that change along it would not sample anything. What anneals a refinement are the schedules of its refiner.

    A policy divides the whole sum by its temperature (SAC's entropy coefficient): weights set how the terms compare with each
    other, the temperature how sharp their sum is. In PGAC at most one term is made of the potential ``V``; of weight ``w`` and
    temperature ``ε`` it is ``V / (ε / w)``, so the temperature of the sum is ``ε / w``.

    :param terms: of the sum
    :param weights: one number for each term (``None``: 1)
    :raises ValueError: if there is no term, a number of weights is wrong, or a weight is NaN or infinity
    :raises TypeError: if a term is not an energy, or a weight is not a number
    """

    terms: tuple[Any, ...] = ("q",)
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.terms, (list, tuple)) or not self.terms:
            raise TypeError(f"terms must be a list of at least one energy, got {self.terms!r}")
        weights = (1.0,) * len(self.terms) if self.weights is None else self.weights
        if not isinstance(weights, (list, tuple)) or len(weights) != len(self.terms):
            raise ValueError(f"weights must be a list of {len(self.terms)} numbers, one for each term, got {weights!r}")
        made = [
            (inner, _weight(weight) * factor)
            for term, weight in zip(self.terms, weights, strict=True)
            for inner, factor in _expanded(_made(term))
        ]
        object.__setattr__(self, "terms", tuple(term for term, _ in made))
        object.__setattr__(self, "weights", tuple(weight for _, weight in made))
        if not any(self.weights or ()):
            raise ValueError("weights must not all be 0")
        of_potential = [weight for term, weight in made if getattr(term, "needs_potential", False)]
        if len(of_potential) > 1 or any(weight <= 0.0 for weight in of_potential):
            raise ValueError(f"at most one term may be made of the potential, with a weight above 0, got {of_potential}")

    @property
    def needs_potential(self) -> bool:
        """Whether a term is made of PGAC's potential."""
        return any(getattr(term, "needs_potential", False) for term in self.terms)

    def __getattr__(self, name: str) -> Any:
        if name in OF_A_POTENTIAL:
            for term, weight in zip(self.terms, self.weights or (), strict=True):
                if getattr(term, "needs_potential", False):
                    if name == "temperature_of_q":
                        asks = getattr(term, "guidance", 1.0) != 0.0
                        return partial(_joint_temperature, getattr(term, name), weight, asks, self._weight_of_q())
                    return getattr(term, name, 1.0) / weight if name == "temperature" else getattr(term, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def _weight_of_q(self) -> float:
        """Of the terms that are the critic's value alone."""
        return sum(weight for term, weight in zip(self.terms, self.weights or (), strict=True) if isinstance(term, QEnergy))

    def named(self) -> dict[str, Energy]:
        """
        The terms by name: that of the registry, or of the function or class; a second one of a name is ``name_2``.

        :return: one item for each term
        """
        found: dict[str, Energy] = {}
        for term in self.terms:
            name = next((name for name, cls in ENERGIES.items() if type(term) is cls), energy_name(term).split(".")[-1])
            numbered = (f"{name}_{i}" for i in count(2))
            found[name if name not in found else next(free for free in numbered if free not in found)] = term
        return found

    def bind(self, networks: Networks, obs: PyTorchObs) -> "BoundComposite":
        """
        Bind each term to the observations.

        :param networks: of the terms
        :param obs: ``B`` observations
        :return: ``(B, N, A) -> (B, N)``
        """
        parts = zip(self.named().items(), self.weights or (), strict=True)
        bound = {name: (weight, term.bind(networks, obs)) for (name, term), weight in parts if weight != 0.0}
        return BoundComposite(tuple(bound), *zip(*bound.values(), strict=True))


def _joint_temperature(of_term: Any, weight: float, asks: bool, weight_of_q: float, q_scale: Any) -> Any:
    """``T`` of ``exp(Q / T)`` of a potential with guidance and terms of the critic alone: rates add up."""
    of_potential = of_term(q_scale) / weight
    if weight_of_q <= 0.0:
        return of_potential
    return 1.0 / (weight_of_q + (1.0 / of_potential if asks else 0.0))


@dataclass(frozen=True, eq=False)
class BoundComposite:
    """
    A weighted sum that is bound to its observations.

    :param names: of the terms
    :param weights: of the terms
    :param fns: the terms, each ``(B, N, A) -> (B, N)``
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    fns: tuple[EnergyFn, ...]

    def __call__(self, actions: th.Tensor) -> th.Tensor:
        """``(B, N, A) -> (B, N)``."""
        total = self.weights[0] * self.fns[0](actions)
        for weight, fn in zip(self.weights[1:], self.fns[1:], strict=True):
            total = total + weight * fn(actions)
        return total

    def energy_and_grad(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """``(B, N)`` and ``(B, N, A)``, without a graph: the sums of the terms', each by its own rule."""
        energies, gradients = energy_and_grad(self.fns[0], actions)
        energies, gradients = self.weights[0] * energies, self.weights[0] * gradients
        for weight, fn in zip(self.weights[1:], self.fns[1:], strict=True):
            more, slopes = energy_and_grad(fn, actions)
            energies, gradients = energies + weight * more, gradients + weight * slopes
        return energies, gradients

    def has_gradient(self, actions: th.Tensor) -> bool:
        """Whether a term is differentiable with respect to ``(B, N, A)``."""
        return any(has_gradient(fn, actions) for fn in self.fns)

    def of_starts(self) -> "BoundComposite":
        """The same sum with the terms by which starts are chosen."""
        return replace(self, fns=tuple(getattr(fn, "of_starts", lambda fn=fn: fn)() for fn in self.fns))

    def parts(self) -> dict[str, EnergyFn]:
        """The weighted terms by name, each divided into its own parts if it has any; they add up to the sum."""
        found: dict[str, EnergyFn] = {}
        for name, weight, fn in zip(self.names, self.weights, self.fns, strict=True):
            parts = fn.parts() if hasattr(fn, "parts") else {name: fn}
            found |= {key: replace(self, names=(key,), weights=(weight,), fns=(part,)) for key, part in parts.items()}
        return found

    def means(self, actions: th.Tensor) -> dict[str, th.Tensor]:
        """
        The mean of each weighted term, for the log.

        :param actions: ``(B, N, A)``
        :return: scalars by name of the term, which add up to the mean of the sum
        """
        return {name: weight * fn(actions).mean() for name, weight, fn in zip(self.names, self.weights, self.fns, strict=True)}


def parts_of(energy: Energy) -> dict[str, Energy]:
    """
    What to check of an energy: the terms of a sum by name, then the energy itself.

    :param energy: any
    :return: energies by name
    """
    terms = energy.named() if isinstance(energy, Composite) else {}
    return {**terms, energy_name(energy): energy}


def _made(term: Any) -> Energy:
    term, kwargs = term if _has_arguments(term) else (term, None)
    if hasattr(term, "bind") and not isinstance(term, (type, Summable)) and kwargs is None:
        return term  # an instance of a user's own class
    return make_energy(ENERGIES, term, kwargs)


def _has_arguments(term: Any) -> bool:
    return isinstance(term, (list, tuple)) and len(term) == 2 and isinstance(term[1], Mapping)


def _expanded(term: Energy) -> list[tuple[Energy, float]]:
    return [*zip(term.terms, term.weights or (), strict=True)] if isinstance(term, Composite) else [(term, 1.0)]


def _weight(weight: Any) -> float:
    if callable(weight):
        raise TypeError(
            f"weights must be numbers, got {weight!r}: a refinement draws from one energy, whose weights cannot change "
            "along it; anneal by the schedules of the refiner (step_size, noise_scale)"
        )
    return float(check_finite_number("weights", weight))


FINITE = (QEnergy, PotentialEnergy, GuidedPotential)
"""Whose values on the box are finite wherever the parameters of their networks are."""


def is_finite_energy(energy: Energy) -> bool:
    """
    Whether an energy's values on the box are finite wherever the parameters of the networks are.

    :param energy: any
    :return: true for the package's energies and their sums
    """
    return all(type(term) in FINITE for term in (energy.terms if type(energy) is Composite else (energy,)))
