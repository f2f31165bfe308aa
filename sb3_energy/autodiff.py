"""Derivatives: the only place of the package that calls ``torch.autograd.grad`` and ``torch.func``."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch as th

from sb3_energy.types import EnergyFn

GradientRule = Callable[..., "tuple[th.Tensor, th.Tensor] | None"]

_RULES: dict[Callable[..., th.Tensor], GradientRule] = {}
_FOLLOWING: set[Callable[..., th.Tensor]] = set()


def gradient_of(fn: Callable[..., th.Tensor], *, follows: bool = False) -> Callable[[GradientRule], GradientRule]:
    """
    Decorator: how ``partial(fn, *args)``, an energy, is differentiated by hand. An energy made of others asks
    :func:`energy_and_grad` for theirs, so known and unknown ones mix.

    :param fn: a module-level function ``(*args, x) -> (B, N)``
    :param follows: whether its first argument is an energy, or a tuple of some, whose gradient it needs to have one
    :return: registers ``(*args, x) -> energies (B, N), gradients (B, N, *E)``, without a graph, or ``None``: by autograd
    """

    def register(rule: GradientRule) -> GradientRule:
        _RULES[fn] = rule
        if follows:
            _FOLLOWING.add(fn)
        return rule

    return register


def _by_hand(fn: Any, x: th.Tensor) -> tuple[th.Tensor, th.Tensor] | None:
    if type(fn) is not partial:
        return fn.energy_and_grad(x) if hasattr(fn, "energy_and_grad") else None
    rule = _RULES.get(fn.func)
    if rule is None or fn.keywords:
        return None
    if not th.is_grad_enabled():
        return rule(*fn.args, x)
    with th.no_grad():
        return rule(*fn.args, x)


def energy_and_grad(fn: EnergyFn, x: th.Tensor, create_graph: bool = False) -> tuple[th.Tensor, th.Tensor]:
    """
    Energies and their gradients with respect to the particles: by hand where a formula for them is given
    (:func:`gradient_of`, or the energy has a method ``energy_and_grad``), by autograd elsewhere.

    Never touches the ``.grad`` of a parameter. Without ``create_graph`` nothing that is returned carries a graph, and
    the call works inside ``torch.no_grad()``; with it, both results can be differentiated again.

    :param fn: ``(B, N, *E) -> (B, N)``; each energy depends on its own particle alone
    :param x: ``(B, N, *E)`` particles
    :param create_graph: whether to keep the graph of the gradient
    :return: energies ``(B, N)`` and gradients ``(B, N, *E)``
    :raises RuntimeError: in ``torch.inference_mode()``, where the energy's gradient is left to autograd
    """
    known = None if create_graph else _by_hand(fn, x.detach())
    if known is not None:
        return known
    if th.is_inference_mode_enabled():
        raise RuntimeError(
            "torch.inference_mode() switches autograd off, which this energy's gradient needs; use torch.no_grad()"
        )
    with th.enable_grad():
        points = x if create_graph and x.requires_grad else x.detach().requires_grad_(True)
        energies = fn(points)
        if not energies.requires_grad:  # a constant does not depend on the particles
            return energies, th.zeros_like(points)
        (gradients,) = th.autograd.grad(energies.sum(), points, create_graph=create_graph, materialize_grads=True)
    return (energies, gradients) if create_graph else (energies.detach(), gradients)


def has_gradient(fn: EnergyFn, x: th.Tensor) -> bool:
    """
    Check whether an energy is differentiable with respect to particles.

    :param fn: ``(B, N, *E) -> (B, N)``
    :param x: ``(B, N, *E)`` particles
    :return: whether the energy says its gradient, or has a graph that leads back to the particles; of an energy that is made
        of others, whether one of these has a gradient
    """
    if type(fn) is partial and fn.func in _FOLLOWING:
        parts = fn.args[0] if isinstance(fn.args[0], tuple) else fn.args[:1]
        return any(has_gradient(part, x) for part in parts)
    own = getattr(fn, "has_gradient", None)
    if own is not None:
        return own(x)
    if _by_hand(fn, x) is not None:
        return True
    with th.enable_grad():
        points = x.detach().clone().requires_grad_(True)
        energies = fn(points)
        if not energies.requires_grad:
            return False
        return th.autograd.grad(energies.sum(), points, allow_unused=True)[0] is not None


def with_gradient(values: th.Tensor, gradients: th.Tensor, x: th.Tensor) -> th.Tensor:
    """
    Values whose gradient is known, for a loss that is made of them: autograd goes on at ``x``.

    :param values: ``(B, 1)``, without a graph
    :param gradients: ``(B, D)`` of the values, without a graph
    :param x: ``(B, D)``, where they were computed, with a graph
    :return: ``(B, 1)``, the same numbers
    """
    return values + ((x - x.detach()) * gradients).sum(dim=1, keepdim=True)


def directional_derivative(
    fn: Callable[..., th.Tensor], x: tuple[th.Tensor, ...], direction: tuple[th.Tensor, ...]
) -> th.Tensor:
    """
    The derivative of a function along a direction, in forward mode: one evaluation, whatever the dimensions.

    :param fn: of as many tensors as there are in ``x``
    :param x: where
    :param direction: of the same shapes
    :return: like what the function returns, without a graph
    """
    with th.no_grad():
        return th.func.jvp(fn, x, direction)[1].detach()


def jacobian(fn: Callable[[th.Tensor], th.Tensor], x: th.Tensor) -> th.Tensor:
    """
    The Jacobian of what a function makes of each particle.

    :param fn: ``(B, N, *E) -> (B, N, *E)``; each result depends on its own particle alone
    :param x: ``(B, N, *E)``
    :return: ``(B, N, D, D)``, ``D`` the size of the event, rows for results, without a graph
    """
    with th.enable_grad():
        points = x.detach().requires_grad_(True)
        results = fn(points).flatten(2)
        if not results.requires_grad:
            return results.new_zeros((*results.shape, results.shape[-1]))
        rows = [
            th.autograd.grad(results[..., i].sum(), points, retain_graph=True, materialize_grads=True)[0].flatten(2)
            for i in range(results.shape[-1])
        ]
    return th.stack(rows, dim=2).detach()


def hessian_trace(fn: EnergyFn, x: th.Tensor, probes: th.Tensor) -> th.Tensor:
    """
    ``zᵀ ∇²E(x) z`` for each particle, whose mean over random signs ``z`` is the trace (Hutchinson 1990).

    :param fn: ``(B, N, *E) -> (B, N)``; each energy depends on its own particle alone
    :param x: ``(B, N, *E)``
    :param probes: ``(B, N, *E)``, ``z``
    :return: ``(B, N)``, without a graph
    """
    return gradient_and_curvatures(fn, x, probes.unsqueeze(0))[1].squeeze(0).detach()


def gradient_and_curvatures(
    fn: EnergyFn, x: th.Tensor, directions: th.Tensor, create_graph: bool = False
) -> tuple[th.Tensor, th.Tensor]:
    """
    The gradient at each particle, and ``zᵀ ∇²E(x) z`` along several directions ``z``.

    :param fn: ``(B, N, *E) -> (B, N)``; each energy depends on its own particle alone
    :param x: ``(B, N, *E)``
    :param directions: ``(K, B, N, *E)``, or what broadcasts to that
    :param create_graph: whether to keep the graph of both, for a loss that is made of them
    :return: ``(B, N, *E)`` and ``(K, B, N)``
    """
    with th.enable_grad():
        points = x if create_graph and x.requires_grad else x.detach().requires_grad_(True)
        _, gradients = energy_and_grad(fn, points, create_graph=True)
        if not gradients.requires_grad:
            return gradients, x.new_zeros((len(directions), *x.shape[:2]))
        curvatures = []
        for z in directions:
            slopes = (gradients * z).sum()
            (products,) = th.autograd.grad(
                slopes, points, create_graph=create_graph, retain_graph=True, materialize_grads=True
            )
            curvatures.append((products * z).flatten(2).sum(-1))
    return gradients if create_graph else gradients.detach(), th.stack(curvatures)
