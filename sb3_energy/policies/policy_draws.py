"""What a refined policy starts from, and several draws of it, for diagnostics and for estimators of its entropy."""

from collections.abc import Callable
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_energy.checks import check_integer
from sb3_energy.policies.actor import BackboneActor
from sb3_energy.policies.head_policy import HeadPolicy
from sb3_energy.refinement.proposals import Gaussian, draw_proposals
from sb3_energy.types import Chains, EnergyFn


class PolicyDraws(HeadPolicy):
    """Part of a refined policy: its Gaussian, and draws that no prediction needs."""

    actor: BackboneActor
    temperature: th.Tensor
    starts_normal: bool = False
    """Whether particles start from a standard Gaussian before the squash at every observation, not from the actor's."""
    energy_fn: Callable[[PyTorchObs], EnergyFn]
    refine: Callable[..., th.Tensor]

    def base(self, obs: PyTorchObs) -> Gaussian:
        """
        :param obs: ``B`` observations
        :return: the Gaussian actor's mean and standard deviation ``(B, A)``, before the squash
        """
        mean, log_std, _ = self.actor.get_action_dist_params(obs)
        return Gaussian(mean, log_std.exp())

    def start_base(self, obs: PyTorchObs, base: Gaussian | None = None) -> Gaussian:
        """
        :param obs: ``B`` observations
        :param base: the Gaussian actor there, if it is known already
        :return: the Gaussian that particles start from: the actor's, or a standard one where ``starts_normal``
        """
        base = self.base(obs) if base is None else base
        return Gaussian(th.zeros_like(base.mean), th.ones_like(base.std)) if self.starts_normal else base

    def simulate(
        self,
        obs: PyTorchObs,
        n_chains: int,
        base: Gaussian | None = None,
        energy: EnergyFn | None = None,
        n_particles: int | None = None,
    ) -> Chains:
        """
        Independent runs of the refinement that have not begun, for estimators of its entropy.

        :param obs: ``B`` observations
        :param n_chains: how many for each; a refiner that compares particles has its ``n_particles`` instead
        :param base: the Gaussian at these observations, if it is known already
        :param energy: what :meth:`energy_fn` gives for these observations, if it is known already
        :param n_particles: draw chains from no more proposals than these (``None``: from all)
        :return: the chains
        """
        with th.no_grad():
            base = self.start_base(obs, base)
            energy = self.energy_fn(obs) if energy is None else energy
            refinement = self.refinement.thinned(n_particles)
            return refinement.simulate(base, energy, self.temperature, n_chains, self.bound_head(obs))

    def sample_actions(self, obs: Any, n: int) -> th.Tensor:
        """
        Several refined actions for each observation, for diagnostics such as
        :func:`sb3_energy.entropy.von_neumann_entropy`.

        :param obs: ``B`` observations as tensors, or as ``predict`` takes them, one or several
        :param n: how many for each
        :return: ``(B, n, A)`` independent draws, scaled to [-1, 1]
        :raises ValueError: if ``n`` is below 1, or an observation is not finite
        :raises TypeError: if ``n`` is no integer
        """
        n = check_integer("n", n, minimum=1)
        batch: PyTorchObs = self._batch_of(obs)
        if len(batch if isinstance(batch, th.Tensor) else next(iter(batch.values()))) == 0:
            return th.zeros((0, n, get_action_dim(self.action_space)), device=self.device)
        with th.no_grad():
            if self.refinement.is_identity:
                return th.tanh(draw_proposals(self.base(batch), n, 0.0).particles)
        if isinstance(batch, dict):
            repeated: PyTorchObs = {key: part.repeat_interleave(n, 0) for key, part in batch.items()}
        else:
            repeated = batch.repeat_interleave(n, 0)
        return th.tanh(self.refine(repeated)).unflatten(0, (-1, n))

    def _batch_of(self, observation: Any) -> PyTorchObs:
        """Tensors of ``B`` observations as they are; all else as ``predict`` takes it."""
        space: Any = self.observation_space
        parts = {"": observation} if not isinstance(space, spaces.Dict) else observation
        parts_of_space: dict[str, Any] = {"": space} if not isinstance(space, spaces.Dict) else space.spaces
        if all(isinstance(part, th.Tensor) and part.dim() > len(parts_of_space[key].shape) for key, part in parts.items()):
            return observation
        return self.obs_to_tensor(observation)[0]
