"""The loop around a refiner, and what is done with its particles."""

from functools import partial

import torch as th

from sb3_energy.checks import plain
from sb3_energy.deferred import NonFiniteError, active_checks, is_host, require
from sb3_energy.refiners.diverged import diverged_error
from sb3_energy.types import Refiner, RefinerInfo, RefinerState, Target, Tick


def refine(
    refiner: Refiner,
    particles: th.Tensor,
    target: Target,
    n_steps: int,
    generator: th.Generator | None = None,
    infos: list[RefinerInfo] | None = None,
) -> RefinerState:
    """
    Move particles toward ``exp(-energy)``, in ``R^d``.

    :param refiner: how to move
    :param particles: ``(B, N, *E)`` where to start
    :param target: what to draw from
    :param n_steps: how many steps; with 0 the particles stay where they are
    :param generator: source of the noise (``None``: torch's global one)
    :param infos: a list to which one ``RefinerInfo`` a step is appended
    :return: particles and their energies, without a graph unless the refiner is ``differentiable`` and gradients are enabled
    :raises ValueError: if the shapes or the number of steps are wrong
    :raises FloatingPointError: if an energy is NaN or minus infinity, or plus infinity (which forbids
        a particle) for all particles of an observation
    """
    check_start(particles, n_steps)
    trail: list[th.Tensor] = []
    keeps_graph = th.is_grad_enabled() and getattr(refiner, "differentiable", False)
    particles = particles if keeps_graph else particles.detach()
    with th.set_grad_enabled(keeps_graph):
        if n_steps == 0:
            state = RefinerState(particles, target.energy(particles))
        else:
            state = refiner.init(particles, target)
        for k in range(n_steps):
            trail.append(state.energies.detach())
            state, info = refiner.step(state, target, Tick(k, n_steps), generator)
            if infos is not None:
                infos.append(info._replace(energy_drop=(trail[-1] - state.energies.detach()).mean(dim=1)))
    check_energies(state)
    refuse_lost(refiner, [*trail, state.energies.detach()])
    return state


def refined_particles(
    refiner: Refiner, particles: th.Tensor, target: Target, n_steps: int, generator: th.Generator | None = None
) -> th.Tensor:
    """
    What :func:`refine` makes of particles, for those who do not ask what energies they have in the end. A step of a refiner
    with a ``kernel`` is a draw from that Gaussian; after the last one nothing is evaluated, and nobody keeps count.

    :param refiner: how to move
    :param particles: ``(B, N, *E)`` where to start
    :param target: what to draw from; its energy must be finite wherever its parameters are, for nobody looks at the last one
    :param n_steps: how many steps
    :param generator: source of the noise (``None``: torch's global one)
    :return: ``(B, N, *E)``, without a graph, and the same as :func:`refine`'s
    :raises ValueError: if the shapes or the number of steps are wrong
    :raises FloatingPointError: if an energy or a particle is not finite
    """
    kernel = getattr(refiner, "kernel", None)
    if kernel is None or n_steps == 0:
        with th.no_grad():
            return refine(refiner, particles, target, n_steps, generator).particles
    check_start(particles, n_steps)
    with th.no_grad():
        particles, trail = particles.detach(), list[th.Tensor]()
        for k in range(n_steps):
            state = refiner.init(particles, target)
            trail.append(state.energies)
            mean, std = kernel(state, target, Tick(k, n_steps))
            particles = gaussian_step(mean, std, generator)
        check_energies(state)
        # In place of the last energies, those before; no number where a particle is none
        refuse_lost(refiner, [*trail, trail[-1] + 0.0 * particles.flatten(2).sum(-1)])
    return particles


def gaussian_step(mean: th.Tensor, std: float, generator: th.Generator | None) -> th.Tensor:
    """
    :param mean: ``(B, N, *E)``
    :param std: of each coordinate; with 0 no random number is drawn
    :param generator: source of the noise (``None``: torch's global one)
    :return: ``(B, N, *E)``
    """
    if std == 0.0:
        return mean
    return mean + std * th.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)


def check_start(particles: th.Tensor, n_steps: int) -> None:
    """
    :param particles: where a refinement is to start
    :param n_steps: how many steps it is to have
    :raises ValueError: if the particles are not ``(B, N, *E)`` or the number is none of steps
    """
    if particles.dim() < 3:
        raise ValueError(f"particles must have shape (B, N, *event), got {tuple(particles.shape)}")
    number = plain(n_steps)
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"n_steps must be an integer of at least 0, got {n_steps!r}")


def check_energies(state: RefinerState) -> None:
    """
    :param state: of a refinement
    :raises ValueError: if its energies are not ``(B, N)``
    """
    if state.energies.shape != state.particles.shape[:2]:
        raise ValueError(f"an energy of {tuple(state.particles.shape)} must be (B, N), got {tuple(state.energies.shape)}")


def refuse_lost(refiner: Refiner, trail: list[th.Tensor]) -> None:
    """
    :param refiner: which one was at work
    :param trail: energies ``(B, N)`` at the starts and after each step
    :raises FloatingPointError: if an observation is lost at the last step, with a sentence that says since when
    """
    # Who is lost stays lost: the last step tells that something is, and only then are the others asked when it happened.
    require(~is_lost(trail[-1]).any(), partial(_lost_error, refiner, trail))


