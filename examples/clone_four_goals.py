"""An expert with four ways to go: what a Gaussian clone averages away and Energy Matching keeps.

Collects episodes of the soft-optimal expert of ``MultiGoal-v0``, all from the origin, clones it by EnergyMatching and by a
Gaussian of maximum likelihood, rolls out both and says how often each goal was reached:

    python examples/clone_four_goals.py --seed 0 --output clone_four_goals.png

Upper row: first actions, sampled at the origin. Lower row: sampled rollouts.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch as th
from multi_goal import Picture, Policy, draw_rollouts, optimal_policy, rollout
from torch import nn

from sb3_energy import EnergyMatching
from sb3_energy.envs.multi_goal import GOAL_NAMES, HORIZON, LIMIT, step_dynamics
from sb3_energy.envs.soft_values import soft_value_iteration


class Pairs(NamedTuple):
    """
    :param observations: ``(n, 2)``
    :param actions: ``(n, 2)`` in the box
    """

    observations: np.ndarray
    actions: np.ndarray


def collect(policy: Policy, n_episodes: int) -> Pairs:
    """
    :param policy: of the expert
    :param n_episodes: all from the origin
    :return: what it did in each state until the episode's end
    """
    states, observations, actions = np.zeros((n_episodes, 2)), list[np.ndarray](), list[np.ndarray]()
    for _ in range(HORIZON):
        if len(states) == 0:
            break
        chosen = policy(states)
        observations.append(states)
        actions.append(chosen)
        transition = step_dynamics(states, chosen)
        states = transition.next_states[transition.goals < 0]
    return Pairs(np.concatenate(observations), np.concatenate(actions))


def gaussian_clone(pairs: Pairs, gradient_steps: int, seed: int) -> Policy:
    """
    :param pairs: of the expert
    :param gradient_steps: how many
    :param seed: of networks and noise
    :return: a diagonal Gaussian of a network's mean and spread, by maximum likelihood, clipped to the box
    """
    generator = th.Generator().manual_seed(seed)
    th.manual_seed(seed)
    network = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 4))
    optimizer = th.optim.Adam(network.parameters(), lr=1e-3)
    observations, actions = (th.as_tensor(part, dtype=th.float32) for part in pairs)
    for _ in range(gradient_steps):
        rows = th.randint(len(actions), (256,), generator=generator)
        mean, log_std = network(observations[rows] / LIMIT).chunk(2, dim=-1)
        log_std = log_std.clamp(-5.0, 2.0)
        loss = (0.5 * ((actions[rows] - mean) / log_std.exp()).square() + log_std).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def policy(states: np.ndarray) -> np.ndarray:
        with th.no_grad():
            mean, log_std = network(th.as_tensor(states, dtype=th.float32) / LIMIT).chunk(2, dim=-1)
        noise = th.randn(mean.shape, generator=generator)
        return (mean + log_std.clamp(-5.0, 2.0).exp() * noise).clamp(-1.0, 1.0).numpy()

    return policy


def energy_clone(pairs: Pairs, gradient_steps: int, seed: int) -> Policy:
    """
    :param pairs: of the expert
    :param gradient_steps: how many
    :param seed: of everything
    :return: draws of the potential, whose chains walk in the box of actions
    """
    model = EnergyMatching(box="reflect", base="uniform", seed=seed, device="cpu")
    model.fit(pairs.actions, observations=pairs.observations, gradient_steps=gradient_steps)
    return lambda states: model.predict(states)[0]


def picture_of(name: str, policy: Policy, n_episodes: int) -> Picture:
    """
    :param name: of the column
    :param policy: states to actions
    :param n_episodes: how many to run
    :return: the column, without a landscape of values, which clones do not have
    """
    paths, goals = rollout(policy, n_episodes)
    return Picture(name, np.zeros((0, 0)), policy(np.zeros((n_episodes, 2))), paths, goals)


def draw(pictures: list[Picture], output: Path) -> None:
    """
    :param pictures: the columns
    :param output: the PNG to write
    """
    figure, axes = plt.subplots(2, len(pictures), figsize=(3.6 * len(pictures), 7.6), layout="constrained", squeeze=False)
    for column, picture in enumerate(pictures):
        place = axes[0, column]
        place.scatter(*picture.first_actions.T, s=5, color="#2e86ab", alpha=0.5, linewidths=0)
        place.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xticks=(-1, 0, 1), yticks=(-1, 0, 1), xlabel="$a_1$", aspect="equal")
        place.set_title(picture.name, fontsize=13, fontweight="bold", pad=8)
        draw_rollouts(axes[1, column], picture)
    axes[0, 0].set_ylabel("$a_2$ of the first action")
    axes[1, 0].set_ylabel("$s_2$")
    figure.savefig(output, dpi=110)
    plt.close(figure)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """
    :param argv: the command line, ``None`` for that of the process
    :return: its settings
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alpha", type=float, default=3.0, help="entropy coefficient of the expert")
    parser.add_argument("--expert-episodes", type=int, default=1000)
    parser.add_argument("--gradient-steps", type=int, default=700, help="of each clone")
    parser.add_argument("--episodes", type=int, default=1000, help="of each evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("clone_four_goals.png"))
    args = parser.parse_args(argv)
    for name in ("expert_episodes", "gradient_steps", "episodes"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if not args.output.parent.is_dir():
        parser.error(f"--output must lie in a folder that exists, got {args.output}")
    return args


def main(argv: list[str] | None = None) -> list[Picture]:
    """
    :param argv: the command line, ``None`` for that of the process
    :return: what was drawn: the expert, the Gaussian clone and EnergyMatching
    """
    args = parse(argv)
    exact = soft_value_iteration(args.alpha, n_states=57, n_actions=21)
    expert = optimal_policy(exact, np.random.default_rng(args.seed))
    pairs = collect(expert, args.expert_episodes)
    pictures = [picture_of("expert", expert, args.episodes)]
    for name, clone in (("Gaussian clone", gaussian_clone), ("EnergyMatching", energy_clone)):
        started = time.process_time()
        policy = clone(pairs, args.gradient_steps, args.seed)
        print(f"{name}: learned from {len(pairs.actions)} pairs in {time.process_time() - started:.0f} s of CPU time")
        pictures.append(picture_of(name, policy, args.episodes))
    for picture in pictures:
        shares = ", ".join(f"{goal} {share:.3f}" for goal, share in zip(GOAL_NAMES, picture.shares, strict=True))
        print(
            f"{picture.name:>14}: {shares}, none {(picture.goals < 0).mean():.3f}, mean length of the first action "
            f"{np.linalg.norm(picture.first_actions, axis=1).mean():.2f}"
        )
    draw(pictures, args.output)
    print(f"picture: {args.output}")
    return pictures


if __name__ == "__main__":
    main()
