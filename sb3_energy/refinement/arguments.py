"""The arguments of a refined policy, checked one sentence each."""

from typing import Any

from sb3_energy.checks import check_bool, check_choice, check_integer, check_positive, check_tolerance, plain
from sb3_energy.refinement.boxes import BOXES
from sb3_energy.refinement.proposals import INITIAL_PARTICLES
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refinement.starts import is_flow
from sb3_energy.refiners import REFINERS, Identity
from sb3_energy.registry import resolve
from sb3_energy.types import Refiner


def make_refinement(
    refiner: str | type[Refiner],
    refiner_kwargs: dict[str, Any] | None,
    refiner_steps: int | None,
    n_particles: int | None,
    initial_particles: str | None,
    precondition: bool | None,
    trust_region: float | None,
    box: str = "tanh",
    tolerance: float | None = None,
    deterministic_particles: int | None = None,
) -> Refinement:
    """
    Check the arguments of a refined policy and put them together.

    :param refiner: a name in :data:`sb3_energy.refiners.REFINERS`, or a class
    :param refiner_kwargs: its arguments
    :param refiner_steps: how many steps (``None``: the refiner's own default)
    :param n_particles: how many particles (``None``: the refiner's own default)
    :param initial_particles: ``"base"``, ``"uniform"`` or ``"mixture"`` (``None``: ``"base"`` for a flow, else ``"mixture"``)
    :param precondition: whether steps are measured in units of the base's standard deviation (``None``: unless it is a flow)
    :param trust_region: step of the JKO transport cost, or ``None``
    :param box: ``"tanh"`` or ``"reflect"``
    :param tolerance: by how much the energy must fall for a deterministic refinement to go on, or ``None``
    :param deterministic_particles: how many particles without noise (``None``: as many as with it)
    :return: the refinement
    :raises ValueError: if a number or a name is not one of those that are accepted
    :raises TypeError: if something has the wrong type
    """
    instance = resolve(REFINERS, refiner, refiner_kwargs, "refiner")
    missing = [name for name in ("init", "step", "deterministic", "resamples") if not hasattr(instance, name)]
    if missing:
        raise TypeError(
            f"refiner must have init, step, deterministic and resamples, but {type(instance).__name__} lacks {missing}"
        )
    n_steps = getattr(instance, "default_steps", 1) if refiner_steps is None else refiner_steps
    n_steps = check_integer("refiner_steps", n_steps, minimum=0)
    max_steps = getattr(instance, "max_steps", None)
    if max_steps is not None and n_steps > max_steps:
        raise ValueError(f"refiner_steps must be at most {max_steps} with refiner={refiner!r}, got {n_steps}")
    n_particles = getattr(instance, "default_particles", 1) if n_particles is None else n_particles
    n_particles = check_integer("n_particles", n_particles, minimum=1)
    if isinstance(instance, Identity) and (n_particles > 1 or trust_region is not None):
        raise ValueError(
            f"refiner={refiner!r} leaves actions as they are and takes n_particles=1 and trust_region=None, "
            f"got {n_particles} and {trust_region!r}"
        )
    if isinstance(instance, Identity):
        initial_particles, precondition = _check_identity(refiner, initial_particles, precondition, box)
    if is_flow(instance):
        initial_particles, precondition = _check_flow(refiner, initial_particles, precondition, trust_region, box)
    initial_particles = "mixture" if initial_particles is None else initial_particles
    precondition = True if precondition is None else precondition
    check_choice("initial_particles", initial_particles, sorted(INITIAL_PARTICLES))
    precondition = check_bool("precondition", precondition)
    _check_options(refiner, instance, n_steps, trust_region, box, tolerance)
    _check_descents(refiner, instance, deterministic_particles)
    refinement = Refinement(
        instance,
        n_steps,
        n_particles,
        initial_particles,
        precondition,
        plain(trust_region),
        BOXES[box],
        plain(tolerance),
        plain(deterministic_particles),
    )
    if refinement.keeps_plans and (n_particles < 2 or n_steps < 1):
        raise ValueError(
            f"warm_start=True needs n_particles of at least 2 and refiner_steps of at least 1, got {n_particles} and {n_steps}"
        )
    return refinement


def _check_options(refiner: Any, instance: Refiner, n_steps: int, trust_region: Any, box: Any, tolerance: Any) -> None:
    check_positive("trust_region", trust_region)
    if trust_region is not None and instance.resamples:
        raise ValueError(f"trust_region needs a refiner that moves each particle alone, such as 'langevin', got {refiner!r}")
    check_choice("box", box, sorted(BOXES))
    check_tolerance("tolerance", tolerance)
    if tolerance is not None and n_steps < 2:
        raise ValueError(
            f"tolerance saves steps after the first and needs refiner_steps of at least 2, got {n_steps} "
            f"with refiner={refiner!r}"
        )
    if tolerance is not None and getattr(instance, "head", None) is not None:
        raise ValueError(f"tolerance needs a refiner whose steps descend the energy, got {refiner!r}")


def _check_descents(refiner: Any, instance: Refiner, deterministic_particles: Any) -> None:
    if deterministic_particles is None:
        return
    check_integer("deterministic_particles", deterministic_particles, minimum=1)
    if instance.resamples or isinstance(instance, Identity):
        raise ValueError(
            "deterministic_particles needs a refiner that moves each particle alone, such as 'langevin', "
            f"got {deterministic_particles} with refiner={refiner!r}"
        )


def _check_identity(refiner: Any, initial_particles: Any, precondition: Any, box: Any) -> tuple[str, bool]:
    only = (("initial_particles", initial_particles, "base"), ("precondition", precondition, False), ("box", box, "tanh"))
    _refuse_others(only, refiner, "which moves nothing")
    return "base", False


def _check_flow(refiner: Any, initial_particles: Any, precondition: Any, trust_region: Any, box: Any) -> tuple[str, bool]:
    # What a flow has learned starts at the base, before the squash, and nowhere else
    only = (
        ("initial_particles", initial_particles, "base"),
        ("precondition", precondition, False),
        ("trust_region", trust_region, None),
        ("box", box, "tanh"),
    )
    _refuse_others(only, refiner, "which follows what it has learned")
    return "base", False


def _refuse_others(only: tuple[tuple[str, Any, Any], ...], refiner: Any, because: str) -> None:
    """What is given, by name, and the one value that says what happens."""
    for name, value, accepted in only:
        if value is not None and not (isinstance(value, (str, bool)) and value == accepted):
            raise ValueError(f"{name} must be {accepted!r} with refiner={refiner!r}, {because}, got {value!r}")
