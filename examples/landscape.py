"""Draw a refined policy's energy over the actions at one observation, and the particles that it moves.

With --model, of an EnergySAC or a PGAC that was saved (--algo says which); without, of one that is trained here on
MultiGoal-v0, four goals around the origin that are equally good, with the settings of multi_goal.py. For PGAC the figure shows
the potential V, the critic's share -lambda Q, their sum U, and particles that are transported along -grad U without noise
(blue) and then sampled with noise (vermilion). For EnergySAC it shows the energy E = -Q, the density exp(-E / alpha), the
Gaussian policy, and particles. One-dimensional actions are drawn as curves, those of more than two dimensions in a plane
through the deterministic action (--dims).
"""

import argparse
import operator
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env

import sb3_energy.envs  # noqa: F401  (registers MultiGoal-v0)
from sb3_energy import PGAC, EnergySAC
from sb3_energy.landscape import Landscape, draw_landscape, landscape_of

ALGORITHMS: dict[str, type[EnergySAC]] = {"energy_sac": EnergySAC, "pgac": PGAC}


def train(args: argparse.Namespace) -> EnergySAC:
    """
    :param args: the command line
    :return: a model trained on four goals, with rewards and entropy coefficient on the same scale
    """
    wrapper: Any = gym.wrappers.TransformReward
    scaled = dict(func=partial(operator.mul, args.reward_scale))
    env = make_vec_env("MultiGoal-v0", n_envs=4, seed=args.seed, wrapper_class=wrapper, wrapper_kwargs=scaled)
    model = ALGORITHMS[args.algo](
        "MlpPolicy",
        env,
        ent_coef=args.ent_coef * args.reward_scale,
        learning_starts=args.learning_starts,
        policy_kwargs=dict(net_arch=args.net_arch, backbone="plain"),
        seed=args.seed,
        device=args.device,
    )
    started = time.perf_counter()
    model.learn(args.timesteps)
    print(f"trained for {args.timesteps} steps in {time.perf_counter() - started:.0f} s")
    return model


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """
    :param argv: the command line, ``None`` for that of the process
    :return: its settings
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", choices=ALGORITHMS, default="pgac", help="the algorithm of the model")
    parser.add_argument("--model", type=Path, default=None, help="a model that was saved (default: train one here)")
    parser.add_argument("--observation", type=float, nargs="+", default=[0.0, 0.0], help="as the policy is given it")
    parser.add_argument("--dims", type=int, nargs="+", default=None, help="dimensions of the actions, from 0 (default: 0 1)")
    parser.add_argument("--particles", type=int, default=64, help="number of particles to follow")
    parser.add_argument("--grid", type=int, default=101, help="grid points in each dimension")
    parser.add_argument("--output", type=Path, default=Path("landscape.png"), help="the figure")
    parser.add_argument("--seed", type=int, default=0, help="of the training and of the particles")
    parser.add_argument("--device", default="auto")
    training = parser.add_argument_group("training, without --model")
    training.add_argument("--timesteps", type=int, default=32_000, help="environment steps, four for each update")
    training.add_argument("--learning-starts", type=int, default=8_000, help="steps of uniform actions before learning")
    training.add_argument("--ent-coef", type=float, default=3.0, help="entropy coefficient of the Gaussian, fixed")
    training.add_argument("--reward-scale", type=float, default=0.05, help="of rewards and entropy coefficient in training")
    training.add_argument("--net-arch", type=int, nargs="+", default=[256, 256], help="hidden layers of all networks")
    training.add_argument("--save", type=Path, default=None, help="file to save the trained model to")
    args = parser.parse_args(argv)
    for name in ("timesteps", "learning_starts", "particles"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    for name in ("ent_coef", "reward_scale"):
        if not getattr(args, name) > 0.0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, got {getattr(args, name)}")
    if args.grid < 2:
        parser.error(f"--grid must be at least 2, got {args.grid}")
    if args.model is not None and not args.model.is_file():
        parser.error(f"--model must be a file that exists, got {args.model}")
    for name in ("output", "save"):
        path = getattr(args, name)
        if path is not None and not path.parent.is_dir():
            parser.error(f"--{name} must lie in a folder that exists, got {path}")
    return args


def main(argv: list[str] | None = None) -> Landscape:
    """
    :param argv: the command line, ``None`` for that of the process
    :return: the arrays that were drawn
    """
    args = parse(argv)
    if args.model is None:
        model = train(args)
        if args.save is not None:
            model.save(args.save)
    else:
        model = ALGORITHMS[args.algo].load(args.model, device=args.device)
    observation, shape = np.array(args.observation, dtype=np.float32), model.observation_space.shape
    if shape is None or observation.size != np.prod(shape):
        raise SystemExit(f"--observation must have the numbers of a {model.observation_space}, got {args.observation}")
    observation = observation.reshape(shape)
    dims = None if args.dims is None else tuple(args.dims)
    landscape = landscape_of(model, observation, dims, args.grid, args.particles, args.seed)
    where = ", ".join(f"{number:g}" for number in args.observation)
    title = f"{type(model).__name__} after {model.num_timesteps} steps, at the observation ({where})"
    draw_landscape(landscape, title).savefig(args.output)
    spans = landscape.parts | {landscape.name: landscape.energy, "Q": landscape.q_values}
    print(", ".join(f"{name} spans {np.ptp(values):.3g}" for name, values in spans.items()))
    print(f"figure: {args.output}")
    return landscape


if __name__ == "__main__":
    main()
