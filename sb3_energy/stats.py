"""Log-densities, weighted resampling and fixed normal quantiles: statistics that several parts of the package need."""

import math
from functools import lru_cache
from typing import Any

import torch as th

from sb3_energy.deferred import NonFiniteError, active_checks, is_host, require


def normal_log_prob(noise: Any, log_std: Any = 0.0) -> Any:
    """
    Log-density of ``x = mean + std * noise`` under a Gaussian of independent coordinates, for tensors and numpy arrays.

    :param noise: ``(..., D)``, ``(x - mean) / std``
    :param log_std: ``(..., D)`` or a number
    :return: ``(...)``
    """
    return -(0.5 * (noise * noise) + log_std + 0.5 * math.log(2.0 * math.pi)).sum(-1)


def gaussian_log_prob(x: th.Tensor, mean: th.Tensor, std: th.Tensor | float) -> th.Tensor:
    """
    Log-density of a Gaussian of independent coordinates.

    :param x: ``(..., D)``
    :param mean: broadcasts to it
    :param std: a number, or a tensor that broadcasts to it
    :return: ``(...)``
    """
    return normal_log_prob((x - mean) / std, std.log() if isinstance(std, th.Tensor) else math.log(std))


def log_tanh_jacobian(x: th.Tensor) -> th.Tensor:
    """
    ``Σ log(1 - tanh² x)`` over the event, without cancellation: ``1 - tanh² x = (2 / (e^x + e^-x))²``.

    :param x: ``(B, N, *E)``
    :return: ``(B, N)``
    """
    return (2.0 * (math.log(2.0) - x - th.nn.functional.softplus(-2.0 * x))).flatten(2).sum(-1)


def uniform_log_prob(x: th.Tensor) -> th.Tensor:
    """
    Log-density of ``x`` where ``tanh x`` is uniform on the box ``[-1, 1]^D``.

    :param x: ``(B, N, *E)``, pre-tanh
    :return: ``(B, N)``
    """
    return log_tanh_jacobian(x) - x.shape[2:].numel() * math.log(2.0)


def log_mean_exp(x: th.Tensor, dim: int) -> th.Tensor:
    """
    ``log((1/N) Σ exp(x))``, which is the log-density of a mixture of equal parts.

    :param x: any shape
    :param dim: dimension of size ``N``
    :return: the shape without it
    """
    return x.logsumexp(dim=dim) - math.log(x.shape[dim])


def noise_like(x: th.Tensor, generator: th.Generator | None = None) -> th.Tensor:
    """
    Standard normal noise.

    :param x: for shape, device and type
    :param generator: source of the noise (``None``: torch's global one)
    :return: like ``x``
    """
    return th.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def gaussian_draw(mean: th.Tensor, std: float, generator: th.Generator | None = None) -> th.Tensor:
    """
    A draw from a Gaussian with the same standard deviation in each coordinate.

    :param mean: any shape
    :param std: at least 0; with 0 no random number is drawn
    :param generator: source of the noise (``None``: torch's global one)
    :return: like ``mean``
    """
    return mean if std == 0.0 else mean + std * noise_like(mean, generator)


@lru_cache(maxsize=64)
def _sobol_normal(n: int, dimension: int) -> th.Tensor:
    # The first point of the sequence is the corner 0, the second the centre: the mean, once it is a quantile
    points = th.quasirandom.SobolEngine(dimension, scramble=False).draw(n + 1, dtype=th.float64)[1:]
    return th.special.ndtri(points).float()


_PLACED: dict[tuple[int, int, th.device, th.dtype], th.Tensor] = {}


@th.compiler.assume_constant_result
def _placed_normal(n: int, dimension: int, device: th.device, dtype: th.dtype) -> th.Tensor:
    # Kept on their device for good: a copy makes the host wait for a GPU, and a CUDA graph reads them at their address
    key = (n, dimension, device, dtype)
    if key not in _PLACED:
        _PLACED[key] = _sobol_normal(n, dimension).to(device=device, dtype=dtype)
    return _PLACED[key]


def normal_quantiles(n: int, like: th.Tensor) -> th.Tensor:
    """
    Low-discrepancy points of a standard normal distribution; the first one is its mean.
    An unscrambled Sobol sequence (Sobol 1967) through the normal quantile function.

    :param n: how many points
    :param like: ``(B, *E)``, for the event's shape, the device and the type
    :return: ``(1, n, *E)``, always the same
    """
    return _placed_normal(n, like.shape[1:].numel(), like.device, like.dtype).reshape(1, n, *like.shape[1:])


def normal_noise(like: th.Tensor, quasi_random: bool, generator: th.Generator | None = None) -> th.Tensor:
    """
    Standard normal noise, or fixed quantiles in its place.

    :param like: ``(B, N, *E)``, for shape, device and type
    :param quasi_random: whether to take :func:`normal_quantiles`
    :param generator: source of the noise (``None``: torch's global one)
    :return: ``(B, N, *E)``, or ``(1, N, *E)`` of quantiles
    """
    return normal_quantiles(like.shape[1], like[:, 0]) if quasi_random else noise_like(like, generator)


