"""What a potential says of the actions at one observation, as arrays: for pictures, and for whoever wants the numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.checks import check_integer, plain
from sb3_energy.energies import PotentialEnergy, QEnergy
from sb3_energy.pgac.potential_policy import PotentialPolicy
from sb3_energy.refiners import Flow, MeanFlow, SteinVariationalGradientDescent
from sb3_energy.schedules import value_at
from sb3_energy.steps import steps
from sb3_energy.types import Refiner, Target, Tick

N_BETWEEN = 16
"""Parts that a step is drawn in: a step that a wall reflects is no straight line between its ends."""


WITHOUT_NOISE = (Flow, MeanFlow, SteinVariationalGradientDescent)
"""Refiners whose steps have none: with and without dice they make the same, but for the order of particles."""

NO_NOISE = 1e-6
"""Scale of a noise that is only what rounding has left where a schedule's ramp begins."""


class Landscape(NamedTuple):
    """
    Energies and velocities on a grid of actions scaled to [-1, 1], and ways of particles through the refinement, at one
    observation. ``*G`` is ``(n,)`` for one dimension of actions and ``(n, n)`` for two, the first index along the first one.

    :param axis: ``(n,)`` the numbers that the grid's actions have in the dimensions that are shown
    :param actions: ``(*G, A)``; in the dimensions that are not shown they are the deterministic action
    :param dims: which dimensions are shown
    :param potential: ``(*G)``, ``V``
    :param guided: ``(*G)``, ``U``, in the units of ``V``; without its transport cost, which each particle has for itself
    :param q_values: ``(*G)``, of the critics as the energy aggregates them
    :param potential_velocity: ``(*G, len(dims))``, ``-∇V``
    :param velocity: ``(*G, len(dims))``, ``-∇U``
    :param deterministic: ``(A,)``, the deterministic action
    :param positions: ``(K + 1, N, A)`` where particles are before the first step and after each
    :param paths: ``(K, N_BETWEEN + 1, N, A)`` the way of each step, which the walls may have reflected
    :param noise: ``(K,)`` whether a step has noise, and so belongs to the second stage
    :param temperature: ``ε``
    """

    axis: np.ndarray
    actions: np.ndarray
    dims: tuple[int, ...]
    potential: np.ndarray
    guided: np.ndarray
    q_values: np.ndarray
    potential_velocity: np.ndarray
    velocity: np.ndarray
    deterministic: np.ndarray
    positions: np.ndarray
    paths: np.ndarray
    noise: np.ndarray
    temperature: float

    @property
    def guidance(self) -> np.ndarray:
        """``(*G)``, ``U - V``: the critic's share of the energy, ``-λ Q`` in units of its spread where that is asked for."""
        return self.guided - self.potential

    @property
    def density(self) -> np.ndarray:
        """``(*G)``, ``exp(-U / ε)``, 1 where it is largest on the grid."""
        return np.exp((self.guided.min() - self.guided) / self.temperature)


def landscape_of(
    model: Any,
    observation: Any,
    dims: tuple[int, ...] | None = None,
    n_grid: int = 81,
    n_particles: int = 64,
    seed: int = 0,
) -> Landscape:
    """
    Look at the potential at one observation. The random number generators and the model stay as they are.

    :param model: a PGAC or its policy
    :param observation: one observation, as ``model.predict`` is given it
    :param dims: which dimensions of the actions are shown (``None``: the first two)
    :param n_grid: how many points the grid has in each of them
    :param n_particles: how many particles are followed; a refiner that compares them has its own number
    :param seed: of the particles
    :return: the arrays
    :raises ValueError: if there is more than one observation, or a number is out of range
    :raises TypeError: if the model has no potential, or something has the wrong type
    """
    policy = potential_policy_of(model)
    check_integer("n_grid", n_grid, minimum=2)
    check_integer("n_particles", n_particles, minimum=1)
    dims = _checked_dims(dims, get_action_dim(policy.action_space))
    obs, _ = policy.obs_to_tensor(observation)
    n_obs = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
    if n_obs != 1:
        raise ValueError(f"observation must be a single one, got {n_obs}")
    with _unnoticed(policy, seed):
        return _look(policy, obs, dims, n_grid, n_particles)


def potential_policy_of(model: Any) -> PotentialPolicy:
    """
    :param model: a PGAC or its policy
    :return: the policy
    :raises TypeError: if the model has no potential
    """
    policy = getattr(model, "policy", model)
    if not isinstance(policy, PotentialPolicy):
        raise TypeError(f"model must have a potential, as PGAC and its policies do, got {type(model).__name__}")
    return policy


