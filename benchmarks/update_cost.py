"""What an update costs: CPU time of ``train()`` beside SB3's SAC, in turn, in one process with one thread.

    python -m benchmarks.update_cost

Observations of 17 numbers, actions of 6, batches of 256, networks of 2 × 256, random transitions. Each round times all
variants one after the other; the figure is the median over rounds of the ratio to SAC of the same round.
"""

import argparse
import time

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC

from sb3_energy import EnergySAC

VARIANTS: dict[str, dict] = {
    'refiner="none", backbone="plain"': dict(policy_kwargs=dict(refiner="none", backbone="plain")),
    'refiner="none"': dict(policy_kwargs=dict(refiner="none")),
    'refiner="none", backbone="bro"': dict(policy_kwargs=dict(refiner="none", backbone="bro")),
    'refiner="none", backbone="simba"': dict(policy_kwargs=dict(refiner="none", backbone="simba")),
    'refiner="none", critic="quantile"': dict(policy_kwargs=dict(refiner="none", critic="quantile")),
    "defaults": {},
    "refine_target=True, n_particles=1": dict(refine_target=True, policy_kwargs=dict(n_particles=1)),
    "refine_target=True": dict(refine_target=True),
    'refine_target=True, entropy_estimator="soft_value"': dict(refine_target=True, entropy_estimator="soft_value"),
    'refine_target=True, refiner="snis"': dict(refine_target=True, policy_kwargs=dict(refiner="snis")),
    'refine_target=True, refiner="mppi"': dict(refine_target=True, policy_kwargs=dict(refiner="mppi")),
    'refine_target=True, entropy_estimator="mixture"': dict(refine_target=True, entropy_estimator="mixture"),
    'refiner="flow"': dict(policy_kwargs=dict(refiner="flow")),
    'refiner="flow", entropy_estimator="base"': dict(policy_kwargs=dict(refiner="flow"), entropy_estimator="base"),
    'refiner="mean_flow"': dict(policy_kwargs=dict(refiner="mean_flow")),
    'refiner="mean_flow", entropy_estimator="base"': dict(policy_kwargs=dict(refiner="mean_flow"), entropy_estimator="base"),
    'refiner="autoregressive_derivative_free"': dict(policy_kwargs=dict(refiner="autoregressive_derivative_free")),
    "distillation_coef=0.1": dict(distillation_coef=0.1),
}


class Noise(gym.Env):
    """Random observations: what is learned does not matter here."""

    observation_space = spaces.Box(-1.0, 1.0, (17,))
    action_space = spaces.Box(-1.0, 1.0, (6,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self.observation_space.sample(), 0.0, False, False, {}


def filled(algorithm: type[SAC], kwargs: dict) -> SAC:
    """
    :param algorithm: SAC or EnergySAC
    :param kwargs: its keyword arguments
    :return: a model with 500 transitions
    """
    model = algorithm("MlpPolicy", Noise(), learning_starts=1000, buffer_size=1000, seed=0, device="cpu", **kwargs)
    return model.learn(500)


def cpu_seconds(model: SAC, n_updates: int) -> float:
    """
    :param model: a model with transitions
    :param n_updates: how many updates to time
    :return: CPU seconds of one update
    """
    start = time.process_time()
    model.train(n_updates, batch_size=256)
    return (time.process_time() - start) / n_updates


def main() -> None:
    """Time all variants and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=5, help="in each round")
    args = parser.parse_args()
    th.set_num_threads(1)
    sac = filled(SAC, {})
    models = {name: filled(EnergySAC, kwargs) for name, kwargs in VARIANTS.items()}
    ratios: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(args.rounds):
        baseline = cpu_seconds(sac, args.updates)
        for name, model in models.items():
            ratios[name].append(cpu_seconds(model, args.updates) / baseline)
    print("| EnergySAC with | CPU time of an update / SAC's |\n|---|---|")
    for name, values in ratios.items():
        print(f"| `{name}` | {np.median(values):.2f} |")


if __name__ == "__main__":
    main()
