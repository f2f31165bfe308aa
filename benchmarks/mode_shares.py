"""
Shares of modes by draws and by ``exp(-V / ε)`` of an Energy Matching at its defaults, on densities that nobody tuned it for.

``python -m benchmarks.mode_shares`` prints a table, in half a minute for each density.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from sb3_energy import EnergyMatching


class Modes(NamedTuple):
    """
    A mixture of Gaussians.

    :param means: ``(K, D)``
    :param shares: ``K``, which sum to 1
    :param std: of each coordinate in each mode
    """

    means: list[list[float]]
    shares: list[float]
    std: float

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        means = np.array(self.means)[rng.choice(len(self.shares), size=n, p=self.shares)]
        return means + self.std * rng.standard_normal(means.shape)

    def shares_of(self, x: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """
        :param x: ``(n, D)``
        :param weights: ``(n,)``, equal ones by default
        :return: ``(K,)`` the share of points that are nearest to each mode
        """
        nearest = np.square(x[:, None] - np.array(self.means)).sum(-1).argmin(1)
        counts = np.bincount(nearest, weights=weights, minlength=len(self.shares))
        return counts / counts.sum()


DENSITIES = {
    "two, .6 and .4": Modes([[-1.0], [1.0]], [0.6, 0.4], 0.2),
    "two, .8 and .2": Modes([[-1.0], [1.0]], [0.8, 0.2], 0.2),
    "three on a line": Modes([[-1.4], [0.2], [1.3]], [0.5, 0.2, 0.3], 0.15),
    "three in the plane": Modes([[-1.0, -0.5], [1.0, -0.8], [0.2, 1.2]], [0.6, 0.3, 0.1], 0.2),
}


def measure(modes: Modes, gradient_steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """
    :param modes: the density
    :param gradient_steps: of the training
    :param seed: of data and training
    :return: the shares by 5 000 draws, and those of ``exp(-V / ε)`` on a grid
    """
    data = modes.draw(10_000, np.random.default_rng(seed))
    model = EnergyMatching(seed=seed, device="cpu").fit(data, gradient_steps=gradient_steps)
    line = np.linspace(-3.0, 3.0, 2001 if data.shape[1] == 1 else 301)
    grid = np.stack(np.meshgrid(*[line] * data.shape[1], indexing="ij"), axis=-1).reshape(-1, data.shape[1])
    log_density = -model.energy(grid) / model.settings.temperature
    return modes.shares_of(model.sample(5000)), modes.shares_of(grid, np.exp(log_density - log_density.max()))


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: of the command line
    :return: 0
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gradient-steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--densities", nargs="+", choices=sorted(DENSITIES), default=list(DENSITIES), metavar="NAME")
    args = parser.parse_args(arguments)
    print("| modes | data | draws | exp(-V / ε) |\n|---|---|---|---|", flush=True)
    for name in args.densities:
        found = [
            " ".join(f"{share:.3f}" for share in shares) for shares in measure(DENSITIES[name], args.gradient_steps, args.seed)
        ]
        print(
            f"| {name} | {' '.join(f'{share:g}' for share in DENSITIES[name].shares)} | {found[0]} | {found[1]} |", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
