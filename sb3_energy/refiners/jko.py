"""Transport first, then equilibrium: Langevin's steps on the schedule of the JKO scheme."""

from sb3_energy.checks import check_integer, check_number
from sb3_energy.refiners.langevin import Langevin
from sb3_energy.schedules import LinearRamp, SquareRoot


def jko_langevin(
    n_steps: int,
    temperature: float,
    sampling_time: float = 1.0,
    transport_time: float = 0.5,
    max_displacement: float | None = 1.0,
) -> Langevin:
    """
    ``a ← a - Δt ∇U(a) + √(2 ε(t) Δt) ξ`` with ``ε(t) = 0`` until ``τ*`` and a straight line from there up to ``ε``: transport
    by the potential far from the data, then sampling of ``exp(-U / ε)`` (Jordan, Kinderlehrer and Otto 1998; the schedule is
    Energy Matching's, Balcerak et al. 2025, section 3).

    It is :class:`Langevin` on the energy ``U / ε`` with the step ``2 ε Δt`` and the noise scale ``√(ε(t) / ε)``.

    :param n_steps: how many steps the refinement has, so that ``Δt`` is the time over it
    :param temperature: ``ε``, of the energy it is used on
    :param sampling_time: of all steps together; a velocity that was learned takes the base to the data in a time of 1
    :param transport_time: ``τ*``, from which on there is noise; never, if it is not before the end
    :param max_displacement: largest drift of a coordinate in one step (``None``: any)
    :return: the refiner
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    """
    check_integer("n_steps", n_steps, minimum=1)
    check_number("temperature", temperature, strict=True)
    check_number("sampling_time", sampling_time, strict=True)
    check_number("transport_time", transport_time)
    step_size, part = 2.0 * temperature * sampling_time / n_steps, transport_time / sampling_time
    if part >= 1.0:
        return Langevin(step_size, 0.0, max_displacement=max_displacement)
    return Langevin(step_size, SquareRoot(LinearRamp(0.0, 1.0, start=part)), max_displacement=max_displacement)
