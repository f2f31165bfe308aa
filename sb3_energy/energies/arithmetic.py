"""Energies by name, and the operators that make sums of them."""

from typing import Any, ClassVar

from sb3_energy.types import Energy

ENERGIES: dict[str, type[Energy]] = {}
"""Names of energies, to which users may add their own. The package's are entered in ``sb3_energy.energies``."""


class Summable:
    """
    Operators of an energy: ``energy + other`` and ``number * energy`` are a :class:`~sb3_energy.energies.Composite`.

    ``other`` is an energy, a class of energies, a function ``(observations, actions) -> (B, N)``, or a name in ``ENERGIES``.
    A class of the user's own gets the operators by inheriting from this one. Plain functions have no ``*``; use
    ``0.1 * FunctionEnergy(function)``.
    """

    __array_ufunc__: ClassVar[None] = None
    """Leaves ``np.float64(0.1) * energy`` to the energy."""

    def __add__(self, other: Any) -> Any:
        return ENERGIES["composite"](terms=(self, other))  # type: ignore[call-arg]

    def __radd__(self, other: Any) -> Any:
        return ENERGIES["composite"](terms=(other, self))  # type: ignore[call-arg]

    def __mul__(self, weight: Any) -> Any:
        return ENERGIES["composite"](terms=(self,), weights=(weight,))  # type: ignore[call-arg]

    __rmul__ = __mul__
