"""
Densities of the plane, learned from 10 000 samples by Energy Matching, by TorchEBM's, and by a mixture of Gaussians.

``python -m benchmarks.densities`` writes a table (CSV and Markdown) and a page of pictures. Each result is stored when it is
there, so that what was interrupted goes on where it was.
"""

import argparse
import csv
import io
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch as th

from benchmarks.density_data import DENSITIES, Density
from benchmarks.density_page import draw_page, markdown
from benchmarks.files import write_text
from sb3_energy import EnergyMatching

N_TRAIN, N_TEST, N_FLOOR = 10_000, 4_000, 10
BANDWIDTHS = (0.1, 0.25, 0.5, 1.0, 2.0)
COLUMNS = ("density", "method", "mmd2", "mmd2_std", "modes", "on_support", "train_seconds", "sample_seconds", "gradient_steps")
GRID = np.linspace(-2.6, 2.6, 140)

Potential = Callable[[np.ndarray], np.ndarray]


class Fitted(NamedTuple):
    """
    :param sample: ``n -> (n, 2)``
    :param energy: ``(n, 2) -> (n,)``, for the picture
    :param gradient_steps: that were made
    """

    sample: Callable[[int], np.ndarray]
    energy: Potential
    gradient_steps: int


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """
    The unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, equation 3) with the mean of Gaussian
    kernels of several bandwidths. It may be negative: it is 0 in the mean where both laws are the same.

    :param x: ``(n, D)``
    :param y: ``(m, D)``
    :return: the estimate
    """
    a, b = th.as_tensor(x, dtype=th.float32), th.as_tensor(y, dtype=th.float32)
    n, m = len(a), len(b)
    within = (_kernel_sum(a, a) - n) / (n * (n - 1)) + (_kernel_sum(b, b) - m) / (m * (m - 1))
    return within - 2.0 * _kernel_sum(a, b) / (n * m)


def _kernel_sum(a: th.Tensor, b: th.Tensor) -> float:
    squares = (a.square().sum(1)[:, None] + b.square().sum(1) - 2.0 * a @ b.T).clamp_(min=0.0)
    if a is b:
        squares.fill_diagonal_(0.0)  # exactly: n of them are subtracted
    return sum(float(th.exp(squares / (-2.0 * width**2)).sum(dtype=th.float64)) for width in BANDWIDTHS) / len(BANDWIDTHS)


def coverage(density: Density, samples: np.ndarray) -> tuple[float, float]:
    """
    :param density: the true one
    :param samples: ``(n, 2)``
    :return: share of the modes with at least half of their fair number of samples, and share of samples on the support
    """
    modes = density.mode_of(samples)
    counts = np.bincount(modes[modes >= 0], minlength=density.n_modes)
    return float((counts >= 0.5 * len(samples) / density.n_modes).mean()), float((modes >= 0).mean())


def energy_matching(data: np.ndarray, args: argparse.Namespace) -> Fitted:
    """
    :param data: ``(n, 2)``
    :param args: the command line
    :return: ours, at its defaults
    """
    model = EnergyMatching(seed=args.seed, device="cpu").fit(data, gradient_steps=args.gradient_steps)
    return Fitted(model.sample, model.energy, model.n_updates)


