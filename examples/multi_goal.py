"""Four equally good goals: what a Gaussian policy gives up and a refined one keeps.

Trains Stable-Baselines3's SAC, EnergySAC and PGAC on ``MultiGoal-v0`` with the same steps, the same fixed entropy coefficient
and the same network sizes, then draws them beside the exact answer into one picture:

    python examples/multi_goal.py --seed 0 --output multi_goal.png

All have their default settings. ``--backbone plain`` gives EnergySAC and PGAC SB3's own networks.

At a smaller entropy coefficient the four modes are narrow and a critic has to be right to a fraction of it. There a learning
rate that falls to next to nothing and more updates are what it takes, with any refiner that draws from the critic:

    python examples/multi_goal.py --ent-coef 1 --timesteps 248000 --n-envs 8 --learning-rate 1e-3 --final-learning-rate 1e-5 \
        --episodes 1000 --algorithms SAC EnergySAC

Upper row: the critic's landscape over the actions at the origin, and sampled first actions. Lower row: sampled rollouts.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch as th
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_energy import PGAC, EnergySAC
from sb3_energy.envs.multi_goal import GOAL_NAMES, GOALS, HORIZON, LIMIT, standing_reward, step_dynamics
from sb3_energy.envs.soft_values import SoftValues, action_grid, soft_value_iteration
from sb3_energy.networks import BACKBONES
from sb3_energy.pgac.potential_training import POSITIVES
from sb3_energy.refiners import REFINERS

Policy = Callable[[np.ndarray], np.ndarray]
"""``(n, 2)`` states to ``(n, 2)`` sampled actions."""

ALGORITHMS: dict[str, type[SAC]] = {cls.__name__: cls for cls in (SAC, EnergySAC, PGAC)}

GOAL_COLOURS = ("#e4572e", "#2e86ab", "#76b041", "#a05195")
LOST_COLOUR = "#8a8a8a"


class Picture(NamedTuple):
    """
    What one column of the picture shows.

    :param name: of the algorithm
    :param landscape: ``(n, n)`` Q-values at the origin over the grid of actions, first index along the first coordinate
    :param first_actions: ``(episodes, 2)`` actions sampled at the origin
    :param paths: ``(HORIZON + 1, episodes, 2)`` states; a path stands still once it has ended
    :param goals: ``(episodes,)`` index of the goal that was reached, -1 for none
    """

    name: str
    landscape: np.ndarray
    first_actions: np.ndarray
    paths: np.ndarray
    goals: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """``(4,)`` part of the episodes that reached each goal."""
        return np.bincount(self.goals[self.goals >= 0], minlength=len(GOALS)) / len(self.goals)


def rollout(policy: Policy, n_episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Run all the episodes side by side, from the origin.

    :param policy: states to actions
    :param n_episodes: how many
    :return: paths ``(HORIZON + 1, n_episodes, 2)`` and goals ``(n_episodes,)``
    """
    states, goals = np.zeros((n_episodes, 2)), np.full(n_episodes, -1)
    paths = [states]
    for _ in range(HORIZON):
        transition = step_dynamics(states, policy(states))
        running = goals < 0
        states = np.where(running[:, None], transition.next_states, states)
        goals = np.where(running, transition.goals, goals)
        paths.append(states)
    return np.stack(paths), goals


def sampling_policy(model: SAC) -> Policy:
    """
    :param model: a trained model
    :return: its stochastic policy
    """
    return lambda states: model.predict(states.astype(np.float32), deterministic=False)[0]


def optimal_policy(soft_values: SoftValues, rng: np.random.Generator) -> Policy:
    """
    :param soft_values: the exact soft values
    :param rng: source of the samples
    :return: the policy ``exp(Q / alpha)``, drawn from a grid of actions by the Gumbel trick and spread over the grid's cells
    """
    axis = np.linspace(-1.0, 1.0, 41)
    actions = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)

    def policy(states: np.ndarray) -> np.ndarray:
        logits = soft_values.q_value(states[:, None], actions) / soft_values.alpha
        chosen = actions[(logits + rng.gumbel(size=logits.shape)).argmax(axis=1)]
        return np.clip(chosen + rng.uniform(-0.025, 0.025, chosen.shape), -1.0, 1.0)

    return policy


def critic_landscape(model: SAC, actions: np.ndarray) -> np.ndarray:
    """
    :param model: a trained model
    :param actions: ``(n, n, 2)``
    :return: ``(n, n)`` mean of the critics at the origin
    """
    flat = th.as_tensor(actions.reshape(-1, 2), dtype=th.float32, device=model.device)
    with th.no_grad():
        q_values = th.cat(model.critic(th.zeros_like(flat), flat), dim=1).mean(dim=1)
    return q_values.cpu().numpy().reshape(actions.shape[:2])


