"""Users' own energies: a plain function as an energy, and the checks of any energy."""

import inspect
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial
from types import FunctionType
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_energy.autodiff import has_gradient
from sb3_energy.energies.arithmetic import Summable
from sb3_energy.registry import resolve
from sb3_energy.types import Energy, EnergyFn, Networks

PAGE = "docs/energy_of_your_own.md"
"""The page that says how an energy is written."""

NO_GRADIENT = (
    "no gradient with respect to the actions, which the refiner follows: keep the graph (no detach, no numpy, no "
    "torch.no_grad; for a constant add 0.0 * actions.sum(-1)), or a refiner that needs none, such as 'mppi', 'snis' or 'smc'"
)
"""Why autograd cannot differentiate an energy, and what to do."""


@dataclass(frozen=True)
class FunctionEnergy(Summable):
    """
    An energy that is a function of observations and actions, and uses no network.

    :param function: ``(observations, actions, **kwargs) -> (B, N)`` for actions ``(B, N, A)``; at module level
    :param kwargs: its other arguments
    :raises TypeError: if it has another signature, or cannot be pickled, as saving a policy does
    """

    function: Callable[..., th.Tensor]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "function", as_imported(self.function))
        name = energy_name(self)
        if isinstance(self.function, nn.Module):
            raise TypeError(
                f"energy must not be a network, which no optimiser would find there, got {name}; call networks.critic "
                f"in the bind of a class ({PAGE})"
            )
        try:
            if not _is_scripts(self.function):
                pickle.dumps(self.function)
        except Exception:  # pickle's own errors are of many types
            raise TypeError(
                "energy must be a function at the top level of a module, since it is saved with the policy and a lambda or an "
                f"inner function cannot be pickled, got {name}; move it there and pass its settings by energy_kwargs ({PAGE})"
            ) from None
        try:
            inspect.signature(self.function).bind(None, None, **self.kwargs)
        except TypeError as error:
            raise TypeError(
                f"energy must take (observations, actions) and energy_kwargs, but {name} does not: {error} ({PAGE})"
            ) from None
        except ValueError:  # written in C, without a signature
            pass

    def bind(self, networks: Networks, obs: PyTorchObs) -> EnergyFn:
        """
        Bind the function to a batch of observations.

        :param networks: not used
        :param obs: ``B`` observations
        :return: ``(B, N, A) -> (B, N)``
        """
        return partial(self.function, _single(obs), **self.kwargs)


def as_imported(value: Any) -> Any:
    """
    A script's functions, where a saved model has loaded copies of them, which cannot be pickled by name.

    :param value: a function, an energy, or lists and dictionaries of them; anything else is returned as it is
    :return: the same with the original functions, while the same script runs
    """
    if isinstance(value, (list, tuple)):
        return type(value)(as_imported(part) for part in value)
    if isinstance(value, dict):
        return {name: as_imported(part) for name, part in value.items()}
    if isinstance(value, Summable) and is_dataclass(value):
        return replace(value)  # which asks for its functions again
    found: Any = sys.modules.get(getattr(value, "__module__", None) or "")
    for name in getattr(value, "__qualname__", "").split("."):
        found = getattr(found, name, None)
    is_same = isinstance(found, FunctionType) and found.__code__ == getattr(value, "__code__", None)
    return found if is_same else value


def _is_scripts(function: Any) -> bool:
    """Whether a function is at the top level of a script; models are saved with a copy of it, which any process can load."""
    name = getattr(function, "__qualname__", "<locals>")
    return (
        isinstance(function, FunctionType)
        and function.__module__ == "__main__"
        and not {"<locals>", "<lambda>"} & {*name.split(".")}
    )


def _single(obs: PyTorchObs) -> PyTorchObs:
    """Observations in single precision, as networks see them; integers stay as they are."""
    if isinstance(obs, dict):
        return {key: part.float() if part.is_floating_point() else part for key, part in obs.items()}
    return obs.float() if obs.is_floating_point() else obs


def energy_name(energy: Any) -> str:
    """
    The name of an energy in error messages.

    :param energy: an energy, or a class or function of the user's own
    :return: the name of the function or class
    """
    named = energy.function if isinstance(energy, FunctionEnergy) else energy
    named = named.func if isinstance(named, partial) else named
    return getattr(named, "__qualname__", type(named).__qualname__)


def make_energy(registry: Mapping[str, type[Energy]], energy: Any, energy_kwargs: Mapping[str, Any] | None) -> Energy:
    """
    The energy that a policy is given by name, class, function or sum.

    :param registry: names of energies
    :param energy: one of them, a class with ``bind(networks, obs)``, a function ``(observations, actions) -> (B, N)``, or an
        instance of the package's energies, such as a sum
    :param energy_kwargs: its arguments
    :return: the energy
    :raises ValueError: if the name is not in the registry
    :raises TypeError: if it is none of these, or does not take these arguments
    """
    if isinstance(energy, str):
        if energy not in registry:
            return resolve(registry, energy, energy_kwargs, "energy")  # raises with the names
        energy = registry[energy]  # may be a function, where the user has registered one
    if isinstance(energy, Summable) and is_dataclass(energy):
        if energy_kwargs:
            raise TypeError(
                f"energy_kwargs are arguments of a name, a class or a function, got {energy_kwargs!r} with {energy!r}"
            )
        return as_imported(energy)
    if not isinstance(energy, type):
        if hasattr(energy, "bind"):
            raise TypeError(
                f"energy must be the class {type(energy).__qualname__} and not an instance of it; "
                f"its arguments go into energy_kwargs ({PAGE})"
            )
        if not callable(energy):
            raise TypeError(f"energy must be one of {sorted(registry)}, a class or a function, got {energy!r} ({PAGE})")
        if energy_kwargs is not None and not isinstance(energy_kwargs, Mapping):
            raise TypeError(f"energy_kwargs must be a dict of the arguments of {energy_name(energy)}, got {energy_kwargs!r}")
        return FunctionEnergy(energy, dict(energy_kwargs or {}))
    if not callable(getattr(energy, "bind", None)):
        raise TypeError(f"energy must have a method bind(networks, obs), {energy.__name__} has none ({PAGE})")
    made = _made(registry, energy, energy_kwargs)
    try:
        inspect.signature(made.bind).bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"energy must have a method bind(networks, obs), which {energy.__name__}.bind is not: {error} ({PAGE})"
        ) from None
    except ValueError:  # written in C
        pass
    return made


