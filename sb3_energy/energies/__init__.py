"""Energies: low where an action is good. A new one is a file and a line in ``ENERGIES``."""

from sb3_energy.energies.own import PAGE, FunctionEnergy, as_imported, check_energy, energy_name, make_energy, trial_actions
from sb3_energy.energies.potential import GuidedPotential, PotentialEnergy
from sb3_energy.energies.q_ensemble import QEnergy, aggregate_q_values, weighed_q_values
from sb3_energy.energies.transforms import (
    added,
    folded,
    log_tanh_jacobian,
    near_proposal,
    on_box,
    reflected,
    squashed,
    standardized,
    tempered,
)
from sb3_energy.types import Energy

ENERGIES: dict[str, type[Energy]] = {
    "q": QEnergy,
    "potential": PotentialEnergy,
    "guided_potential": GuidedPotential,
}

FINITE = (QEnergy, PotentialEnergy, GuidedPotential)
"""Whose values on the box are finite wherever the parameters of their networks are."""

__all__ = [
    "ENERGIES",
    "FINITE",
    "PAGE",
    "FunctionEnergy",
    "GuidedPotential",
    "PotentialEnergy",
    "QEnergy",
    "added",
    "aggregate_q_values",
    "as_imported",
    "check_energy",
    "energy_name",
    "folded",
    "log_tanh_jacobian",
    "make_energy",
    "near_proposal",
    "on_box",
    "reflected",
    "squashed",
    "standardized",
    "tempered",
    "trial_actions",
    "weighed_q_values",
]
