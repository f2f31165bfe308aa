"""
Refiners on critics that were trained on tasks with 6 and 17 numbers of an action, against long chains.

``python -m benchmarks.wide_critics --train`` trains them (some minutes; needs Gymnasium's MuJoCo tasks) and writes
``benchmarks/data/wide_critics.npz``, the critics as functions of the action at one observation. Without ``--train`` the energy
and the spread of every refiner's draws on them are compared with a long chain's; ``--docs`` puts the table into
``docs/refiners.md``.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch as th

from benchmarks.files import write_text
from benchmarks.sampler_critic import critic_of, linear_layers
from benchmarks.sampler_draws import fitted_base
from benchmarks.sampler_page import environment, table
from benchmarks.tables import put_table
from benchmarks.wide_samplers import SETTINGS
from sb3_energy import EnergySAC
from sb3_energy.energies import aggregate_q_values, squashed, tempered
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refiners import MetropolisAdjustedLangevin, refined_particles
from sb3_energy.schedules import Geometric
from sb3_energy.types import EnergyFn, Target

DATA = Path(__file__).parent / "data" / "wide_critics.npz"
TASKS = ("HalfCheetah-v5", "Humanoid-v5")
"""With 6 and 17 numbers of an action."""
WIDTHS = [96, 96]
SEED = 0
STARTS = ("smc, 30 rungs", "box")
"""Of two references: as far as they agree, each is trusted."""
FACTORS = (1.0, 0.1)
"""Of the temperature: a trained one's, and a steeper energy."""
STEP_SIZES = Geometric(0.3, 0.003)
"""Pre-tanh, of a reference's chains: some fit."""


class Law(NamedTuple):
    """
    :param energy: the mean, for each dimension
    :param spread: standard deviation of a coordinate, in the mean over them
    """

    energy: float
    spread: float


def train(task: str, steps: int) -> EnergySAC:
    """
    :param task: id of the environment
    :param steps: of it
    :return: the trained model
    """
    policy_kwargs = dict(net_arch=WIDTHS, backbone="plain", refiner="snis", n_particles=16)
    model = EnergySAC("MlpPolicy", gym.make(task), learning_starts=1000, policy_kwargs=policy_kwargs, seed=SEED, device="cpu")
    return model.learn(steps)


def at_its_observation(model: EnergySAC) -> dict[str, np.ndarray]:
    """
    :param model: whose latest observation is taken
    :return: the critics' weights as functions of the action alone, and the temperature, both in the units of the reward
    """
    state = linear_layers(model)
    features = th.as_tensor(model._last_obs, dtype=th.float32)[0]
    for name in [name for name in state if name.endswith(".0.weight")]:
        of_features, of_action = state[name].split([len(features), state[name].shape[1] - len(features)], dim=1)
        bias = name.replace("weight", "bias")
        state |= {name: of_action, bias: state[bias] + of_features @ features}
    temperature = np.float32(model.policy.temperature.item())
    return {name: value.numpy() for name, value in state.items()} | dict(temperature=temperature)


class TrainedCritic:
    """
    ``-Q / α`` of an action at one observation, the mean over critics.

    :param arrays: of :func:`at_its_observation`
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        state = {name: th.as_tensor(value) for name, value in arrays.items()}
        self.temperature = float(state.pop("temperature"))
        self.critics = [critic_of(state, f"{name}.") for name in sorted({name.split(".")[0] for name in state})]
        self.dimension = int(state["qf0.0.weight"].shape[1])

    def energy(self, a: th.Tensor) -> th.Tensor:
        """
        :param a: ``(B, N, d)`` in the box
        :return: ``(B, N)``
        """
        q_values = th.stack([critic(a).squeeze(-1) for critic in self.critics])
        return -aggregate_q_values(q_values, "mean") / self.temperature


def trained_critics(source: Path = DATA) -> dict[str, TrainedCritic]:
    """
    :param source: what ``--train`` wrote
    :return: by task
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(source) as data:
        for name in data.files:
            task, _, own = name.partition("/")
            found.setdefault(task, {})[own] = data[name]
    return {task: TrainedCritic(arrays) for task, arrays in found.items()}


