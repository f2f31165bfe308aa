"""Which estimators of the entropy are valid for a refinement."""

from collections.abc import Sequence
from typing import Any

from sb3_energy.entropy import ENTROPY_ESTIMATORS, DivergenceEntropy, MixtureEntropy, PathEntropy
from sb3_energy.refinement.boxes import TanhBox
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refiners import REFINERS, MeanFlow
from sb3_energy.refiners.sequence import class_names, members_of
from sb3_energy.registry import resolve
from sb3_energy.types import EntropyEstimator, Refiner

DENSITIES = ("trace", "mixture", "path", "divergence")
"""Estimators that follow the density of the particles, which reflecting walls fold."""


LISTED = frozenset(ENTROPY_ESTIMATORS[name] for refiner in REFINERS.values() for name in refiner.estimators)
"""Valid for the refiners that list them. Any other estimator names its refiners itself, or is valid for all."""


def valid_estimators(refiner: Refiner | type[Refiner]) -> list[str]:
    """
    The names of the estimators that are valid for a refiner.

    Of a sequence, an estimator's ``looks_at`` tells whose steps it concerns: of the ``"base"`` none, of the ``"law"`` that
    comes out the last member's, which must list it. One that looks at the ``"last_step"`` also needs chains that are
    independent of each other, so that no member may compare particles, and one that follows the density along all
    ``"steps"`` (as does any that does not say) must be listed by every member.

    :param refiner: one or its class
    :return: its default first: those that it lists, and of the others those that name it in ``refiners``, by name or class,
        or that name none
    """
    members = members_of(refiner)
    last = getattr(members[-1], "estimators", ("base", "soft_value"))
    listed = [name for name in last if _holds(name, members)]
    own = {name: cls for name, cls in ENTROPY_ESTIMATORS.items() if cls not in LISTED and name not in last}
    return listed + [name for name, cls in own.items() if _is_for(cls, refiner)]


def _holds(name: str, members: Sequence[Any]) -> bool:
    """Whether an estimator that the last member lists is valid for all members in sequence."""
    looks_at = getattr(ENTROPY_ESTIMATORS.get(name), "looks_at", "steps")
    if len(members) == 1 or looks_at in ("base", "law"):
        return True
    if looks_at == "last_step":
        return not any(member.resamples for member in members)
    return all(name in getattr(member, "estimators", ()) for member in members)


def _is_for(estimator: type[EntropyEstimator], refiner: Any) -> bool:
    refiners = getattr(estimator, "refiners", None)
    if refiners is None:
        return True
    known = [REFINERS.get(one) if isinstance(one, str) else one for one in refiners]
    classes = [member if isinstance(member, type) else type(member) for member in members_of(refiner)]
    return all(cls in known for cls in classes)


def choose_estimator(
    name: str | type[EntropyEstimator] | None, kwargs: dict[str, Any] | None, refinement: Refinement
) -> EntropyEstimator:
    """
    Make an estimator that is valid for a refinement.

    :param name: in :data:`sb3_energy.entropy.ENTROPY_ESTIMATORS`, a class, or ``None`` for the refiner's own default
    :param kwargs: its arguments
    :param refinement: whose entropy it is to estimate
    :return: the estimator
    :raises ValueError: if it is not valid for this refinement
    :raises TypeError: if something has the wrong type
    """
    refiner, given = refinement.refiner, class_names(refinement.refiner)
    valid = valid_estimators(refiner)
    estimator = resolve(ENTROPY_ESTIMATORS, valid[0] if name is None else name, kwargs, "entropy_estimator")
    if not hasattr(estimator, "estimate"):
        raise TypeError(f"entropy_estimator must have a method estimate(context), {type(estimator).__name__} has none")
    name = next((known for known, cls in ENTROPY_ESTIMATORS.items() if type(estimator) is cls), None)
    if type(estimator) not in LISTED:
        if name not in valid and not _is_for(type(estimator), refiner):
            got = type(estimator).__name__
            raise ValueError(f"entropy_estimator must be one of {valid} with {given}, got {got}")
        return estimator
    if name not in valid:
        raise ValueError(f"entropy_estimator must be one of {valid} with {given}, got {name!r}")
    if name in DENSITIES and not isinstance(refinement.box, TanhBox):
        raise ValueError(f"entropy_estimator={name!r} needs box='tanh': behind reflecting walls densities are folded")
    if name in DENSITIES and refinement.n_steps < 1:
        raise ValueError(f"entropy_estimator={name!r} needs refiner_steps of at least 1, got {refinement.n_steps}")
    _check_settings(name, estimator, refinement)
    return estimator


def _check_settings(name: str, estimator: EntropyEstimator, refinement: Refinement) -> None:
    members = members_of(refinement.refiner)
    followed = members if isinstance(estimator, PathEntropy) else members[-1:]
    other = [scale for scale in (getattr(member, "noise_scale", None) for member in followed) if scale != 1.0]
    if isinstance(estimator, (MixtureEntropy, PathEntropy)) and other:
        raise ValueError(f"entropy_estimator={name!r} needs steps with noise_scale=1, got {other[0]!r}")
    if isinstance(estimator, PathEntropy) and refinement.n_particles != 1:
        raise ValueError(
            "entropy_estimator='path' needs n_particles=1, so that the density of the start is known, "
            f"got {refinement.n_particles}"
        )
    if isinstance(estimator, PathEntropy) and refinement.trust_region is not None:
        # Steps that remember where they began have no reverse kernel that does not
        raise ValueError(f"entropy_estimator='path' needs trust_region=None, got {refinement.trust_region!r}")
    if isinstance(estimator, DivergenceEntropy) and estimator.method == "learned":
        if not isinstance(refinement.refiner, MeanFlow):
            raise ValueError("method='learned' needs refiner='mean_flow', which learns its average divergence")