def _made(registry: Mapping[str, type[Energy]], energy: type, energy_kwargs: Mapping[str, Any] | None) -> Energy:
    if energy in registry.values():
        return resolve(registry, energy, energy_kwargs, "energy")
    try:
        return resolve(registry, energy, energy_kwargs, "energy")
    except Exception as error:  # of any type, from a user's constructor
        if type(error) in (TypeError, ValueError) and "energy_kwargs" in str(error):  # raised by this package
            raise type(error)(f"{error} ({PAGE})") from error
        raise (ValueError if isinstance(error, ValueError) else TypeError)(
            f"energy={energy.__name__} could not be made with energy_kwargs={dict(energy_kwargs or {})!r}: "
            f"{_said(error)} ({PAGE})"
        ) from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__


def check_energy(bind: Callable[[int], EnergyFn], name: str, action_dim: int, like: th.Tensor, needs_gradient: bool) -> None:
    """
    Check the shape, type, device and gradient of an energy at a few actions.

    :param bind: ``n -> EnergyFn``, the energy at ``n`` observations, up to 2
    :param name: of the energy
    :param action_dim: ``A``
    :param like: a tensor of the device and type of actions
    :param needs_gradient: whether a derivative with respect to actions is needed
    :raises TypeError: if the result is not a tensor of floats
    :raises ValueError: if its shape or device is wrong, it has no gradient where one is needed, or the energy of an action
        depends on the other actions
    """
    n_particles = 4 if action_dim == 3 else 3
    values: dict[tuple[int, int], th.Tensor] = {}
    for n_obs, n in ((2, n_particles), (2, 1), (1, n_particles)):
        fn = _bound(bind, name, n_obs)
        actions = trial_actions(n_obs, n, action_dim, like)
        values[n_obs, n] = _checked(fn, name, actions)
        if n_obs == 2 and n == n_particles:
            if needs_gradient and not _has_gradient(fn, name, actions):
                raise ValueError(f"energy={name} has {NO_GRADIENT} ({PAGE})")
            again = _checked(fn, name, actions)
    alone, together = values[2, 1][:, 0], values[2, n_particles][:, 0]
    if th.equal(again, values[2, n_particles]) and not th.allclose(alone, together, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise ValueError(
            f"energy={name} must give each action its own energy, got another one for the same action beside others ({PAGE})"
        )


def trial_actions(n_obs: int, n: int, action_dim: int, like: th.Tensor) -> th.Tensor:
    """
    Actions to try an energy at, all different.

    :param n_obs: ``B``
    :param n: ``N``
    :param action_dim: ``A``
    :param like: a tensor of their device and type
    :return: ``(B, N, A)`` in [-.9, .9]; the first ones do not depend on ``N``
    """
    b, i, j = th.meshgrid(*(th.arange(float(size)) for size in (n_obs, n, action_dim)), indexing="ij")
    return (0.9 * th.sin(1.0 + 2.1 * b + 1.3 * i + 0.7 * j)).to(like)


def _bound(bind: Callable[[int], EnergyFn], name: str, n_obs: int) -> EnergyFn:
    try:
        fn = bind(n_obs)
    except Exception as error:
        raise ValueError(f"energy={name} could not be bound to {n_obs} observations: {_said(error)} ({PAGE})") from error
    if not callable(fn):
        raise TypeError(f"energy={name} must return a function of the actions from bind, got {fn!r} ({PAGE})")
    return fn


def _has_gradient(fn: EnergyFn, name: str, actions: th.Tensor) -> bool:
    try:
        return has_gradient(fn, actions)
    except Exception as error:  # such as an energy that changes actions in place
        raise ValueError(f"energy={name} could not be differentiated: {_said(error)} ({PAGE})") from error


def _checked(fn: EnergyFn, name: str, actions: th.Tensor) -> th.Tensor:
    shape = tuple(actions.shape)
    try:
        with th.no_grad():
            values = fn(actions)
    except Exception as error:
        raise ValueError(f"energy={name} failed for actions of shape (B, N, A) = {shape}: {_said(error)} ({PAGE})") from error
    if not isinstance(values, th.Tensor):
        raise TypeError(f"energy={name} must return a torch tensor, got {type(values).__name__} ({PAGE})")
    if values.shape != actions.shape[:2]:
        raise ValueError(
            f"energy={name} must return one number for each action, of shape (B, N) = {shape[:2]} for actions of shape "
            f"(B, N, A) = {shape}, got {tuple(values.shape)} ({PAGE})"
        )
    if not values.is_floating_point():
        raise TypeError(f"energy={name} must return floating-point numbers, got {values.dtype} ({PAGE})")
    if values.device != actions.device:
        raise ValueError(f"energy={name} must return a tensor on the actions' {actions.device}, got {values.device} ({PAGE})")
    return values
