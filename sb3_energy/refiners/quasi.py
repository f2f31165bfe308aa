"""Fixed points that are spread like a Gaussian: noise for those who may not roll dice."""

from functools import lru_cache

import torch as th


@lru_cache(maxsize=64)
def _sobol_normal(n: int, dimension: int) -> th.Tensor:
    # The first point of the sequence is the corner 0, the second the centre: the mean, once it is a quantile.
    points = th.quasirandom.SobolEngine(dimension, scramble=False).draw(n + 1, dtype=th.float64)[1:]
    return th.special.ndtri(points).float()


_PLACED: dict[tuple[int, int, th.device, th.dtype], th.Tensor] = {}


@th.compiler.assume_constant_result
def _placed_normal(n: int, dimension: int, device: th.device, dtype: th.dtype) -> th.Tensor:
    # Kept where they are used, and for good: a copy makes the host wait for a GPU, and a CUDA graph reads them where they are
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
    points = _placed_normal(n, like[0].numel(), like.device, like.dtype)
    return points.reshape(1, n, *like.shape[1:])
