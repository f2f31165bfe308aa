"""A small critic of the four-goal environment for the gallery of refiners: a target with the errors of learning.

``python -m benchmarks.sampler_critic`` trains it (some minutes) and writes ``benchmarks/data/four_goals_critic.npz``.
"""

import argparse
import operator
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from sb3_energy import EnergySAC
from sb3_energy.energies import aggregate_q_values
from sb3_energy.networks import evaluate_particles
from sb3_energy.types import EnergyFn

DATA = Path(__file__).parent / "data" / "four_goals_critic.npz"
ALPHA = 1.0
REWARD_SCALE = 0.05
N_ENVS = 8
LEARNING_STARTS = 8_000
WIDTHS = [96, 96]


def train(updates: int, seed: int = 0) -> EnergySAC:
    """
    :param updates: one for each step of all environments
    :param seed: of everything
    :return: the trained model; scaling rewards and entropy coefficient alike leaves the optimal policy what it is
    """
    scaled = dict(func=partial(operator.mul, REWARD_SCALE))
    env = make_vec_env(
        "MultiGoal-v0", n_envs=N_ENVS, seed=seed, wrapper_class=gym.wrappers.TransformReward, wrapper_kwargs=scaled
    )
    model = EnergySAC(
        "MlpPolicy",
        env,
        learning_rate=LinearSchedule(1e-3, 1e-5, 1.0),
        ent_coef=ALPHA * REWARD_SCALE,
        learning_starts=LEARNING_STARTS,
        policy_kwargs=dict(net_arch=WIDTHS, backbone="plain", refiner="snis"),
        seed=seed,
        device="cpu",
    )
    return model.learn(LEARNING_STARTS + updates * N_ENVS)


def save(model: EnergySAC, output: Path) -> None:
    """
    :param model: the trained one
    :param output: where :func:`linear_layers` go, as 32-bit floats
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    np.savez(output, **{name: value.numpy() for name, value in linear_layers(model).items()})


def linear_layers(model: EnergySAC) -> dict[str, th.Tensor]:
    """
    :param model: any, whatever its critics learn in units of
    :return: the critics' weights and biases under the names of their ``state_dict``, for Q-values in the units of the reward
    """
    state = {name: value for name, value in model.critic.state_dict().items() if not name.startswith("value_scale.")}
    for name in [name for name in state if name.endswith(".sigma")]:
        sigma = state.pop(name)
        for head in (name.replace("sigma", "weight"), name.replace("sigma", "bias")):
            state[head] = sigma * state[head]
    return state


def trained_critic(source: Path = DATA) -> EnergyFn:
    """
    :param source: what :func:`save` wrote
    :return: ``-Q(0, a) / α``, the mean over critics, as a refined policy has it at the origin
    """
    with np.load(source) as data:
        state = {name: th.as_tensor(data[name]) for name in data.files}
    critics = [critic_of(state, f"qf{k}.") for k in range(len({name.split(".")[0] for name in state}))]

    def energy(a: th.Tensor) -> th.Tensor:
        q_values = th.stack([evaluate_particles(critic, a.new_zeros(len(a), 2), a).squeeze(-1) for critic in critics])
        return -aggregate_q_values(q_values, "mean") / (ALPHA * REWARD_SCALE)

    return energy


def critic_of(state: dict[str, th.Tensor], prefix: str) -> nn.Sequential:
    """
    :param state: weights and biases of linear layers, in their order
    :param prefix: of the names of those of one network
    :return: the network, with ReLU between its layers
    """
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    layers: list[nn.Module] = []
    for name, weight in own.items():
        if name.endswith(".weight"):
            layers += [nn.Linear(*reversed(weight.shape)), nn.ReLU()]
    critic = nn.Sequential(*layers[:-1]).requires_grad_(False)
    critic.load_state_dict(own)
    return critic


def main(argv: Sequence[str] | None = None) -> None:
    """
    :param argv: the command line's arguments
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampler_critic", description=__doc__.strip().splitlines()[0])
    parser.add_argument("--updates", type=int, default=30_000, help="of the critic (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=DATA, help="default: where the gallery looks for it")
    args = parser.parse_args(argv)
    if args.updates < 1:
        parser.error(f"--updates must be at least 1, got {args.updates}")
    th.set_num_threads(1)
    save(train(args.updates, args.seed), args.output)
    print(f"Written to {args.output}.")


if __name__ == "__main__":
    main()