def _lost_error(refiner: Refiner, trail: list[th.Tensor]) -> FloatingPointError:
    first = next(k for k, energies in enumerate(trail) if is_lost(energies).any())
    return diverged_error(refiner, Tick(first - 1, len(trail) - 1) if first > 0 else None, is_lost(trail[first]))


def is_lost(energies: th.Tensor) -> th.Tensor:
    """
    :param energies: ``(B, N)``
    :return: ``(B,)`` whether one is NaN or minus infinity, or all are plus infinity
    """
    return ~th.isfinite(energies.amin(dim=1))  # the minimum of anything and NaN is NaN


def select(state: RefinerState, deterministic: bool) -> th.Tensor:
    """
    One particle for each observation: the lowest energy (inference with verification, Gladstone et al. 2025,
    section 3.2), or a draw. Particles are exchangeable after the last step, so the first one is a draw.

    :param state: ``N`` particles for each observation
    :param deterministic: whether to take the lowest energy
    :return: ``(B, *E)``
    """
    if not deterministic:
        return state.particles[:, 0]
    best = state.energies.argmin(dim=1)
    return state.particles[th.arange(len(best), device=best.device), best]


def importance_resample(
    particles: th.Tensor, log_weights: th.Tensor, n_particles: int, generator: th.Generator | None = None
) -> tuple[th.Tensor, th.Tensor]:
    """
    Draw particles, with replacement, in proportion to their weights: sampling importance resampling (Rubin 1987).

    :param particles: ``(B, N, *E)``
    :param log_weights: ``(B, N)``, up to a constant for each observation
    :param n_particles: how many to draw for each observation
    :param generator: source of the noise (``None``: torch's global one)
    :return: ``(B, n_particles, *E)`` and the indices ``(B, n_particles)``
    :raises FloatingPointError: if a weight is NaN or infinity, or all of an observation are zero
    """
    index = draw_indices(_probabilities(log_weights), n_particles, generator)
    return _taken(particles, index), index


def draw_indices(probabilities: th.Tensor, n: int, generator: th.Generator | None = None) -> th.Tensor:
    """
    Draws with replacement: ``torch.multinomial`` on the CPU. On a GPU that waits for the device to look at the probabilities,
    so that there the uniform distribution is sent through the inverse of theirs.

    :param probabilities: ``(B, N)``
    :param n: how many for each row
    :param generator: source of the noise (``None``: torch's global one)
    :return: ``(B, n)``
    """
    if is_host(probabilities):
        if active_checks() is not None:  # what is no number is refused, later: until then it must not matter
            probabilities = probabilities.nan_to_num(nan=1.0)
        return th.multinomial(probabilities, n, replacement=True, generator=generator)
    cumulative = probabilities.cumsum(dim=1)
    shape = (len(probabilities), n)
    levels = th.rand(shape, generator=generator, device=probabilities.device, dtype=probabilities.dtype)
    # From the right: a level of 0 must not take a particle without weight
    index = th.searchsorted(cumulative, levels * cumulative[:, -1:], right=True)
    return index.clamp(max=probabilities.shape[1] - 1)


def systematic_resample(particles: th.Tensor, log_weights: th.Tensor, n_particles: int) -> tuple[th.Tensor, th.Tensor]:
    """
    Particles in proportion to their weights, without dice: those at the quantiles ``(i + 1/2) / n_particles``.
    Systematic resampling (Carpenter et al. 1999) with its one random number fixed.

    :param particles: ``(B, N, *E)``
    :param log_weights: ``(B, N)``, up to a constant for each observation
    :param n_particles: how many to take for each observation
    :return: ``(B, n_particles, *E)`` and the indices ``(B, n_particles)``, which rise
    :raises FloatingPointError: if a weight is NaN or infinity, or all of an observation are zero
    """
    cumulative = _probabilities(log_weights).cumsum(dim=1)
    levels = (th.arange(n_particles, device=particles.device, dtype=cumulative.dtype) + 0.5) / n_particles
    levels = (levels * cumulative[:, -1:]).contiguous()  # rounding leaves the last sum beside 1
    index = th.searchsorted(cumulative, levels).clamp(max=particles.shape[1] - 1)
    return _taken(particles, index), index


def _probabilities(log_weights: th.Tensor) -> th.Tensor:
    require(th.isfinite(log_weights.amax(dim=1)).all(), _resampling_error)  # the maximum of anything and NaN is NaN
    return log_weights.softmax(dim=1)


def _resampling_error() -> FloatingPointError:
    return NonFiniteError(
        "a non-finite energy appeared at the particles to be resampled", "a lower learning_rate or backbone='layer_norm'"
    )


def _taken(particles: th.Tensor, index: th.Tensor) -> th.Tensor:
    return particles[th.arange(len(index), device=index.device).unsqueeze(1), index]


def effective_sample_size(log_weights: th.Tensor) -> th.Tensor:
    """
    ``(Σ w)² / Σ w²``: how many equally weighted particles the weights are worth (Kong 1992).

    :param log_weights: ``(B, N)``
    :return: ``(B,)``, between 1 and ``N``
    """
    return th.exp(2.0 * log_weights.logsumexp(dim=1) - (2.0 * log_weights).logsumexp(dim=1))