def torchebm(data: np.ndarray, args: argparse.Namespace, as_many_steps: bool = False) -> Fitted:
    """
    TorchEBM's ``EnergyMatchingLoss`` at its defaults, the settings of the paper's plane, on a network of the same size. Only
    its chains have 50 steps of 0.02 instead of 200 of 0.01, as ours have 50, so that the CPU time it is given (a third of it
    for the warm-up) is worth more gradient steps.

    :param data: ``(n, 2)``
    :param args: the command line
    :param as_many_steps: whether it makes as many gradient steps as ours, however long they take, and not what the time allows
    :return: theirs
    """
    from torchebm.core import BaseModel, TemperatureScheduler
    from torchebm.losses import EnergyMatchingLoss
    from torchebm.samplers import LangevinDynamics

    class Network(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            layers = [th.nn.Linear(2, 128), th.nn.SiLU(), th.nn.Linear(128, 128), th.nn.SiLU()]
            self.layers = th.nn.Sequential(*layers, th.nn.Linear(128, 128), th.nn.SiLU(), th.nn.Linear(128, 1))

        def forward(self, x: th.Tensor, *args, **kwargs) -> th.Tensor:
            return self.layers(x).squeeze(-1)

    th.manual_seed(args.seed)
    points, network = th.as_tensor(data, dtype=th.float32), Network()
    loss_fn = EnergyMatchingLoss(model=network, lambda_cd=0.0, n_langevin_steps=50, langevin_dt=0.02, device="cpu")
    weight = 2.0  # of the contrastive term by default
    optimizer, steps, started = th.optim.Adam(network.parameters(), lr=1e-3), 0, time.process_time()

    def done() -> float:
        return steps / args.gradient_steps if as_many_steps else (time.process_time() - started) / args.seconds

    while (part := done()) < 1.0:
        loss_fn.lambda_cd = 0.0 if part < 1.0 / 3.0 else weight
        loss = loss_fn(points[th.randint(len(points), (256,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1

    def sample(n: int) -> np.ndarray:
        schedule = TemperatureScheduler(0.15, 0.8, n_steps=50, t_end=1.0)
        sampler = LangevinDynamics(model=network, step_size=0.02, noise_scale=schedule, device="cpu")
        return sampler.sample(x=th.randn(n, 2), n_steps=50).detach().numpy()

    def energy(x: np.ndarray) -> np.ndarray:
        with th.no_grad():
            return network(th.as_tensor(x, dtype=th.float32)).numpy()

    return Fitted(sample, energy, steps)


def mixture(data: np.ndarray, args: argparse.Namespace) -> Fitted:
    """
    :param data: ``(n, 2)``
    :param args: the command line
    :return: scikit-learn's mixture of 16 Gaussians with full covariances, the best of three starts
    """
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(16, n_init=3, max_iter=500, random_state=args.seed).fit(data)

    def sample(n: int) -> np.ndarray:
        return model.sample(n)[0]

    return Fitted(sample, lambda x: -model.score_samples(x), 0)


METHODS = {
    "EnergyMatching": energy_matching,
    "TorchEBM": torchebm,
    "TorchEBM, as many steps": partial(torchebm, as_many_steps=True),
    "mixture of 16": mixture,
}


def cell(density: Density, method: str, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """
    :param density: to learn
    :param method: a name in ``METHODS``
    :param args: the command line
    :return: numbers, samples and the energy on the grid
    """
    data, test = samples_of(density, args.seed)
    started = time.process_time()
    fitted = METHODS[method](data, args)
    trained = time.process_time()
    samples = fitted.sample(N_TEST)
    sampled = time.process_time()
    modes, on_support = coverage(density, samples)
    points = np.stack(np.meshgrid(GRID, GRID), axis=-1).reshape(-1, 2)
    row = dict(mmd2=squared_mmd(samples, test), mmd2_std=np.nan, modes=modes, on_support=on_support)
    row |= dict(train_seconds=trained - started, sample_seconds=sampled - trained, gradient_steps=fitted.gradient_steps)
    energies = fitted.energy(points).reshape(len(GRID), len(GRID))
    return {name: np.asarray(value) for name, value in (row | dict(samples=samples, energies=energies)).items()}


def floor(density: Density, seed: int) -> dict[str, np.ndarray]:
    """
    :param density: the true one
    :param seed: of the samples
    :return: the same numbers of true samples against the same test; the spread is that of the estimate
    """
    _, test = samples_of(density, seed)
    draws = [density.draw(N_TEST, np.random.default_rng((seed, 1, k))) for k in range(N_FLOOR)]
    values = [squared_mmd(draw, test) for draw in draws]
    modes, on_support = coverage(density, draws[0])
    row = dict(mmd2=np.mean(values), mmd2_std=np.std(values), modes=modes, on_support=on_support, samples=draws[0])
    return {name: np.asarray(value) for name, value in row.items()}


def samples_of(density: Density, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """
    :param density: to draw from
    :param seed: of the samples
    :return: what is learned from ``(N_TRAIN, 2)``, and what is held out ``(N_TEST, 2)``
    """
    rng = np.random.default_rng((seed, 0))
    return density.draw(N_TRAIN, rng), density.draw(N_TEST, rng)


def stored(path: Path, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """
    :param path: of the result
    :param compute: makes it, if it is not there
    :return: the result
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.stem}.tmp.npz")
        np.savez(temporary, allow_pickle=False, **compute())
        temporary.replace(path)
    with np.load(path) as content:
        return dict(content)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """
    :param argv: the command line, ``None`` for that of the process
    :return: its settings
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--densities", nargs="+", choices=list(DENSITIES), default=list(DENSITIES))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--gradient-steps", type=int, default=600, help="of EnergyMatching, and of TorchEBM's second row")
    parser.add_argument("--seconds", type=float, default=25.0, help="of CPU time that TorchEBM trains")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("results/densities"))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """
    :param argv: the command line, ``None`` for that of the process
    """
    args = parse(argv)
    th.set_num_threads(1)
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    cells = args.output / f"seed{args.seed}_steps{args.gradient_steps}_seconds{args.seconds:g}"
    for name in args.densities:
        density = DENSITIES[name]
        found[name] = {"true samples": stored(cells / f"{name}_true.npz", lambda density=density: floor(density, args.seed))}
        for method in args.methods:
            path = cells / f"{name}_{method.replace(',', '').replace(' ', '_')}.npz"
            found[name][method] = stored(path, lambda density=density, method=method: cell(density, method, args))
            print(f"{name}, {method}: squared MMD {float(found[name][method]['mmd2']):.2e}", flush=True)
    lines = [dict(density=name, method=method, **values) for name, row in found.items() for method, values in row.items()]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(args.output / "densities.csv", text.getvalue())
    write_text(args.output / "densities.md", markdown(found))
    draw_page(found, GRID, args.output / "densities.png")
    print(markdown(found))


if __name__ == "__main__":
    main()
