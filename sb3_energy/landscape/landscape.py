"""The energy of a refined policy at one observation as arrays, for pictures and for analysis."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_energy.autodiff import energy_and_grad, has_gradient
from sb3_energy.checks import check_integer, plain
from sb3_energy.energies import PotentialEnergy, QEnergy
from sb3_energy.policies.refined_policy import RefinedPolicy
from sb3_energy.refinement.bases import Gaussian, latent
from sb3_energy.refinement.proposals import squashed_log_prob
from sb3_energy.refiners import REFINERS, Flow, MeanFlow, RefinerSequence, SteinVariationalGradientDescent
from sb3_energy.refiners.sequence import members_of
from sb3_energy.schedules import value_at
from sb3_energy.steps import steps
from sb3_energy.types import EnergyFn, Refiner, Target, Tick

N_BETWEEN = 16
"""Pieces that a step is drawn in: a step that a wall reflects is not a straight line between its ends."""

WITHOUT_NOISE = (Flow, MeanFlow, SteinVariationalGradientDescent)
"""Refiners whose steps have no noise. Their deterministic version moves particles alike, but does not permute them."""

NO_NOISE = 1e-6
"""A noise scale below this is a rounding error of a schedule that starts at 0."""


class Landscape(NamedTuple):
    """
    Energies and velocities on a grid of actions scaled to [-1, 1], and paths of particles through the refinement, at one
    observation. ``*G`` is ``(n,)`` for one-dimensional actions and ``(n, n)`` otherwise, the first index along ``dims[0]``.

    :param axis: ``(n,)``, coordinates of the grid in each dimension that is shown
    :param actions: ``(*G, A)``; in the dimensions that are not shown they equal the deterministic action
    :param dims: the dimensions that are shown
    :param name: ``"U"`` for a policy with a potential, ``"E"`` for others
    :param energy: ``(*G)``, the energy before it is divided by the temperature, in units of ``V`` for a policy with a
        potential; without the transport cost of ``trust_region``, which differs from particle to particle
    :param velocity: ``(*G, len(dims))``, minus the energy's gradient (``None``: it has no gradient)
    :param parts: ``{name: (*G)}``, the terms of the energy where it names them: ``"V"`` and ``"-λQ"`` for PGAC, ``"-Q"``
        for the default energy of EnergySAC
    :param part_velocities: ``{name: (*G, len(dims))}``, minus the gradients of the terms that have one
    :param q_values: ``(*G)``, Q aggregated over the critics as the energy does it (by the mean if the energy does not say)
    :param gaussian: ``(*G)``, density of the Gaussian policy on the box in the dimensions that are shown; at the walls, where
        it may have a pole, it is taken half a cell of the grid inside
    :param deterministic: ``(A,)``, the deterministic action
    :param positions: ``(K + 1, N, A)``, particles before the first step and after each
    :param paths: ``(K, N_BETWEEN + 1, N, A)``, points along each step, reflected at the walls where the box reflects
    :param noise: ``(K,)``, whether a step has noise
    :param resamples: whether steps draw the particles anew from all of them, so that a particle has no path
    :param refiner: its name in :data:`sb3_energy.refiners.REFINERS`, or that of its class; of a sequence all of them
    :param temperature: ``T`` of the target density ``exp(-energy / T)``: ``ε`` of PGAC, the entropy coefficient of EnergySAC
    """

    axis: np.ndarray
    actions: np.ndarray
    dims: tuple[int, ...]
    name: str
    energy: np.ndarray
    velocity: np.ndarray | None
    parts: dict[str, np.ndarray]
    part_velocities: dict[str, np.ndarray]
    q_values: np.ndarray
    gaussian: np.ndarray
    deterministic: np.ndarray
    positions: np.ndarray
    paths: np.ndarray
    noise: np.ndarray
    resamples: bool
    refiner: str
    temperature: float

    @property
    def density(self) -> np.ndarray:
        """``(*G)``, ``exp(-energy / temperature)`` divided by its maximum over the grid."""
        return np.exp((self.energy.min() - self.energy) / self.temperature)


def landscape_of(
    model: Any,
    observation: Any,
    dims: tuple[int, ...] | None = None,
    n_grid: int = 81,
    n_particles: int = 64,
    seed: int = 0,
) -> Landscape:
    """
    Evaluate a policy's energy on a grid of actions and follow its particles. The model and all random number generators stay
    as they are.

    :param model: an EnergySAC, a PGAC or a policy of theirs
    :param observation: one observation, as for ``model.predict``
    :param dims: the dimensions of the actions to show (``None``: the first two)
    :param n_grid: number of grid points in each of them
    :param n_particles: number of particles to follow; refiners that compare particles use their own number
    :param seed: of the particles
    :return: the arrays
    :raises ValueError: if there is more than one observation, or a number is out of range
    :raises TypeError: if the model has no refined policy, or something has the wrong type
    """
    policy = refined_policy_of(model)
    check_integer("n_grid", n_grid, minimum=2)
    check_integer("n_particles", n_particles, minimum=1)
    dims = _checked_dims(dims, get_action_dim(policy.action_space))
    obs, _ = policy.obs_to_tensor(observation)
    n_obs = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
    if n_obs != 1:
        raise ValueError(f"observation must be a single one, got {n_obs}")
    with _prediction_mode(policy, seed):
        return _look(policy, obs, dims, n_grid, n_particles)


def refined_policy_of(model: Any) -> RefinedPolicy:
    """
    Get the refined policy of a model and check its type.

    :param model: an EnergySAC, a PGAC or a policy of theirs
    :return: the policy
    :raises TypeError: if it is something else
    """
    policy = getattr(model, "policy", model)
    if not isinstance(policy, RefinedPolicy):
        raise TypeError(
            f"model must have a refined policy, as EnergySAC, PGAC and their policies do, got {type(model).__name__}"
        )
    return policy


def trajectories(
    refiner: Refiner, particles: th.Tensor, target: Target, *, n_steps: int, generator: th.Generator | None = None
) -> th.Tensor:
    """
    Particles before and after each step of a refinement, with the random numbers and the result of
    :func:`sb3_energy.refiners.refined_particles`.

    :param refiner: moves the particles
    :param particles: ``(B, N, *E)``, where they start
    :param target: what to draw from
    :param n_steps: number of steps
    :param generator: source of the noise (``None``: torch's global one)
    :return: ``(n_steps + 1, B, N, *E)``, without a graph
    """
    with th.no_grad():
        taken = steps(refiner, particles, target, n_steps=n_steps, generator=generator)
        return th.stack([particles, *(step.after.particles for step in taken)])


def _look(policy: RefinedPolicy, obs: PyTorchObs, dims: tuple[int, ...], n_grid: int, n_particles: int) -> Landscape:
    deterministic = policy._predict(obs, deterministic=True)
    positions, paths, noise = _followed(policy, obs, n_particles)
    axis, shown = th.linspace(-1.0, 1.0, n_grid, device=policy.device), list(dims)
    actions = deterministic.expand(1, n_grid ** len(dims), -1).clone()
    actions[0][:, shown] = th.stack(th.meshgrid(*[axis] * len(dims), indexing="ij"), dim=-1).reshape(-1, len(dims))
    networks, shape = policy.networks(), (n_grid,) * len(dims)
    # The energy of a policy with a potential is U / ε: times ε, it is in units of V
    unit = getattr(policy.energy, "temperature", 1.0) if policy.has_potential else 1.0
    # Not policy.energy_fn, which with a tolerance wraps the energy, so that its terms could not be asked for
    energy_fn = policy.energy.bind(networks, obs)
    parts: dict[str, np.ndarray] = {}
    part_velocities: dict[str, np.ndarray] = {}
    for name, term in _terms(policy, obs, energy_fn, unit).items():
        parts[name], velocity = _on_grid(term, actions, shown, shape, unit)
        if velocity is not None:
            part_velocities[name] = velocity
    energy, velocity = _on_grid(energy_fn, actions, shown, shape, unit)
    q_energy = QEnergy(getattr(policy.energy, "aggregate", "mean"), getattr(policy.energy, "coefficient", None))
    base, wall = Gaussian(*(part[:, shown] for part in policy.base(obs))), 1.0 - 1.0 / (n_grid - 1)
    refiner = policy.refinement.refiner
    return Landscape(
        axis=_array(axis),
        actions=_array(actions).reshape(*shape, -1),
        dims=dims,
        name="U" if policy.has_potential else "E",
        energy=energy,
        velocity=velocity,
        parts=parts,
        part_velocities=part_velocities,
        q_values=_array(-q_energy.bind(networks, obs)(actions)).reshape(shape),
        gaussian=_array(squashed_log_prob(base, latent(actions[0][:, shown].clamp(-wall, wall))).exp()).reshape(shape),
        deterministic=_array(deterministic[0]),
        positions=_array(positions),
        paths=_array(paths),
        noise=noise,
        resamples=any(one.resamples and not isinstance(one, WITHOUT_NOISE) for one in members_of(refiner)),
        refiner=", ".join(map(_name, members_of(refiner))),
        temperature=unit * float(policy.temperature),
    )


def _terms(policy: RefinedPolicy, obs: PyTorchObs, energy_fn: EnergyFn, unit: float) -> dict[str, EnergyFn]:
    """The energy's terms by name, where it has a method ``parts``; ``V`` of another energy of a policy with a potential."""
    if hasattr(energy_fn, "parts"):
        return energy_fn.parts()
    if type(policy.energy) is QEnergy:
        return {"-Q": energy_fn}
    return {"V": PotentialEnergy(unit).bind(policy.networks(), obs)} if policy.has_potential else {}


def _on_grid(
    fn: EnergyFn, actions: th.Tensor, shown: list[int], shape: tuple[int, ...], unit: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """Values ``shape`` and velocities ``(*shape, len(shown))`` of an energy, ``None`` if it has no gradient."""
    try:
        differentiable = has_gradient(fn, actions[:, :2])
    except RuntimeError:  # such as that of numpy, asked for a tensor with a graph
        differentiable = False
    if not differentiable:
        return _array(fn(actions) * unit).reshape(shape), None
    values, slopes = energy_and_grad(fn, actions)
    return _array(values * unit).reshape(shape), _array(-slopes[0][:, shown] * unit).reshape(*shape, -1)


def _followed(policy: RefinedPolicy, obs: PyTorchObs, n_particles: int) -> tuple[th.Tensor, th.Tensor, np.ndarray]:
    """Positions, paths and noise of a :class:`Landscape`."""
    if policy.refinement.is_identity:
        draws = policy.sample_actions(obs, n_particles)
        return draws, draws.new_zeros(0, N_BETWEEN + 1, *draws.shape[1:]), np.zeros(0, dtype=bool)
    base = policy.start_base(obs)
    chains = policy.simulate(obs, n_particles, base=base)
    found = trajectories(_unpermuted(chains.refiner), chains.particles, chains.target, n_steps=chains.n_steps)
    parts = th.linspace(0.0, 1.0, N_BETWEEN + 1, device=found.device)[:, None, None, None]
    between = th.lerp(found[:-1, None], found[1:, None], parts)  # (K, N_BETWEEN + 1, 1, N, A), in the refiner's coordinates
    noise = np.array([_has_noise(chains.refiner, Tick(step, chains.n_steps)) for step in range(chains.n_steps)], dtype=bool)
    positions, paths = (
        policy.refinement.actions(base, part.reshape(1, -1, part.shape[-1])).reshape(part.shape) for part in (found, between)
    )
    return positions.squeeze(1), paths.squeeze(2), noise


def _name(refiner: Refiner) -> str:
    return next((name for name, known in REFINERS.items() if type(refiner) is known), type(refiner).__name__)


def _unpermuted(refiner: Any) -> Any:
    """The refiner, where particles without noise keep their places."""
    if isinstance(refiner, RefinerSequence):
        return RefinerSequence(tuple(map(_unpermuted, refiner.members)), refiner.steps)
    return refiner.deterministic() if isinstance(refiner, WITHOUT_NOISE) else refiner


def _has_noise(refiner: Any, tick: Tick) -> bool:
    if isinstance(refiner, RefinerSequence):
        _, refiner, tick = refiner.turn(tick)
    scale = 0.0 if isinstance(refiner, WITHOUT_NOISE) else getattr(refiner, "noise_scale", 1.0)
    return value_at(scale, tick.remaining) > NO_NOISE


@contextmanager
def _prediction_mode(policy: RefinedPolicy, seed: int) -> Iterator[None]:
    """Context in which all modules are in evaluation mode and torch's random numbers are its own."""
    devices = [policy.device] if policy.device.type == "cuda" else []
    modes = [(module, module.training) for module in policy.modules()]
    with th.random.fork_rng(devices), th.no_grad():
        th.manual_seed(seed)
        policy.train(False)  # a potential with spectral norms counts evaluations in training mode
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