def trajectories(
    refiner: Refiner, particles: th.Tensor, target: Target, *, n_steps: int, generator: th.Generator | None = None
) -> th.Tensor:
    """
    Where :func:`sb3_energy.refiners.refined_particles` has its particles before and after each step. It ends where that ends,
    with the same random numbers.

    :param refiner: how to move
    :param particles: ``(B, N, *E)`` where to start
    :param target: what to draw from
    :param n_steps: how many steps
    :param generator: source of the noise (``None``: torch's global one)
    :return: ``(n_steps + 1, B, N, *E)``, without a graph
    """
    with th.no_grad():
        taken = steps(refiner, particles, target, n_steps=n_steps, generator=generator)
        return th.stack([particles, *(step.after.particles for step in taken)])


def _look(policy: PotentialPolicy, obs: PyTorchObs, dims: tuple[int, ...], n_grid: int, n_particles: int) -> Landscape:
    deterministic = policy._predict(obs, deterministic=True)
    axis = th.linspace(-1.0, 1.0, n_grid, device=policy.device)
    shape = (n_grid,) * len(dims)
    actions = deterministic.expand(n_grid ** len(dims), -1).clone()
    actions[:, list(dims)] = th.stack(th.meshgrid(*[axis] * len(dims), indexing="ij"), dim=-1).reshape(-1, len(dims))
    # A temperature of 1: the energy has ε itself, and what is drawn is U and V and not what they are divided by
    potential, potential_slope = energy_and_grad(PotentialEnergy(1.0).bind(policy.networks(), obs), actions.unsqueeze(0))
    energy, slope = energy_and_grad(policy.energy_fn(obs), actions.unsqueeze(0))
    q_energy = QEnergy(getattr(policy.energy, "aggregate", "mean"), getattr(policy.energy, "coefficient", None))
    q_values = -q_energy.bind(policy.networks(), obs)(actions.unsqueeze(0))
    positions, paths, noise = _followed(policy, obs, n_particles)
    return Landscape(
        axis=_array(axis),
        actions=_array(actions).reshape(*shape, -1),
        dims=dims,
        potential=_array(potential).reshape(shape),
        guided=_array(energy * policy.epsilon).reshape(shape),
        q_values=_array(q_values).reshape(shape),
        potential_velocity=_array(-potential_slope[0][:, list(dims)]).reshape(*shape, -1),
        velocity=_array(-slope[0][:, list(dims)] * policy.epsilon).reshape(*shape, -1),
        deterministic=_array(deterministic[0]),
        positions=_array(positions),
        paths=_array(paths),
        noise=noise,
        temperature=policy.epsilon,
    )


def _followed(policy: PotentialPolicy, obs: PyTorchObs, n_particles: int) -> tuple[th.Tensor, th.Tensor, np.ndarray]:
    base = policy.start_base(obs)
    chains = policy.simulate(obs, n_particles, base=base)
    is_still = isinstance(chains.refiner, WITHOUT_NOISE)
    refiner = chains.refiner.deterministic() if is_still else chains.refiner  # a permutation is not where a particle goes
    found = trajectories(refiner, chains.particles, chains.target, n_steps=chains.n_steps)
    parts = th.linspace(0.0, 1.0, N_BETWEEN + 1, device=found.device)[:, None, None, None]
    between = th.lerp(found[:-1, None], found[1:, None], parts)  # (K, N_BETWEEN + 1, 1, N, A), in the refiner's coordinates
    noise_scale = 0.0 if is_still else getattr(refiner, "noise_scale", 1.0)
    remaining = [Tick(step, chains.n_steps).remaining for step in range(chains.n_steps)]
    noise = np.array([value_at(noise_scale, part) > NO_NOISE for part in remaining], dtype=bool)
    positions, paths = (
        policy.refinement.actions(base, part.reshape(1, -1, part.shape[-1])).reshape(part.shape) for part in (found, between)
    )
    return positions.squeeze(1), paths.squeeze(2), noise


@contextmanager
def _unnoticed(policy: PotentialPolicy, seed: int) -> Iterator[None]:
    """Within this context the policy is one for predictions, and random numbers are the context's own."""
    devices = [policy.device] if policy.device.type == "cuda" else []
    modes = [(module, module.training) for module in policy.modules()]
    with th.random.fork_rng(devices), th.no_grad():
        th.manual_seed(seed)
        policy.train(False)  # all modules: a potential with spectral norms counts evaluations in training
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def _checked_dims(dims: Any, action_dim: int) -> tuple[int, ...]:
    if dims is None:
        return (0, 1)[:action_dim]
    n, dims = min(action_dim, 2), plain(dims)
    is_list = isinstance(dims, (list, tuple)) and all(type(dim) is int and 0 <= dim < action_dim for dim in dims)
    if not is_list or len(dims) != n or len(set(dims)) != n:
        what = "two different ones" if n == 2 else "(0,), the only one"
        raise ValueError(f"dims must be None or {what} of the {action_dim} dimensions of the actions, from 0, got {dims!r}")
    return tuple(dims)


def _array(tensor: th.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(np.float64)
