"""Densities on the box ``[-1, 1]^d`` in any number of dimensions, whose mode shares, energies and entropies are known."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch as th

SHARE = 0.334
"""Of the side ``a_1 < 0``, up to the little that the other mode has there."""

N_EXACT = 200_000
"""Exact draws that a mean is taken of where no closed form is at hand: its error is below .2 %."""


class WideTarget(Protocol):
    """A density ``exp(-E)`` on the box, and what is known of it."""

    dimension: int

    def energy(self, a: th.Tensor) -> th.Tensor:
        """``(B, N, d) -> (B, N)``."""
        ...

    def side(self, a: th.Tensor) -> th.Tensor:
        """``(n, d) -> (n,)`` whether a draw is at the mode of the smaller share."""
        ...

    def exact_draws(self, n: int, generator: th.Generator) -> th.Tensor:
        """``(n, d)`` draws."""
        ...

    def log_normalizer(self) -> float:
        """``log ∫ exp(-E(a)) da`` over the box."""
        ...


class Truth:
    """
    Numbers of a density that draws are compared with.

    :param target: the density
    """

    def __init__(self, target: WideTarget):
        draws = target.exact_draws(N_EXACT, th.Generator().manual_seed(0))
        energies = target.energy(draws.unsqueeze(0))[0]
        self.share = float(target.side(draws).double().mean())
        self.energy = float(energies.mean()) / target.dimension
        self.spread = float(draws.std(dim=0).mean())
        self.log_normalizer = target.log_normalizer()
        self.entropy = self.log_normalizer + float(energies.mean())


@dataclass(frozen=True)
class Wells:
    """
    Two wells in each dimension, and nothing that ties the dimensions: ``2^d`` modes.

    :param dimension: ``d``
    :param place: of the wells, at ``-place`` and ``place``
    :param std: of each well
    """

    dimension: int
    place: float = 0.5
    std: float = 0.2

    def energy(self, a: th.Tensor) -> th.Tensor:
        return self._alone(a).sum(-1)

    def side(self, a: th.Tensor) -> th.Tensor:
        return a[:, 0] < 0.0

    def exact_draws(self, n: int, generator: th.Generator) -> th.Tensor:
        points, mass = self._grid()
        shape = (n, self.dimension)
        index = th.searchsorted(mass.cumsum(0), th.rand(shape, dtype=th.float64, generator=generator))
        within = th.rand(shape, dtype=th.float64, generator=generator) - 0.5
        return (points[index.clamp(max=len(points) - 1)] + within * (points[1] - points[0])).float()

    def log_normalizer(self) -> float:
        points, _ = self._grid()
        return self.dimension * float((-self._alone(points)).logsumexp(0) + math.log(2.0 / len(points)))

    def _alone(self, a: th.Tensor) -> th.Tensor:
        left, right = (-0.5 * ((a - side * self.place) / self.std).square() for side in (-1.0, 1.0))
        return -th.logaddexp(left + math.log(SHARE), right + math.log(1.0 - SHARE))

    def _grid(self) -> tuple[th.Tensor, th.Tensor]:
        points = (th.arange(20_000, dtype=th.float64) + 0.5) / 10_000 - 1.0
        return points, (-self._alone(points)).softmax(0)


@dataclass(frozen=True)
class Correlated:
    """
    One Gaussian whose neighbouring dimensions are correlated. Its mode has both sides, ``a_1 < 0`` is half of it.

    :param dimension: ``d``
    :param std: of each dimension, so small that the box cuts nothing off
    :param correlation: of neighbours; of others a power of it
    """

    dimension: int
    std: float = 0.2
    correlation: float = 0.8

    def energy(self, a: th.Tensor) -> th.Tensor:
        return 0.5 * th.linalg.solve_triangular(self._root().to(a.dtype), a.flatten(0, -2).T, upper=False).square().sum(
            0
        ).reshape(a.shape[:-1])

    def side(self, a: th.Tensor) -> th.Tensor:
        return a[:, 0] < 0.0

    def exact_draws(self, n: int, generator: th.Generator) -> th.Tensor:
        noise = th.randn((n, self.dimension), dtype=th.float64, generator=generator)
        return (noise @ self._root().T).clamp(-1.0, 1.0).float()

    def log_normalizer(self) -> float:
        return 0.5 * self.dimension * math.log(2.0 * math.pi) + float(self._root().diagonal().log().sum())

    def _root(self) -> th.Tensor:
        index = th.arange(self.dimension, dtype=th.float64)
        covariance = self.std**2 * self.correlation ** (index.unsqueeze(0) - index.unsqueeze(1)).abs()
        return th.linalg.cholesky(covariance)


@dataclass(frozen=True)
class TwoModes:
    """
    Two Gaussians of unequal weight, opposite each other in all dimensions at once: 2 modes, whatever ``d`` is.

    :param dimension: ``d``
    :param distance: of each mode from the middle, in Euclidean length
    :param std: of each mode in each dimension, so small that the box cuts nothing off
    """

    dimension: int
    distance: float = 0.6
    std: float = 0.15

    def energy(self, a: th.Tensor) -> th.Tensor:
        offset = self.distance / math.sqrt(self.dimension)
        left, right = (-0.5 * ((a - side * offset) / self.std).square().sum(-1) for side in (-1.0, 1.0))
        return -th.logaddexp(left + math.log(SHARE), right + math.log(1.0 - SHARE))

    def side(self, a: th.Tensor) -> th.Tensor:
        return a.sum(dim=1) < 0.0

    def exact_draws(self, n: int, generator: th.Generator) -> th.Tensor:
        left = th.rand((n, 1), generator=generator) < SHARE
        centres = th.where(left, -1.0, 1.0) * self.distance / math.sqrt(self.dimension)
        return (centres + self.std * th.randn((n, self.dimension), generator=generator)).clamp(-1.0, 1.0)

    def log_normalizer(self) -> float:
        return self.dimension * math.log(self.std * math.sqrt(2.0 * math.pi))


def wide_targets(dimension: int) -> Mapping[str, WideTarget]:
    """
    :param dimension: ``d``
    :return: name -> density
    """
    return {"wells": Wells(dimension), "correlated Gaussian": Correlated(dimension), "two modes": TwoModes(dimension)}
