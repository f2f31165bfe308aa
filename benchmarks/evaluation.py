"""What a trained model obtains: its deterministic and its sampled actions, and the base actor without refinement."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.utils import obs_as_tensor

Actor = Callable[[np.ndarray], np.ndarray]
EVALUATION_SEED = 10_000


@dataclass
class Rollouts:
    """
    Episodes played in lockstep, time first.

    :param observations: one array per time step, plus the last, of shape (n_episodes, obs_dim)
    :param actions: one array per time step
    :param rewards: of shape (n_steps, n_episodes), zero after an episode's end
    :param alive: of shape (n_steps, n_episodes), whether the step belongs to the episode
    :param terminated: of shape (n_episodes,), whether the episode ended by itself and not by a time limit
    :param final_observations: of shape (n_episodes, obs_dim)
    """

    observations: list[np.ndarray]
    actions: list[np.ndarray]
    rewards: np.ndarray
    alive: np.ndarray
    terminated: np.ndarray
    final_observations: np.ndarray

    @property
    def mean_return(self) -> float:
        return float(self.rewards.sum(axis=0).mean())


@contextmanager
def isolated_randomness(seed: int) -> Iterator[None]:
    """
    Evaluation that neither disturbs the training's random numbers nor depends on them.

    :param seed: the seed inside
    """
    states = random.getstate(), np.random.get_state(), th.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    th.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        th.set_rng_state(states[2])


def predict(model: SAC, deterministic: bool, observations: np.ndarray) -> np.ndarray:
    """The model's own action, as ``evaluate_policy`` of SB3 takes it."""
    return model.predict(observations, deterministic=deterministic)[0]


def base_action(model: SAC, observations: np.ndarray) -> np.ndarray:
    """The mean action of the Gaussian actor alone: no refinement, no choice by the critic."""
    model.policy.set_training_mode(False)
    with th.no_grad():
        actions = model.actor(obs_as_tensor(observations, model.device), deterministic=True)
    return model.policy.unscale_action(actions.cpu().numpy())


def play(envs: list[gym.Env[Any, Any]], actor: Actor) -> Rollouts:
    """
    Play one episode in each environment from fixed seeds, all in lockstep so that one forward pass serves all.

    :param envs: the environments
    :param actor: actions for a batch of observations
    :return: the episodes
    """
    current = np.stack([env.reset(seed=EVALUATION_SEED + i)[0] for i, env in enumerate(envs)])
    running, terminated = np.ones(len(envs), dtype=bool), np.zeros(len(envs), dtype=bool)
    observations, actions, rewards, alive = [], [], [], []
    while running.any():
        chosen = actor(current)
        observations.append(current.copy())
        actions.append(chosen)
        alive.append(running.copy())
        rewards.append(np.zeros(len(envs)))
        for i in np.flatnonzero(running):
            current[i], rewards[-1][i], terminated[i], truncated, _ = envs[i].step(chosen[i])
            running[i] = not (terminated[i] or truncated)
    return Rollouts(observations, actions, np.stack(rewards), np.stack(alive), terminated, current)


def mean_q(model: SAC, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """
    :param model: the model
    :param observations: of shape (n, obs_dim)
    :param actions: of shape (n, action_dim), unscaled
    :return: the critics' values, averaged over critics (and quantiles), of shape (n,)
    """
    model.policy.set_training_mode(False)
    scaled = np.asarray(model.policy.scale_action(actions), dtype=np.float32)
    with th.no_grad():
        values = model.critic(obs_as_tensor(observations, model.device), th.as_tensor(scaled, device=model.device))
        parts = [values] if isinstance(values, th.Tensor) else list(values)
        per_row = th.stack([part.reshape(len(observations), -1).mean(dim=1) for part in parts])
    return per_row.mean(dim=0).cpu().numpy()


def discounted_returns(rollouts: Rollouts, tail: np.ndarray, gamma: float) -> np.ndarray:
    """
    :param rollouts: the episodes
    :param tail: the value after each episode's last step, of shape (n_episodes,)
    :param gamma: the discount
    :return: the return from every step on, of shape (n_steps, n_episodes)
    """
    rewards = rollouts.rewards.copy()
    rewards[rollouts.alive.sum(axis=0) - 1, np.arange(len(tail))] += gamma * tail
    following = np.zeros(len(tail))
    for step in range(len(rewards) - 1, -1, -1):
        rewards[step] += gamma * following
        following = rewards[step]
    return rewards


def overestimation(model: SAC, rollouts: Rollouts) -> tuple[float, float]:
    """
    Mean Q on the states and actions of the episodes, and its excess over the discounted return really obtained from them
    (Fujimoto et al. 2018). Behind a time limit the return goes on with Q itself, and steps less than a horizon ``1/(1 − γ)``
    before it do not count. SAC's entropy bonus is part of Q and not of the return, for all algorithms compared.

    :param model: the model
    :param rollouts: episodes of its stochastic policy
    :return: mean Q, and mean Q minus the mean discounted return; NaN where no step is left
    """
    last_action = predict(model, False, rollouts.final_observations)
    tail = np.where(rollouts.terminated, 0.0, mean_q(model, rollouts.final_observations, last_action))
    horizon = np.where(rollouts.terminated, 0.0, 1.0 / (1.0 - model.gamma) if model.gamma < 1 else np.inf)
    counted = np.arange(len(rollouts.rewards))[:, None] < rollouts.alive.sum(axis=0) - horizon
    observations, actions = np.concatenate(rollouts.observations), np.concatenate(rollouts.actions)
    q_values = mean_q(model, observations, actions).reshape(rollouts.alive.shape)
    excess = (q_values - discounted_returns(rollouts, tail, model.gamma))[counted]
    return float(q_values[rollouts.alive].mean()), float(excess.mean()) if counted.any() else float("nan")


def evaluate(model: SAC, envs: list[gym.Env[Any, Any]], with_base: bool) -> dict[str, float]:
    """
    :param model: the model
    :param envs: as many as episodes wanted
    :param with_base: whether the model refines its actor's action, so that the actor alone is another policy
    :return: the columns of one row
    """
    with isolated_randomness(EVALUATION_SEED):
        deterministic = play(envs, partial(predict, model, True))
        stochastic = play(envs, partial(predict, model, False))
        base = play(envs, partial(base_action, model)).mean_return if with_base else float("nan")
        average_q, excess = overestimation(model, stochastic)
    return {
        "return_deterministic": deterministic.mean_return,
        "return_stochastic": stochastic.mean_return,
        "return_base": base,
        "mean_q": average_q,
        "overestimation": excess,
    }
