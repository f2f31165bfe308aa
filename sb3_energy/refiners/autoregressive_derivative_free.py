"""The autoregressive derivative-free optimiser of implicit behavioral cloning."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch as th

from sb3_energy.checks import plain_fields
from sb3_energy.refiners.derivative_free import check_rounds
from sb3_energy.stats import effective_sample_size, gaussian_log_prob, normal_noise, resample
from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick

MOST_KERNELS = 1024
"""Of a density estimate. Each proposal's density is a sum over all of them: of 16384 the sums would take a minute and 4 GB."""


@dataclass(frozen=True)
class AutoregressiveDerivativeFree:
    """
    Rounds over the coordinates in turn: propose a coordinate, then resample the particles by its conditional weight
    ``exp(-(E_j(x_{:j}) - E_{j-1}(x_{:j-1})))``, where ``E_j`` is the energy of a prefix (``Target.prefix_energy``), ``E_D``
    the energy itself and ``E_0 = 0``. No gradient is asked for, and a coordinate is searched along a line, however many there
    are. Implicit behavioral cloning's autoregressive derivative-free optimiser (Florence et al. 2021, appendix B.2).

    The first round is sequential Monte Carlo over the coordinates (Doucet et al. 2001, chapter 1): proposals come from a
    kernel density estimate of the initial particles' coordinate, whose density the weights divide by, so these may start
    anywhere and ``Target.proposal_log_prob`` is not asked. As ``N`` grows its law tends to the target's whatever the prefix
    energies are: the last weight takes back what they got wrong, and how good they are decides how many particles that takes.

    Each further round moves every coordinate by noise, of which it has less than the one before, and weighs by ``exp(-E)``
    once more: the law is sharper than the target's. A round costs ``N`` energies and ``N`` of each of the ``D - 1`` prefixes,
    the start ``N`` energies. Noise comes before the weighing and not after it, as in the paper's order: what follows a
    coordinate, and what comes out, has been weighed, and that takes half as many energies.

    :param noise_std: standard deviation of the second round's noise
    :param noise_decay: factor of it from one round to the next, in (0, 1]
    :param quasi_random: draw from fixed low-discrepancy quantiles in place of noise
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    """

    noise_std: float = 0.33
    noise_decay: float = 0.5
    quasi_random: bool = False

    exact: ClassVar[bool] = False
    resamples: ClassVar[bool] = True
    default_steps: ClassVar[int] = 3
    default_particles: ClassVar[int] = 64
    max_steps: ClassVar[int | None] = None
    estimators: ClassVar[tuple[str, ...]] = ("base",)
    head: ClassVar[str | None] = "prefix_energy"
    search_space: ClassVar[dict[str, Any]] = dict(steps=(1, 3), particles_pow=(4, 7), noise_std=(0.03, 1.0))

    def __post_init__(self) -> None:
        plain_fields(self)
        check_rounds(self.noise_std, self.noise_decay, self.quasi_random)

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        Evaluate the initial particles' energies.

        :param particles: ``(B, N, *E)``
        :param target: what to draw from, with its ``prefix_energy`` where the event has more than one coordinate
        :return: particles and energies
        :raises ValueError: if the target does not say the energies of prefixes
        """
        dimension = particles[0, 0].numel()
        if dimension > 1 and target.prefix_energy is None:
            raise ValueError(
                "autoregressive_derivative_free needs Target.prefix_energy, (B, N, j) -> (B, N) for the first j of "
                f"{dimension} coordinates, got None"
            )
        return RefinerState(particles, target.energy(particles))

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        Perturb and resample the particles one coordinate at a time.

        :param state: particles of the round before
        :param target: what to draw from
        :param tick: which round of how many
        :param generator: source of the noise and of the draws
        :return: the next state; how far the particles in each place went, and the effective sample size of the coordinate
            that had the smallest
        """
        start = state.particles.flatten(2)
        noise = normal_noise(start, self.quasi_random, generator)
        rows, energies, sizes = start, th.zeros_like(state.energies), []
        for j in range(start.shape[2]):
            moves = noise[..., j]
            if tick.step == 0:
                column, log_density = smoothed(start[..., j], moves, self.noise_std)
            else:
                column = rows[..., j] + self.noise_std * self.noise_decay ** (tick.step - 1) * moves
                log_density = th.zeros_like(energies)
            rows = th.cat([rows[..., :j], column.unsqueeze(2), rows[..., j + 1 :]], dim=2)
            found = _energy(target, rows[..., : j + 1], like=state.particles)
            log_weights = energies - found - log_density
            sizes.append(effective_sample_size(log_weights))
            if self.quasi_random and tick.is_last and j == start.shape[2] - 1:
                energies = found  # all are kept, for the lowest energy to be selected
            else:
                rows, index = resample(rows, log_weights, quasi_random=self.quasi_random, generator=generator)
                energies = found.gather(1, index)
        info = RefinerInfo.of_move(start, rows, effective_sample_size=th.stack(sizes).amin(dim=0))
        return RefinerState(rows.reshape(state.particles.shape), energies), info

    def deterministic(self) -> "AutoregressiveDerivativeFree":
        """
        Return the variant that uses no random numbers.

        :return: the same rounds with systematic resampling and fixed quantiles
        """
        return replace(self, quasi_random=True)