def soft_value_of(landscape: np.ndarray, alpha: float) -> float:
    """
    :param landscape: ``(n, n)`` Q-values over a grid of actions
    :param alpha: entropy coefficient
    :return: ``alpha log integral exp(Q / alpha)`` by the trapezoidal rule
    """
    _, weights = action_grid(len(landscape))
    highest = landscape.max()
    return float(highest + alpha * np.log((np.exp((landscape - highest) / alpha) * weights).sum()))


def make_env(args: argparse.Namespace) -> VecEnv:
    """
    :param args: the command line
    :return: where to train
    """
    return make_vec_env("MultiGoal-v0", n_envs=args.n_envs, seed=args.seed)


def train(algorithm: type[SAC], args: argparse.Namespace) -> SAC:
    """
    :param algorithm: the class
    :param args: the command line
    :return: the trained model
    """
    policy_kwargs: dict[str, Any] = dict(net_arch=args.net_arch)
    if issubclass(algorithm, EnergySAC):
        policy_kwargs["backbone"] = args.backbone
    if algorithm is EnergySAC:
        policy_kwargs["refiner"] = args.refiner
    others = dict(potential_training_kwargs=dict(positives=args.positives)) if algorithm is PGAC else {}
    final = args.learning_rate if args.final_learning_rate is None else args.final_learning_rate
    model = algorithm(
        "MlpPolicy",
        make_env(args),
        ent_coef=args.ent_coef,
        learning_rate=LinearSchedule(args.learning_rate, final, 1.0),
        policy_kwargs=policy_kwargs,
        seed=args.seed,
        device=args.device,
        **others,
    )
    return model.learn(args.timesteps)


def picture_of(name: str, landscape: np.ndarray, policy: Policy, n_episodes: int) -> Picture:
    """
    :param name: of the algorithm
    :param landscape: Q-values at the origin
    :param policy: states to actions
    :param n_episodes: how many episodes to run
    :return: the column
    """
    paths, goals = rollout(policy, n_episodes)
    return Picture(name, landscape, policy(np.zeros((n_episodes, 2))), paths, goals)


def draw_landscape(axes: Axes, picture: Picture, depth: float) -> Any:
    """
    :param axes: where to draw
    :param picture: what to draw
    :param depth: span of the colour scale below the highest value, shared by the columns
    :return: matplotlib's image, for the colour bar
    """
    advantage = picture.landscape - picture.landscape.max()
    image = axes.imshow(
        advantage.T,
        origin="lower",
        extent=(-1, 1, -1, 1),
        cmap="viridis",
        norm=Normalize(-depth, 0.0),
        interpolation="bilinear",
    )
    axes.scatter(
        picture.first_actions[:, 0],
        picture.first_actions[:, 1],
        s=7,
        color="white",
        edgecolors="black",
        linewidths=0.3,
        alpha=0.85,
        zorder=3,
    )
    axes.set(xlim=(-1, 1), ylim=(-1, 1), xticks=(-1, 0, 1), yticks=(-1, 0, 1), xlabel="$a_1$")
    axes.set_title(picture.name, fontsize=13, fontweight="bold", pad=8)
    return image


def draw_rollouts(axes: Axes, picture: Picture) -> None:
    """
    :param axes: where to draw
    :param picture: what to draw
    """
    axis = np.linspace(-LIMIT, LIMIT, 281)
    states = np.stack(np.meshgrid(axis, axis), axis=-1)
    axes.contourf(axis, axis, standing_reward(states), levels=16, cmap="Greys_r", alpha=0.35, zorder=0)
    for path, goal in zip(np.moveaxis(picture.paths, 1, 0), picture.goals, strict=True):
        axes.plot(*path.T, color=GOAL_COLOURS[goal] if goal >= 0 else LOST_COLOUR, linewidth=0.6, alpha=0.35)
    for goal, share, colour in zip(GOALS, picture.shares, GOAL_COLOURS, strict=True):
        axes.add_patch(plt.Circle(tuple(goal), 0.5, facecolor="white", edgecolor=colour, linewidth=2.0, zorder=4))
        offset = -1.15 if goal[1] < 0 else 1.15
        label = axes.text(goal[0], goal[1] + offset, f"{share:.0%}", color=colour, ha="center", va="center", zorder=5)
        label.set(fontsize=10, fontweight="bold", bbox=dict(facecolor="white", edgecolor="none", alpha=0.75, pad=1.5))
    axes.plot(0, 0, marker="o", markersize=5, color="black", zorder=5)
    axes.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), xticks=(-5, 0, 5), yticks=(-5, 0, 5), xlabel="$s_1$", aspect="equal")
    lost = float((picture.goals < 0).mean())
    axes.set_title(
        f"least-visited goal {picture.shares.min():.0%}" + (f", no goal {lost:.0%}" if lost > 0 else ""), fontsize=10
    )


