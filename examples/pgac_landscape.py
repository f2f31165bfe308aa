"""Draw what PGAC's potential says of the actions at one observation, and where it leads particles.

With --model, of a PGAC that was saved; without, of one that is trained here on MultiGoal-v0, with the settings of
multi_goal.py: four goals around the origin that are equally good. In that picture V is what has been learned by transport,
-lambda Q is the critic's share, U is both together, and particles start at the base, are transported along -grad U without
noise (blue) and then sampled with noise (vermilion). For actions of one dimension there are curves, for more than two a plane
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
from sb3_energy import PGAC
from sb3_energy.landscape.drawing import draw_landscape
from sb3_energy.landscape.landscape import Landscape, landscape_of


def train(args: argparse.Namespace) -> PGAC:
    """
    :param args: the command line
    :return: a model trained on four goals; rewards and entropy coefficient are scaled alike
    """
    wrapper: Any = gym.wrappers.TransformReward
    scaled = dict(func=partial(operator.mul, args.reward_scale))
    env = make_vec_env("MultiGoal-v0", n_envs=4, seed=args.seed, wrapper_class=wrapper, wrapper_kwargs=scaled)
    model = PGAC(
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
    parser.add_argument("--model", type=Path, default=None, help="a PGAC that was saved (default: train one here)")
    parser.add_argument(
        "--observation", type=float, nargs="+", default=[0.0, 0.0], help="where to look, as the policy is given it"
    )
    parser.add_argument("--dims", type=int, nargs="+", default=None, help="dimensions of the actions, from 0 (default: 0 1)")
    parser.add_argument("--particles", type=int, default=64, help="how many are followed")
    parser.add_argument("--grid", type=int, default=101, help="points of the grid in each dimension")
    parser.add_argument("--output", type=Path, default=Path("pgac_landscape.png"))
    parser.add_argument("--seed", type=int, default=0, help="of the training and of the particles")
    parser.add_argument("--device", default="auto")
    training = parser.add_argument_group("training, without --model")
    training.add_argument("--timesteps", type=int, default=32_000, help="environment steps, four for each update")
    training.add_argument("--learning-starts", type=int, default=8_000, help="steps of uniform actions before learning")
    training.add_argument("--ent-coef", type=float, default=3.0, help="entropy coefficient of the Gaussian, fixed")
    training.add_argument("--reward-scale", type=float, default=0.05, help="of rewards and entropy coefficient in training")
    training.add_argument("--net-arch", type=int, nargs="+", default=[256, 256], help="hidden layers of all networks")
    training.add_argument("--save", type=Path, default=None, help="where to keep the model that is trained")
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
    :return: what was drawn
    """
    args = parse(argv)
    if args.model is None:
        model = train(args)
        if args.save is not None:
            model.save(args.save)
    else:
        model = PGAC.load(args.model, device=args.device)
    observation, shape = np.array(args.observation, dtype=np.float32), model.observation_space.shape
    if shape is None or observation.size != np.prod(shape):
        raise SystemExit(f"--observation must have the numbers of a {model.observation_space}, got {args.observation}")
    observation = observation.reshape(shape)
    dims = None if args.dims is None else tuple(args.dims)
    landscape = landscape_of(model, observation, dims, args.grid, args.particles, args.seed)
    where = ", ".join(f"{number:g}" for number in args.observation)
    draw_landscape(landscape, f"PGAC after {model.num_timesteps} steps, at the observation ({where})").savefig(args.output)
    spans = {"V": landscape.potential, "U - V": landscape.guidance, "U": landscape.guided, "Q": landscape.q_values}
    print(", ".join(f"{name} spans {np.ptp(values):.3g}" for name, values in spans.items()))
    print(f"picture: {args.output}")
    return landscape


if __name__ == "__main__":
    main()
