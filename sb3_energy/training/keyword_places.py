"""Error messages for misplaced keyword arguments: the place where they belong."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from sb3_energy.checks import did_you_mean
from sb3_energy.energies import ENERGIES
from sb3_energy.keywords import accepted_keywords, takes, written
from sb3_energy.refiners import REFINERS


def check_policy_name(policies: Mapping[str, type], policy: Any) -> None:
    """
    Check that the policy is a known name or a class.

    :param policies: by name
    :param policy: the argument
    :raises ValueError: if it is an unknown name
    :raises TypeError: if it is neither a name nor a class
    """
    if not isinstance(policy, (str, type)):
        raise TypeError(f"policy must be one of {list(policies)} or a RefinedPolicy, got {policy!r}")
    if isinstance(policy, str) and policy not in policies:
        raise ValueError(
            f"policy must be one of {list(policies)} or a RefinedPolicy, got {policy!r}{did_you_mean(policy, policies)}"
        )


def place_beside_algorithm(algorithm: Any, relatives: list[Any], name: str, arguments: Mapping[str, Any]) -> str | None:
    """
    Find where an argument belongs that the algorithm does not have.

    :param algorithm: class with an unknown argument
    :param relatives: other algorithms, which may know it
    :param name: of the argument
    :param arguments: all arguments
    :return: an error message, if it is an argument of the policy, of the refiner, of the energy or of another algorithm
    """
    value, policy_kwargs = arguments[name], arguments.get("policy_kwargs")
    policy = algorithm.policy_aliases["MlpPolicy"]
    if takes(policy, name):
        return f"{name} is an argument of the policy: write policy_kwargs=dict({written(name, value)})"
    for part, _, inner in _parts(policy, policy_kwargs, name):
        return f"{name} is an argument of the {part}: write policy_kwargs=dict({inner(written(name, value))})"
    for other in relatives:
        if takes(other, name):
            return f"{name} is an argument of {other.__name__}, and {algorithm.__name__} has none of this name"
        if takes(other.policy_aliases["MlpPolicy"], name):
            return (
                f"{name} is an argument of the policies of {other.__name__}, "
                f"and neither {algorithm.__name__} nor its policies have one of this name"
            )
    return None


def check_policy_kwargs(algorithm: Any, relatives: list[Any], policy: Any, policy_kwargs: Any) -> None:
    """
    Check that ``policy_kwargs`` has only arguments that the policy and its parts accept.

    :param algorithm: whose policy it is
    :param relatives: other algorithms, whose policies may know an argument
    :param policy: the name of a policy, or a class
    :param policy_kwargs: arguments of the policy
    :raises TypeError: if they are no dict, or one is unknown
    """
    if policy_kwargs is None:
        return
    if not isinstance(policy_kwargs, Mapping):
        raise TypeError(f"policy_kwargs must be a dict of the arguments of the policy, got {policy_kwargs!r}")
    cls = algorithm.policy_aliases[policy] if isinstance(policy, str) else policy
    accepted = accepted_keywords(cls)
    _check_depth(cls, policy_kwargs)
    for name in policy_kwargs:
        if accepted is not None and name not in accepted:
            raise TypeError(
                _place_beside_policy(algorithm, cls, relatives, name, policy_kwargs)
                or f"policy_kwargs of {cls.__name__} have no argument {name!r}{did_you_mean(name, accepted)}"
            )


def _check_depth(policy: Any, policy_kwargs: Mapping[str, Any]) -> None:
    for part in ("refiner", "energy"):
        inner = policy_kwargs.get(f"{part}_kwargs")
        given = [one for one in (inner if isinstance(inner, (list, tuple)) else [inner]) if isinstance(one, Mapping)]
        for name, value in (item for one in given for item in one.items()):
            if takes(policy, name) and part not in [known for known, *_ in _parts(policy, policy_kwargs, name)]:
                raise TypeError(
                    f"{name} is an argument of the policy: write policy_kwargs=dict({written(name, value)}), "
                    f"not {part}_kwargs=dict({name}=...)"
                )


def _place_beside_policy(
    algorithm: Any, policy: Any, relatives: list[Any], name: str, policy_kwargs: Mapping[str, Any]
) -> str | None:
    value = policy_kwargs[name]
    if takes(algorithm, name):
        return (
            f"{name} is an argument of {algorithm.__name__} itself: "
            f"write {algorithm.__name__}(..., {written(name, value)}), not policy_kwargs=dict({name}=...)"
        )
    for part, given, inner in _parts(policy, policy_kwargs, name):
        return f"{name} is an argument of the {part} {given!r}: write {inner(written(name, value))}"
    for other in relatives:
        where = other.__name__ if takes(other, name) else f"the policies of {other.__name__}"
        if takes(other, name) or takes(other.policy_aliases["MlpPolicy"], name):
            return f"{name} is an argument of {where}, and the policies of {algorithm.__name__} have none of this name"
    return None


def _parts(policy: Any, policy_kwargs: Any, name: str) -> Iterator[tuple[str, Any, Callable[[str], str]]]:
    """Yield ``"refiner"`` and ``"energy"``, if they take the argument, with their names, and how it is written there."""
    given = policy_kwargs if isinstance(policy_kwargs, Mapping) else {}
    registries: tuple[tuple[str, Mapping[str, Any], str], ...] = (("refiner", REFINERS, "mala"), ("energy", ENERGIES, "q"))
    for part, registry, default in registries:
        if not takes(policy, part):  # those of offline algorithms need not have one
            continue
        chosen = given.get(part, default)
        in_list = isinstance(chosen, (list, tuple))
        names = chosen if in_list else [chosen]
        for index, one in enumerate(names):
            if takes(registry.get(one) if isinstance(one, str) else one, name):
                places = ["{}" if place == index else "None" for place in range(len(names))] if in_list else None
                yield part, one, partial(_written_in, f"{part}_kwargs", places)


def _written_in(argument: str, places: list[str] | None, text: str) -> str:
    """A keyword argument in a dict, or in the list of dicts of refiners in sequence."""
    inner = "{}" if places is None else f"[{', '.join(places)}]"
    return f"{argument}={inner}".format(f"dict({text})")
