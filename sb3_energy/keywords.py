"""Keyword arguments that a constructor does not know: where they belong, or which of its own is nearly the same."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from sb3_energy.checks import did_you_mean, plain

P = ParamSpec("P")
Self = TypeVar("Self")


def plain_arguments(init: Callable[Concatenate[Self, P], None]) -> Callable[Concatenate[Self, P], None]:
    """
    Decorator of a constructor: the numbers among its arguments are plain when it gets them, and a keyword that it does not
    know is answered with where it belongs, if the class has a method ``place_of(name, arguments)`` that says so, or else with
    the nearest.

    :param init: an ``__init__``
    :return: the same, for whatever numbers people have
    :raises TypeError: when called with an unknown keyword
    """

    @wraps(init)
    def wrapped(self: Self, *args: P.args, **kwargs: P.kwargs) -> None:
        refuse_unknown(type(self), kwargs)
        init(self, *plain(args), **plain(kwargs))

    return wrapped


def refuse_unknown(cls: type, arguments: Mapping[str, Any]) -> None:
    """
    :param cls: which is to be made
    :param arguments: its keyword arguments
    :raises TypeError: if one is not known
    """
    accepted = accepted_keywords(cls)
    if accepted is None:
        return
    for name in arguments:
        if name not in accepted:
            place_of = getattr(cls, "place_of", None)
            place = None if place_of is None else place_of(name, arguments)
            public = [known for known in accepted if not known.startswith("_")]
            raise TypeError(place or f"{cls.__name__} has no argument {name!r}{did_you_mean(name, public)}")


def accepted_keywords(cls: type) -> list[str] | None:
    """
    :param cls: a class
    :return: what its constructor takes by keyword, those included that it hands on to the classes it is made of; ``None`` if
        it takes any
    """
    found: list[str] = []
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        if base is object:
            return found
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        found += [parameter.name for parameter in parameters if parameter.kind in by_keyword and parameter.name not in found]
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            return found
    return None


def takes(cls: Any, name: str) -> bool:
    """
    :param cls: a class, or anything else
    :param name: of an argument
    :return: whether it is an argument of that class
    """
    return isinstance(cls, type) and name in (accepted_keywords(cls) or ())


def written(name: str, value: Any) -> str:
    """
    :param name: of an argument
    :param value: of it
    :return: both as one would write them, ``...`` for a value that is too long
    """
    text = repr(value)
    return f"{name}={text if len(text) <= 30 and not text.startswith('<') else '...'}"
