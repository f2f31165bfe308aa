"""The refiner that the arguments of a refinement name: one, or several in sequence."""

from collections.abc import Sequence
from typing import Any, cast

from sb3_energy.checks import check_integer
from sb3_energy.refiners import REFINERS, Identity, RefinerSequence
from sb3_energy.registry import resolve
from sb3_energy.types import Refiner


def is_list(value: Any) -> bool:
    """
    Whether an argument holds one value for each refiner of a sequence.

    :param value: any
    :return: whether it is a list or a tuple
    """
    return isinstance(value, (list, tuple))


def check_steps(name: str, value: Any) -> Any:
    """
    Check the number of steps, or that of each refiner in sequence.

    :param name: of the argument
    :param value: an integer of at least 0, or a list of integers of at least 1 and ``None``
    :return: plain integers
    :raises TypeError: if something is no integer
    :raises ValueError: if a number is out of range
    """
    if not is_list(value):
        return check_integer(name, value, minimum=0)
    return [None if n is None else check_integer(f"a number of {name}", n, minimum=1) for n in value]


def make_refiner(chosen: Any, kwargs: Any, n_steps: Any) -> tuple[Refiner, int]:
    """
    Make a refiner, or a sequence of several. A list of one is that one.

    :param chosen: a name in :data:`sb3_energy.refiners.REFINERS`, a class, or a list of these
    :param kwargs: its keyword arguments, for a list ``None`` or a list of dicts and ``None``
    :param n_steps: how many steps, for a list ``None`` or a list of numbers and ``None`` (``None``: the refiner's default)
    :return: the refiner and its number of steps
    :raises ValueError: if a name or a number is not accepted, or the refiners do not go together
    :raises TypeError: if one is no refiner, or an argument has the wrong type
    """
    if not is_list(chosen):
        return _made(chosen, kwargs, n_steps)
    if not chosen:
        raise ValueError("refiner must name at least one refiner, got an empty list")
    given = zip(chosen, each(chosen, kwargs, "refiner_kwargs", "dict"), each(chosen, n_steps), strict=True)
    made = [_made(*one) for one in given]
    for one, (refiner, _) in zip(chosen, made, strict=True):
        if isinstance(refiner, Identity):
            raise ValueError(f"a list of refiners must be without {one!r}, which moves nothing, got {list(chosen)!r}")
    if len(made) == 1:
        return made[0]
    members, steps = zip(*made, strict=True)
    return cast(Refiner, RefinerSequence(members, steps)), sum(steps)


def each(chosen: Sequence[Any], values: Any, name: str = "refiner_steps", what: str = "number") -> list[Any]:
    """
    One value for each refiner of a list.

    :param chosen: the refiners
    :param values: a list with one for each, or ``None`` for all defaults
    :param name: of the argument
    :param what: each of the values is, for the error message
    :return: one for each
    :raises ValueError: if they are not as many
    :raises TypeError: if they are no list
    """
    if values is None:
        return [None] * len(chosen)
    message = f"{name} must be a list with one {what} or None for each of refiner={list(chosen)!r}, got {values!r}"
    if not is_list(values):
        raise TypeError(message)
    if len(values) != len(chosen):
        raise ValueError(message)
    return list(values)


def _made(chosen: Any, kwargs: Any, n_steps: Any) -> tuple[Refiner, int]:
    refiner = resolve(REFINERS, chosen, kwargs, "refiner")
    missing = [name for name in ("init", "step", "deterministic", "resamples") if not hasattr(refiner, name)]
    if missing:
        raise TypeError(
            f"refiner must have init, step, deterministic and resamples, but {type(refiner).__name__} lacks {missing}"
        )
    n_steps = getattr(refiner, "default_steps", 1) if n_steps is None else n_steps
    n_steps = check_integer("refiner_steps", n_steps, minimum=0)
    max_steps = getattr(refiner, "max_steps", None)
    if max_steps is not None and n_steps > max_steps:
        raise ValueError(f"refiner_steps must be at most {max_steps} with refiner={chosen!r}, got {n_steps}")
    return refiner, n_steps
