"""The arguments of a policy with a potential: a refined policy's with other defaults, and those of the JKO scheme."""

from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch as th

from sb3_energy.checks import check_keywords, check_number
from sb3_energy.energies import ENERGIES, make_energy
from sb3_energy.keywords import argument, changed, documented
from sb3_energy.networks import PotentialNetwork, find_activation
from sb3_energy.pgac.jko import UNTESTED, is_jko, jko_members
from sb3_energy.policies.arguments import PolicyArguments
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.chosen_refiner import each, is_list
from sb3_energy.refinement.proposals import INITIAL_PARTICLES
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refiners import Identity
from sb3_energy.types import Energy, Refiner

JKO_STEPS = 6
"""Default number of steps of the JKO scheme: transport and sampling together."""

JKO_PARTICLES = 32
"""Default number of particles with the JKO scheme: fewer than elsewhere, since the potential also leads to the modes."""

POTENTIAL_ARGUMENTS = ("net_arch", "activation_fn", "layer_norm", "spectral_norm", "input_gain")

NORMAL = "normal"
"""A further choice of ``initial_particles``: a standard Gaussian, pre-tanh, at every observation."""


def potential_settings(potential_kwargs: Any) -> dict[str, Any]:
    """
    Check the keyword arguments of the potential network.

    :param potential_kwargs: of the policy, or ``None``
    :return: keyword arguments of :class:`sb3_energy.networks.PotentialNetwork`, without those that are ``None``
    :raises ValueError: if a value is not accepted
    :raises TypeError: if they are no dict, or the network does not take one of them
    """
    if potential_kwargs is None:
        return {}
    if not isinstance(potential_kwargs, dict):
        raise TypeError(f"potential_kwargs must be a dict, got {potential_kwargs!r}")
    check_keywords("potential_kwargs", potential_kwargs, POTENTIAL_ARGUMENTS)
    given = {name: value for name, value in potential_kwargs.items() if value is not None}
    if "activation_fn" in given:
        given["activation_fn"] = find_activation(given["activation_fn"])
    PotentialNetwork(1, 1, **(dict(net_arch=[1]) | given))  # raises for wrong values
    return given