def smoothed(pool: th.Tensor, noise: th.Tensor, lone_std: float) -> tuple[th.Tensor, th.Tensor]:
    """
    One proposal around each of the pool's numbers, and their density: that of the pool's kernel estimate, so that as many
    proposals are one stratified draw of it (the balance heuristic of Veach and Guibas 1995, section 3.3).

    A kernel is as wide as it is far to the pool's neighbours (the variable kernel estimate of Breiman et al. 1977): a pool
    half of which is narrow, from a Gaussian, and half of which is wide, from the box, keeps both widths. Of more than 1024
    numbers neighbours share a kernel at the middle one of them.

    :param pool: ``(B, N)``
    :param noise: ``(B, N)`` or ``(1, N)``, standard normal
    :param lone_std: width of a kernel where the neighbours are at the same place, or there are none
    :return: ``(B, N)`` proposals and their log-densities
    """
    n = pool.shape[1]
    n_kernels = min(n, MOST_KERNELS)
    ordered, order = pool.sort(dim=1)
    rank, place = th.arange(n, device=pool.device), th.arange(n_kernels, device=pool.device)
    centres = ordered[:, (2 * place + 1) * n // (2 * n_kernels)]
    n_neighbours = min(math.ceil(math.sqrt(n_kernels)), n_kernels - 1)
    above, below = (place + n_neighbours).clamp(max=n_kernels - 1), (place - n_neighbours).clamp(min=0)
    widths = 0.5 * (centres[:, above] - centres[:, below])
    widths = th.where(widths > 0.0, widths, lone_std)
    shared = rank * n_kernels // n  # by rank, which kernel
    kernel = th.empty_like(order).scatter(1, order, shared.expand_as(order))
    proposals = centres.gather(1, kernel) + widths.gather(1, kernel) * noise
    log_shares = th.bincount(shared, minlength=n_kernels).to(pool.dtype).div(n).log()
    log_kernels = gaussian_log_prob(proposals[:, :, None, None], centres[:, None, :, None], widths[:, None, :, None])
    return proposals, (log_kernels + log_shares).logsumexp(dim=2)


def _energy(target: Target, prefix: th.Tensor, like: th.Tensor) -> th.Tensor:
    if prefix.shape[2] == like.shape[2:].numel():
        return target.energy(prefix.reshape(like.shape))
    assert target.prefix_energy is not None  # init has checked it
    energies = target.prefix_energy(prefix)
    if energies.shape != prefix.shape[:2]:
        raise ValueError(f"a prefix energy of {tuple(prefix.shape[:2])} particles must be (B, N), got {tuple(energies.shape)}")
    return energies