def law(draws: th.Tensor, energy: EnergyFn) -> Law:
    """
    :param draws: ``(n, d)`` in the box
    :param energy: of what
    :return: their numbers
    """
    return Law(float(energy(draws.unsqueeze(0)).mean()) / draws.shape[1], float(draws.std(dim=0).mean()))


def drawn(setting: str, base: Gaussian, energy: EnergyFn, n: int) -> th.Tensor:
    """
    :param setting: a name in :data:`benchmarks.wide_samplers.SETTINGS`, or ``"box"``: uniform
    :param base: ``(1, d)``
    :param energy: in the box
    :param n: how many
    :return: ``(n, d)`` in the box
    """
    rows = Gaussian(*(part.repeat(n, 1) for part in base))
    if setting == "box":
        return 2.0 * th.rand_like(rows.mean) - 1.0
    refinement = RefinementArguments(**SETTINGS[setting]).make_refinement()
    if refinement.is_identity:
        return th.tanh(rows.mean + rows.std * th.randn_like(rows.mean))
    return th.tanh(refinement.sample(rows, energy).detach())


def reference(start: str, base: Gaussian, energy: EnergyFn, n: int, n_steps: int) -> th.Tensor:
    """
    :param start: of :func:`drawn`
    :param base: ``(1, d)``
    :param energy: in the box
    :param n: of chains
    :param n_steps: of each
    :return: ``(n, d)`` ends of long chains with a Metropolis test, in the box
    """
    particles = th.atanh(drawn(start, base, energy, n).clamp(-0.9999, 0.9999)).unsqueeze(0)
    chain = MetropolisAdjustedLangevin(STEP_SIZES)
    return th.tanh(refined_particles(chain, particles, Target(squashed(energy)), n_steps=n_steps))[0].detach()


def report(source: Path, n: int, n_steps: int) -> str:
    """
    :param source: what ``--train`` wrote
    :param n: of draws and of chains
    :param n_steps: of a reference's chains
    :return: the table
    """
    heading, found = ["refiner"], []
    for (task, critic), factor in product(trained_critics(source).items(), FACTORS):
        th.manual_seed(SEED)
        energy = tempered(critic.energy, factor)
        base = fitted_base(energy, dimension=critic.dimension)
        laws = {f"long chains from {start}": law(reference(start, base, energy, n, n_steps), energy) for start in STARTS}
        found.append(laws | {setting: law(drawn(setting, base, energy, n), energy) for setting in SETTINGS})
        heading += [f"{task}{'' if factor == 1.0 else f', α · {factor:g}'}: energy", "spread"]
    lines = [[name, *(f"{number:.2f}" for laws in found for number in laws[name])] for name in found[0]]
    return f"{table(heading, lines)}\n\n{environment()}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """
    :param argv: the command line's arguments
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--train", action="store_true", help="train the critics and stop")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="that critics are trained on")
    parser.add_argument("--steps", type=int, default=6000, help="of training (default %(default)s)")
    parser.add_argument("--draws", type=int, default=500, help="and chains (default %(default)s)")
    parser.add_argument("--chain-steps", type=int, default=2000, help="of a reference (default %(default)s)")
    parser.add_argument("--data", type=Path, default=DATA, help="what --train writes (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("results/wide_critics"), help="folder (default %(default)s)")
    parser.add_argument("--docs", action="store_true", help="also write the table into docs/refiners.md")
    args = parser.parse_args(argv)
    th.set_num_threads(1)
    if args.train:
        models = {task: train(task, args.steps) for task in TASKS}
        arrays = {
            f"{task}/{name}": value for task, model in models.items() for name, value in at_its_observation(model).items()
        }
        np.savez(args.data, **arrays)  # type: ignore[arg-type]
        print(f"Written to {args.data}.")
        return 0
    text = report(args.data, args.draws, args.chain_steps)
    write_text(args.output / "table.md", text)
    if args.docs:
        put_table(Path("docs/refiners.md"), "wide critics", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