@documented
@dataclass(frozen=True)
class PotentialArguments(PolicyArguments):
    """
    The arguments of a policy with a potential that are not SB3's.

    :raises ValueError: if a name or a number is not one of those that are accepted
    :raises TypeError: if an argument has the wrong type
    """

    refiner: str | type[Refiner] | list[Any] = changed(
        PolicyArguments,
        "refiner",
        doc="As in ``RefinedPolicy``, but not ``'none'``; ``'mala'`` and ``'langevin'``, alone or first in a list, take the "
        "steps of the JKO scheme, with and without a Metropolis test",
    )
    refiner_kwargs: dict[str, Any] | list[Any] | None = argument(
        None,
        "Keyword arguments of the refiner, as in ``RefinedPolicy``; of one that takes the JKO scheme's steps not "
        "``step_size`` and ``noise_scale``, which follow from ``sampling_time`` and ``transport_time``",
    )
    refiner_steps: int | list[Any] | None = changed(
        PolicyArguments, "refiner_steps", doc=f"Number of refinement steps (``None``: {JKO_STEPS} in the JKO scheme)"
    )
    n_particles: int | None = changed(
        PolicyArguments,
        "n_particles",
        doc=f"Number of particles for each observation (``None``: {JKO_PARTICLES} in the JKO scheme)",
    )
    initial_particles: str | None = changed(
        PolicyArguments,
        "initial_particles",
        doc="As in ``RefinedPolicy``, or ``'normal'``: a standard Gaussian, pre-tanh, at every observation",
        choices=ChainMap({NORMAL: 0.0}, INITIAL_PARTICLES),
    )
    precondition: bool | None = changed(
        PolicyArguments,
        "precondition",
        default=False,
        doc="As in ``RefinedPolicy``, but ``False`` by default: the potential is a velocity in the box",
    )
    energy: str | type[Energy] | Callable[..., th.Tensor] | Energy = changed(
        PolicyArguments,
        "energy",
        default="guided_potential",
        doc="``'guided_potential'``, ``'potential'``, a class with ``needs_potential = True`` and a ``temperature``, or a sum "
        "with one of these",
    )
    energy_kwargs: dict[str, Any] | None = changed(
        PolicyArguments,
        "energy_kwargs",
        doc="Keyword arguments of the energy: ``guidance`` (``λ``), ``temperature`` (``ε``), ``normalize_q``, ``aggregate``, "
        "``coefficient``",
    )
    trust_region: float | None = changed(
        PolicyArguments,
        "trust_region",
        doc="Step ``Δt`` of the transport cost ``|a - a_start|² / (2 Δt)``, in units of ``U`` (``None``: no cost)",
    )
    box: str = changed(PolicyArguments, "box", default="reflect")
    tolerance: float | None = changed(PolicyArguments, "tolerance", doc="As in ``RefinedPolicy``, in units of ``U / ε``")
    sampling_time: float | None = argument(
        None, "Time of the JKO scheme, of all steps together (``None``: 1)", partial(check_number, strict=True)
    )
    transport_time: float | None = argument(
        None,
        "``τ*``, until which there is no noise (``None``: half of the sampling time; with ``'mala'`` 0 if ``n_particles`` is "
        "above 1, since starts are then chosen by their energy)",
        check_number,
    )
    potential_kwargs: dict[str, Any] | None = argument(
        None,
        "Keyword arguments of the potential: ``net_arch`` (``None``: the critic's, or ``[64, 64]`` where that has no hidden "
        "layer), ``activation_fn``, ``layer_norm``, ``spectral_norm``, ``input_gain``, see "
        ":class:`sb3_energy.networks.PotentialNetwork`",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        potential_settings(self.potential_kwargs)

    def make_energy(self) -> Energy:
        """
        Construct the energy that the refiner follows.

        :return: an energy made of the potential
        :raises ValueError: if its name or an argument is not accepted, or it is not made of the potential
        :raises TypeError: if it is no energy, or does not take these arguments
        """
        energy = make_energy(ENERGIES, self.energy, self.energy_kwargs)
        if not getattr(energy, "needs_potential", False):
            raise ValueError(
                "energy must be made of the potential and say so by needs_potential=True, such as 'guided_potential', "
                f"got {self.energy!r}; EnergySAC follows other energies"
            )
        return energy

    def make_refinement(self) -> Refinement:
        """
        Construct the sampler that refines actions.

        :return: the refinement of the energy ``U / ε``; with ``"mala"`` and ``"langevin"``, by the steps of the JKO scheme
        :raises ValueError: if two arguments do not go together, or one would have no effect beside the others
        :raises TypeError: if the refiner is none
        """
        if self.refiner == "none" or (isinstance(self.refiner, type) and issubclass(self.refiner, Identity)):
            raise ValueError(
                f"refiner must be one that follows the potential, such as 'mala', got {self.refiner!r}; EnergySAC takes it"
            )
        epsilon = getattr(self.make_energy(), "temperature", 1.0)
        changes: dict[str, Any] = dict(trust_region=None if self.trust_region is None else self.trust_region * epsilon)
        if self.initial_particles == NORMAL:
            changes |= dict(initial_particles="base")
        if any(map(is_jko, self._chosen()[:1])):
            changes |= dict(n_particles=JKO_PARTICLES if self.n_particles is None else self.n_particles)
            changes |= self._jko(epsilon, changes["n_particles"])
        else:
            for name in ("sampling_time", "transport_time"):
                if (value := getattr(self, name)) is not None:
                    of = "the JKO scheme of refiner='mala' or 'langevin'"
                    raise ValueError(f"{name} belongs to {of}, got {value!r} with {self.refiner!r}")
        same = {field.name: getattr(self, field.name) for field in fields(RefinementArguments)}
        return RefinementArguments(**(same | changes)).make_refinement()

    def _chosen(self) -> list[Any]:
        return list(self.refiner) if isinstance(self.refiner, (list, tuple)) else [self.refiner]

    def _jko(self, epsilon: float, n_particles: int) -> dict[str, Any]:
        """The refiners, their steps and keyword arguments, with the JKO scheme's in the place of the first."""
        (first, *others), time = self._chosen(), 1.0 if self.sampling_time is None else self.sampling_time
        if is_list(self.refiner):
            kwargs = each(self._chosen(), self.refiner_kwargs, "refiner_kwargs", "dict")
            steps = each(self._chosen(), self.refiner_steps)
        else:
            kwargs, steps = [self.refiner_kwargs], [self.refiner_steps]
        # Starts that are chosen by their energy are where transport leads to, and a descent would take them out of equilibrium
        default = 0.0 if n_particles > 1 and first not in UNTESTED else 0.5 * time
        found = jko_members(
            first,
            kwargs[0],
            JKO_STEPS if steps[0] is None else steps[0],
            temperature=epsilon,
            sampling_time=time,
            transport_time=default if self.transport_time is None else self.transport_time,
        )
        refiners, kwargs, steps = [*found.refiners, *others], [*found.kwargs, *kwargs[1:]], [*found.steps, *steps[1:]]
        return dict(refiner=refiners, refiner_kwargs=kwargs, refiner_steps=steps)
