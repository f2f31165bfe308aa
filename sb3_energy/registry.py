"""Names to classes, with one error message for every registry. Registries are plain dicts: add to them freely."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from sb3_energy.checks import check_keywords, did_you_mean, plain

T = TypeVar("T")

NOT_REGISTERED = "; a name of your own must be registered before a model is made or loaded"
"""What is said of a name that is like no other."""


def resolve(
    registry: Mapping[str, type[T]], name_or_class: str | type[T], kwargs: Mapping[str, Any] | None = None, what: str = "name"
) -> T:
    """
    Make an instance from its name in a registry, or from a class of the user's own.

    :param registry: the valid names
    :param name_or_class: one of them, or a class
    :param kwargs: arguments of the class
    :param what: the argument's name, for the error messages
    :return: the instance
    :raises ValueError: if the name is not in the registry
    :raises TypeError: if it is neither name nor class, or the class does not take these arguments
    """
    if isinstance(name_or_class, str):
        if name_or_class not in registry:
            raise ValueError(
                f"{what} must be one of {sorted(registry)} or a class, got {name_or_class!r}"
                f"{did_you_mean(name_or_class, registry) or NOT_REGISTERED}"
            )
        cls = registry[name_or_class]
    elif inspect.isclass(name_or_class):
        cls = name_or_class
    else:
        raise TypeError(f"{what} must be one of {sorted(registry)} or a class, got {name_or_class!r}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"{what}_kwargs must be a dict of the arguments of {cls.__name__}, got {kwargs!r}")
    return _build(cls, plain(dict(kwargs or {})), what)


def _build(cls: type[T], kwargs: dict[str, Any], what: str) -> T:
    if dataclasses.is_dataclass(cls):
        accepted = [field.name for field in dataclasses.fields(cls) if field.init]
        check_keywords(f"{what}_kwargs of {cls.__name__}", kwargs, accepted)
        return cls(**kwargs)
    try:
        inspect.signature(cls).bind(**kwargs)
    except TypeError as error:
        raise TypeError(f"{what}={cls.__name__} cannot be made with {what}_kwargs={kwargs!r}: {error}") from error
    except ValueError:  # a class of C has no signature to look at
        pass
    return cls(**kwargs)