def draw(pictures: list[Picture], heading: str, output: Path) -> None:
    """
    :param pictures: the columns
    :param heading: title of the whole
    :param output: the PNG to write
    """
    figure, axes = plt.subplots(
        2, len(pictures), figsize=(3.7 * len(pictures) + 0.8, 8.0), layout="constrained", squeeze=False
    )
    depth = float(np.ptp(pictures[0].landscape))
    for column, picture in enumerate(pictures):
        image = draw_landscape(axes[0, column], picture, depth)
        draw_rollouts(axes[1, column], picture)
    axes[0, 0].set_ylabel("$a_2$")
    axes[1, 0].set_ylabel("$s_2$")
    figure.colorbar(image, ax=axes[0], label=r"$Q(0, a) - \max_a Q(0, a)$", shrink=0.9, pad=0.015)
    figure.suptitle(heading, fontsize=12)
    figure.savefig(output, dpi=150)
    plt.close(figure)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """
    :param argv: the command line, ``None`` for that of the process
    :return: its settings
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=64_000, help="environment steps of each training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ent-coef", type=float, default=3.0, help="entropy coefficient of both, fixed")
    parser.add_argument("--net-arch", type=int, nargs="+", default=[256, 256], help="hidden layers of actor and critics")
    parser.add_argument(
        "--backbone", choices=sorted(BACKBONES), default="layer_norm", help="body of EnergySAC's and PGAC's networks"
    )
    parser.add_argument(
        "--algorithms", choices=list(ALGORITHMS), nargs="+", default=list(ALGORITHMS), help="which, in this order"
    )
    parser.add_argument("--models", type=Path, default=None, help="folder where trained models are kept (default: nowhere)")
    parser.add_argument("--refiner", choices=sorted(REFINERS), default="mala", help="of EnergySAC, with its defaults")
    parser.add_argument("--positives", choices=POSITIVES, default="gibbs", help="what PGAC's potential learns to lead to")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of all networks, at the start")
    parser.add_argument(
        "--final-learning-rate", type=float, default=None, help="to which it falls in a straight line (default: it stays)"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--matmul-precision",
        choices=("highest", "medium"),
        default="highest",
        help="as torch.set_float32_matmul_precision has it; medium is faster on many CPUs",
    )
    parser.add_argument("--n-envs", type=int, default=4, help="environments side by side, one update for each step of all")
    parser.add_argument("--episodes", type=int, default=400, help="episodes of the evaluation, all from the origin")
    parser.add_argument("--output", type=Path, default=Path("multi_goal.png"))
    args = parser.parse_args(argv)
    for name in ("timesteps", "n_envs", "episodes"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    for name in ("ent_coef", "learning_rate"):
        if not getattr(args, name) > 0.0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, got {getattr(args, name)}")
    if args.final_learning_rate is not None and not args.final_learning_rate > 0.0:
        parser.error(f"--final-learning-rate must be above 0, got {args.final_learning_rate}")
    if not args.output.parent.is_dir():
        parser.error(f"--output must lie in a folder that exists, got {args.output}")
    return args


def main(argv: list[str] | None = None) -> list[Picture]:
    """
    :param argv: the command line, ``None`` for that of the process
    :return: what was drawn: the exact answer, and one of each algorithm
    """
    args = parse(argv)
    th.set_float32_matmul_precision(args.matmul_precision)
    axis = np.linspace(-1.0, 1.0, 81)
    actions = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    exact = soft_value_iteration(args.ent_coef, n_states=57, n_actions=21)
    optimal = optimal_policy(exact, np.random.default_rng(args.seed))
    pictures = [picture_of("exact answer", exact.q_value(np.zeros(2), actions), optimal, args.episodes)]
    for algorithm in map(ALGORITHMS.__getitem__, args.algorithms):
        started = time.perf_counter()
        model = train(algorithm, args)
        if args.models is not None:
            model.save(args.models / f"{algorithm.__name__}_seed{args.seed}")
        landscape = critic_landscape(model, actions)
        pictures.append(picture_of(algorithm.__name__, landscape, sampling_policy(model), args.episodes))
        print(f"{algorithm.__name__}: trained in {time.perf_counter() - started:.0f} s")
    for picture in pictures:
        reached = ", ".join(
            f"{name} {round(share * args.episodes)}" for name, share in zip(GOAL_NAMES, picture.shares, strict=True)
        )
        print(
            f"{picture.name:>12}: {reached}, none {(picture.goals < 0).sum()} of {args.episodes} episodes, "
            f"soft value at the origin {soft_value_of(picture.landscape, args.ent_coef):.1f}"
        )
    heading = f"MultiGoal-v0 after {args.timesteps} steps, entropy coefficient {args.ent_coef:g}, seed {args.seed}"
    draw(pictures, heading, args.output)
    print(f"picture: {args.output}")
    return pictures


if __name__ == "__main__":
    main()
