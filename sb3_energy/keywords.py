"""Keyword arguments of constructors: declared once in a dataclass; errors for those that are unknown or without effect."""

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from sb3_energy.checks import check_choice, did_you_mean, plain

P = ParamSpec("P")
Self = TypeVar("Self")
T = TypeVar("T")


def argument(
    default: Any, doc: str, check: Callable[[str, Any], Any] | None = None, choices: Collection[str] | None = None
) -> Any:
    """
    A field of a dataclass of arguments, which says everything about one argument.

    :param default: its default; where this is ``None``, ``None`` is accepted
    :param doc: its description, for docstrings and pages
    :param check: ``(name, value) -> value``: raises if the value is not accepted, and returns the one to store
    :param choices: the accepted names, if it is a name; a registry may grow later
    :return: the field
    """
    return dataclasses.field(default=default, metadata=dict(doc=doc, check=check, choices=choices))


def changed(arguments: Any, name: str, **changes: Any) -> Any:
    """
    Override an argument's metadata or default in a subclass.

    :param arguments: a dataclass of arguments
    :param name: of one of them
    :param changes: of what :func:`argument` was given
    :return: the field of a subclass, which is the same but for the changes
    """
    field = arguments.__dataclass_fields__[name]
    return argument(**({"default": field.default, **field.metadata} | changes))


def choices_of(arguments: Any, name: str) -> tuple[str, ...]:
    """
    List the choices of a dataclass argument.

    :param arguments: a dataclass of arguments
    :param name: of one with choices
    :return: the accepted names
    """
    return tuple(arguments.__dataclass_fields__[name].metadata["choices"])


def check_arguments(arguments: Any) -> None:
    """
    Check each argument alone and store plain numbers, the first thing that a ``__post_init__`` does.

    :param arguments: an instance of a dataclass of arguments, frozen or not
    :raises ValueError: if a value is not accepted
    :raises TypeError: if a value has the wrong type
    """
    for field in dataclasses.fields(arguments):
        value, choices = plain(getattr(arguments, field.name)), field.metadata["choices"]
        if not (value is None and field.default is None):
            value = value if choices is None else check_choice(field.name, value, sorted(choices))
            check = field.metadata["check"]
            value = value if check is None else check(field.name, value)
        object.__setattr__(arguments, field.name, value)


def takes_arguments(arguments: type) -> Callable[[type[T]], type[T]]:
    """
    Decorator of a class whose constructor hands ``**kwargs`` on to a dataclass of arguments: signature and docstring then
    name each of them. The dataclass becomes the class attribute ``arguments_class``.

    :param arguments: the dataclass
    :return: the decorator
    """

    def decorate(cls: Any) -> Any:
        if "__init__" not in vars(cls):
            cls.__init__ = _inherited_init(cls)
        init: Any = vars(cls)["__init__"]
        known = dict(inspect.signature(init).parameters)
        above = next((vars(base)["__init__"] for base in cls.__mro__[1:] if "arguments_class" in vars(base)), None)
        known |= {} if above is None else inspect.signature(above).parameters
        fields = {field.name: field for field in dataclasses.fields(arguments)}
        kept = [one for one in known.values() if one.kind is one.POSITIONAL_OR_KEYWORD and one.name not in fields]
        keyword = inspect.Parameter.KEYWORD_ONLY
        added = [inspect.Parameter(f.name, keyword, default=f.default, annotation=f.type) for f in fields.values()]
        init.__signature__ = inspect.Signature([*kept, *added])
        cls.arguments_class = arguments
        return documented(cls, arguments)

    return decorate


def _inherited_init(cls: Any) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super(cls, self).__init__(*args, **kwargs)

    return __init__


def documented(cls: type[T], arguments: Any = None) -> type[T]:
    """
    Write the descriptions of arguments into a class's docstring, before its first ``:raises``.

    :param cls: a class
    :param arguments: a dataclass of arguments (``None``: the class itself)
    :return: the class
    """
    if cls.__doc__ is not None:  # there is none with python -OO
        text, raises, end = inspect.cleandoc(cls.__doc__).partition(":raises")
        docs = {field.name: field.metadata["doc"] for field in dataclasses.fields(arguments or cls)}  # type: ignore[arg-type]
        lines = [textwrap.fill(f":param {name}: {doc}", 120, subsequent_indent="    ") for name, doc in docs.items()]
        cls.__doc__ = "\n".join([*text.splitlines(), *lines, raises + end])
    return cls


def plain_arguments(init: Callable[Concatenate[Self, P], None]) -> Callable[Concatenate[Self, P], None]:
    """
    Decorator of a constructor, which then gets plain numbers. For an unknown keyword it raises an error that names the
    place where it belongs, if the class has a method ``place_of(name, arguments)`` that finds one, or else the most similar.

    :param init: an ``__init__``
    :return: the decorated one
    :raises TypeError: when called with an unknown keyword
    """

    @wraps(init)
    def wrapped(self: Self, *args: P.args, **kwargs: P.kwargs) -> None:
        refuse_unknown(type(self), kwargs)
        init(self, *plain(args), **plain(kwargs))

    return wrapped


def refuse_unknown(cls: type, arguments: Mapping[str, Any]) -> None:
    """
    Check that a constructor accepts all keyword arguments, and say where an unknown one belongs.

    :param cls: a class
    :param arguments: keyword arguments for its constructor
    :raises TypeError: if one is unknown
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
    List the keyword arguments of a class's constructor, inherited ones included.

    :param cls: a class
    :return: the names of keywords that its constructor takes, with those that it hands on to its base classes; ``None`` if
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
    Check whether a class's constructor has an argument of a name.

    :param cls: a class, or anything else
    :param name: of an argument
    :return: whether it is an argument of that class
    """
    return isinstance(cls, type) and name in (accepted_keywords(cls) or ())


def written(name: str, value: Any) -> str:
    """
    Format a keyword argument for an error message.

    :param name: of an argument
    :param value: of it
    :return: both as Python source, with ``...`` for a long value
    """
    text = repr(value)
    return f"{name}={text if len(text) <= 30 and not text.startswith('<') else '...'}"


def is_same(value: Any, other: Any) -> bool:
    """
    Compare an argument of any type with a plain number or bool.

    :param value: of any type, arrays included
    :param other: a number or a bool
    :return: whether they are equal
    """
    number = plain(value)
    return isinstance(number, (bool, int, float)) and number == other


def refuse_changed_fields(argument: str, settings: Any, names: Iterable[str], needs: str) -> None:
    """
    Check that settings without effect have their default values.

    :param argument: name of the argument that gave the settings
    :param settings: a dataclass with a default for each field
    :param names: fields that would have no effect
    :param needs: end of the error message: what they need, and what was given
    :raises ValueError: if one of them is not its default
    """
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    for name in names:
        if getattr(settings, name) != defaults[name]:
            raise ValueError(f"{argument}=dict({name}={getattr(settings, name)!r}) needs {needs}")


def refuse_changed(given: Mapping[str, Any], defaults: Mapping[str, Any], needs: str) -> None:
    """
    Check that arguments without effect are absent or have their default values.

    :param given: arguments
    :param defaults: defaults of those that would have no effect
    :param needs: end of the error message: what they need, and what was given
    :raises ValueError: if one of them is given and is not its default
    """
    for name, default in defaults.items():
        if name in given and not is_same(given[name], default):
            raise ValueError(f"{name}={given[name]!r} needs {needs}")