def effective_sample_size(log_weights: th.Tensor) -> th.Tensor:
    """
    ``(Σ w)² / Σ w²``: how many equally weighted particles the weights are worth (Kong 1992).

    :param log_weights: ``(B, N)``
    :return: ``(B,)``, between 1 and ``N``
    """
    return th.exp(2.0 * log_weights.logsumexp(dim=1) - (2.0 * log_weights).logsumexp(dim=1))


def importance_resample(
    particles: th.Tensor, log_weights: th.Tensor, n_particles: int, *, generator: th.Generator | None = None
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


def systematic_resample(
    particles: th.Tensor, log_weights: th.Tensor, n_particles: int, *, offset: float | th.Tensor = 0.5
) -> tuple[th.Tensor, th.Tensor]:
    """
    Take particles in proportion to their weights: those at the quantiles ``(i + offset) / n_particles``.
    Systematic resampling (Carpenter et al. 1999), by default with its one random number fixed. With a random one each particle
    is taken as often as its weight says, in the mean.

    :param particles: ``(B, N, *E)``
    :param log_weights: ``(B, N)``, up to a constant for each observation
    :param n_particles: how many to take for each observation
    :param offset: a number in [0, 1), or one for each observation ``(B, 1)``
    :return: ``(B, n_particles, *E)`` and the indices ``(B, n_particles)``, which rise
    :raises FloatingPointError: if a weight is NaN or infinity, or all of an observation are zero
    """
    cumulative = _probabilities(log_weights).cumsum(dim=1)
    levels = (th.arange(n_particles, device=particles.device, dtype=cumulative.dtype) + offset) / n_particles
    levels = (levels * cumulative[:, -1:]).contiguous()  # rounding leaves the last sum beside 1
    index = th.searchsorted(cumulative, levels).clamp(max=particles.shape[1] - 1)
    return _taken(particles, index), index


def shuffled(index: th.Tensor, generator: th.Generator | None = None) -> th.Tensor:
    """
    Indices in a random order, another one for each row.

    :param index: ``(B, N)``
    :param generator: source of the order (``None``: torch's global one)
    :return: ``(B, N)``
    """
    order = th.rand(index.shape, generator=generator, device=index.device).argsort(dim=1)
    return index.gather(1, order)


def resample(
    particles: th.Tensor, log_weights: th.Tensor, *, quasi_random: bool, generator: th.Generator | None = None
) -> tuple[th.Tensor, th.Tensor]:
    """
    As many particles as there are, in proportion to their weights.

    :param particles: ``(B, N, *E)``
    :param log_weights: ``(B, N)``, up to a constant for each observation
    :param quasi_random: whether to take those at fixed quantiles of the weights in place of draws
    :param generator: source of the draws (``None``: torch's global one)
    :return: ``(B, N, *E)`` and the indices ``(B, N)``
    :raises FloatingPointError: if a weight is NaN or infinity, or all of an observation are zero
    """
    n = particles.shape[1]
    if quasi_random:
        return systematic_resample(particles, log_weights, n)
    return importance_resample(particles, log_weights, n, generator=generator)


def draw_indices(probabilities: th.Tensor, n: int, generator: th.Generator | None = None) -> th.Tensor:
    """
    Draw indices with replacement: by ``torch.multinomial`` on the CPU. On a GPU that waits for the device to check the
    probabilities, so there uniform numbers go through the inverse of the distribution function.

    :param probabilities: ``(B, N)``
    :param n: how many for each row
    :param generator: source of the noise (``None``: torch's global one)
    :return: ``(B, n)``
    """
    if is_host(probabilities):
        if active_checks() is not None:  # NaN raises later, when the checks are asked
            probabilities = probabilities.nan_to_num(nan=1.0)
        return th.multinomial(probabilities, n, replacement=True, generator=generator)
    cumulative = probabilities.cumsum(dim=1)
    shape = (len(probabilities), n)
    levels = th.rand(shape, generator=generator, device=probabilities.device, dtype=probabilities.dtype)
    # From the right: a level of 0 must not take a particle without weight
    index = th.searchsorted(cumulative, levels * cumulative[:, -1:], right=True)
    return index.clamp(max=probabilities.shape[1] - 1)


def _probabilities(log_weights: th.Tensor) -> th.Tensor:
    require(th.isfinite(log_weights.amax(dim=1)).all(), _resampling_error)  # the maximum of anything and NaN is NaN
    return log_weights.softmax(dim=1)


def _resampling_error() -> FloatingPointError:
    return NonFiniteError(
        "a non-finite energy appeared at the particles to be resampled", "a lower learning_rate or backbone='layer_norm'"
    )


def _taken(particles: th.Tensor, index: th.Tensor) -> th.Tensor:
    return particles[th.arange(len(index), device=index.device).unsqueeze(1), index]
