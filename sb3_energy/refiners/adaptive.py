"""A refinement that stops for each observation once its energy no longer falls."""

from collections.abc import Callable
from typing import Any

import torch as th

from sb3_energy.checks import check_tolerance
from sb3_energy.refiners.loop import check_energies, check_start, is_lost, refine, refuse_diverged
from sb3_energy.types import Refiner, RefinerInfo, RefinerState, Target, Tick

TargetOf = Callable[[th.Tensor], Target]
"""Indices ``(b,)`` of observations ``-> Target`` of these alone."""

LARGEST_SHRUNK_PART = 0.75
"""The batch shrinks once at most this part of it still moves: binding an energy to fewer observations costs time."""


def refine_until_still(
    refiner: Refiner,
    particles: th.Tensor,
    target: Target,
    *,
    target_of: TargetOf,
    n_steps: int,
    tolerance: float,
    infos: list[RefinerInfo] | None = None,
) -> RefinerState:
    """
    As :func:`sb3_energy.refiners.refine`, but an observation whose lowest energy falls by no more than ``tolerance`` in a
    step takes no further one, and the remaining steps are computed for the others only: adaptive computation time
    (Graves 2016) with the energy as the criterion.

    :param refiner: how to move; one without noise, whose energies do not rise by chance
    :param particles: ``(B, N, *E)`` where to start
    :param target: what to move toward
    :param target_of: the same for some of the observations
    :param n_steps: how many steps at most
    :param tolerance: in units of the energy
    :param infos: a list to which one ``RefinerInfo`` a step is appended, including those that no observation took
    :return: particles and energies of all observations, of each after its own last step
    :raises ValueError: if shapes, steps or the tolerance are wrong
    :raises TypeError: if the refiner carries something that has no row for each observation
    :raises FloatingPointError: as ``refine``
    """
    check_start(particles, n_steps)
    check_tolerance("tolerance", tolerance)
    if n_steps == 0:
        return refine(refiner, particles, target, n_steps=0)
    rows = th.arange(len(particles), device=particles.device)
    moving, done = th.ones_like(rows, dtype=th.bool), []
    with th.no_grad():
        state = refiner.init(particles.detach(), target)
        for k in range(n_steps):
            before, tick = state.energies, Tick(k, n_steps)
            state, info = refiner.step(state, target, tick)
            check_energies(state)
            if infos is not None:
                info = info._replace(energy_drop=(before - state.energies).mean(dim=1))
                infos.append(_for_all(info, rows, moving, n=len(particles)))
            falls = before.amin(dim=1) - state.energies.amin(dim=1) > tolerance
            stops = moving if tick.is_last else moving & ~falls
            # A row that is lost falls no further, so it is found when it stops; numbered as the caller's rows are
            lost = th.zeros(len(particles), dtype=th.bool, device=rows.device)
            lost[rows] = stops & is_lost(state.energies)
            from_the_start = k == 0 and (is_lost(before) & is_lost(state.energies)).any()
            refuse_diverged(refiner, None if from_the_start else tick, lost)
            done.append((rows[stops], _taken(state, stops)))
            moving = moving & ~stops
            if not moving.any():
                break
            if int(moving.sum()) <= LARGEST_SHRUNK_PART * len(rows):
                rows, state = rows[moving], _taken(state, moving)
                target, moving = target_of(rows), th.ones_like(rows, dtype=th.bool)
    if infos is not None:
        infos += [_untaken(infos[-1])] * (n_steps - 1 - k)
    return _joined(done)


def computed_part(infos: list[RefinerInfo]) -> float:
    """
    The part of a refinement's steps that was computed.

    :param infos: of all its steps
    :return: in [0, 1]: steps times observations that were computed, over all steps times all observations
    :raises ValueError: if there is no info
    """
    if not infos:
        raise ValueError("computed_part needs the infos of a refinement's steps, got none")
    return sum(1.0 if info.computed is None else info.computed.float().mean().item() for info in infos) / len(infos)


def _for_all(info: RefinerInfo, rows: th.Tensor, moving: th.Tensor, n: int) -> RefinerInfo:
    taken = rows[moving]  # the results of the others are not used

    def spread(values: th.Tensor, rest: float) -> th.Tensor:
        return values.new_full((n, *values.shape[1:]), rest).index_copy(0, taken, values[moving])

    size, drop = info.effective_sample_size, info.energy_drop
    return RefinerInfo(
        spread(info.acceptance, 1.0),
        spread(info.displacement, 0.0),
        effective_sample_size=None if size is None else spread(size, float(info.acceptance.shape[1])),
        energy_drop=None if drop is None else spread(drop, 0.0),
        computed=th.zeros(n, dtype=th.bool, device=rows.device).index_fill(0, rows, True),
    )


def _untaken(info: RefinerInfo) -> RefinerInfo:
    nothing = th.zeros_like(info.displacement)
    untaken = th.zeros_like(nothing[:, 0], dtype=th.bool)
    return RefinerInfo(nothing + 1.0, nothing, energy_drop=nothing[:, 0], computed=untaken)


def _taken(state: RefinerState, keep: th.Tensor) -> RefinerState:
    return RefinerState(state.particles[keep], state.energies[keep], _rows(state.extra, keep))


def _rows(extra: Any, keep: th.Tensor) -> Any:
    if extra is None:
        return None
    if isinstance(extra, th.Tensor) and extra.dim() > 0 and len(extra) == len(keep):
        return extra[keep]
    if isinstance(extra, tuple):
        parts = [_rows(part, keep) for part in extra]
        return type(extra)(*parts) if hasattr(extra, "_fields") else tuple(parts)
    what = f"a tensor of shape {tuple(extra.shape)}" if isinstance(extra, th.Tensor) else type(extra).__name__
    raise TypeError(
        f"tolerance needs a refiner whose extra is a tensor with one row for each of the {len(keep)} observations, or a "
        f"tuple of such tensors, got {what}"
    )


def _joined(done: list[tuple[th.Tensor, RefinerState]]) -> RefinerState:
    order = th.cat([rows for rows, _ in done]).argsort()
    parts = [state for _, state in done]
    return RefinerState(
        th.cat([state.particles for state in parts])[order],
        th.cat([state.energies for state in parts])[order],
        _joined_extra([state.extra for state in parts], order),
    )


def _joined_extra(parts: list[Any], order: th.Tensor) -> Any:
    if any(part is None for part in parts):  # a refiner may carry nothing on after the last step
        return None
    kinds = {(type(part), part.shape[1:] if isinstance(part, th.Tensor) else None) for part in parts}
    if len(kinds) > 1:  # some have stopped before the next refiner of a sequence
        return None
    if isinstance(parts[0], tuple):
        joined = [_joined_extra([part[i] for part in parts], order) for i in range(len(parts[0]))]
        return type(parts[0])(*joined) if hasattr(parts[0], "_fields") else tuple(joined)
    return th.cat(parts)[order]
