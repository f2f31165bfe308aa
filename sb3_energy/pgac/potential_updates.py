"""What an algorithm with a potential adds to its updates."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples
from torch import nn

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.checks import check_integer
from sb3_energy.energies import QEnergy, log_tanh_jacobian
from sb3_energy.losses import gradient_matching_loss, value_weights
from sb3_energy.pgac.behaviour_critic import BehaviourCritic
from sb3_energy.pgac.chain_memory import ChainMemory
from sb3_energy.pgac.potential_policy import PotentialPolicy
from sb3_energy.pgac.potential_training import (
    Candidates,
    PotentialSettings,
    PotentialTraining,
    chain_ends,
    guarded_divergence_loss,
    uniform_actions,
    weighted_transport_loss,
)
from sb3_energy.policies.critics import EnsembleCritic
from sb3_energy.policies.features import first_observations
from sb3_energy.policies.q_scale import SMALLEST_SPREAD
from sb3_energy.policies.unread_arguments import check_potential_training
from sb3_energy.refinement.bases import Gaussian, latent
from sb3_energy.refinement.proposals import draw_proposals, mixture_log_prob
from sb3_energy.refiners import refine, refined_particles
from sb3_energy.registry import resolve
from sb3_energy.training.guards import Records, guarded_step
from sb3_energy.types import EnergyFn

BEHAVIOUR = ("behaviour_critic", "behaviour_critic.optimizer")
"""What a file has of a model with value weights, and of no other."""


class PotentialUpdates(ChainMemory):
    """
    Mixin for off-policy algorithms with a :class:`PotentialPolicy`: how ``V`` learns.

    ``L = transport_coef L_OT + ω L_CD + matching_coef L_GM - end_to_end_coef E[Q̂]``;
    what has the coefficient 0 is not computed.
    """

    policy: PotentialPolicy
    critic: EnsembleCritic
    transport_coef: float
    divergence_coef: float
    end_to_end_coef: float
    matching_coef: float
    value_weight: str | None
    policy_delay: int
    update_particles: int
    persistent_chains: bool
    potential_training_kwargs: dict[str, Any] | None
    ent_coef_tensor: th.Tensor
    log_ent_coef: th.Tensor | None

    def _setup_model(self) -> None:
        self._training = resolve({}, PotentialTraining, self.potential_training_kwargs, "potential_training")
        super()._setup_model()
        self.policy_delay = check_integer("policy_delay", self.policy_delay, minimum=1)
        energy: Any = self.policy.energy
        self._losses = PotentialSettings(
            self.transport_coef, self.divergence_coef, self.end_to_end_coef, self.matching_coef, self.value_weight
        ).check(getattr(energy, "guidance", 0.0))
        self._q_energy = QEnergy(getattr(energy, "aggregate", "mean"), getattr(energy, "coefficient", None))
        self._check_end_to_end()
        check_potential_training(self._training, self.transport_coef, self.divergence_coef, self.value_weight)
        self.behaviour_critic = self._make_behaviour_critic()

    def _check_end_to_end(self) -> None:
        refiner = self.policy.refinement.refiner
        if self.end_to_end_coef > 0.0 and not hasattr(refiner, "differentiable"):
            raise ValueError(
                "end_to_end_coef above 0 needs a refiner that can be differentiated, 'langevin' or 'svgd', "
                f"got {type(refiner).__name__}"
            )

    def _make_behaviour_critic(self) -> BehaviourCritic | None:
        if self._losses.value_weight is None or self._losses.transport_coef == 0.0:
            return None
        critic, action_dim = self.critic, get_action_dim(self.action_space)
        network = BehaviourCritic(
            *(critic.features_dim, action_dim, critic.net_arch, critic.activation_fn, self.policy.backbone),
            expectile=self._training.expectile,
            tau=self.tau,
        ).to(self.device)
        network.make_optimizer(self.policy.optimizer_class, self.lr_schedule, **self.policy.optimizer_kwargs)
        return network

    def _potential_optimizers(self) -> list[th.optim.Optimizer]:
        learned: tuple[Any, ...] = (self.policy.potential, self.behaviour_critic)
        return [module.optimizer for module in learned if module is not None]

    def _update_potential(self, batch: ReplayBufferSamples, ent_coef: th.Tensor, records: Records) -> None:
        n, losses, network = self._training.n_observations, self._losses, self.policy.potential
        obs = first_observations(batch.observations, n)
        with th.no_grad():  # of the actor and the critic nothing learns here
            features, actor = self.critic.encode(obs), self.policy.base(obs)
            base = self.policy.start_base(obs, actor)
        weights = self._value_weights(batch, features, records)
        q_energy = self._q_energy.bind_features(self.critic, features)
        candidates = self._candidates(obs, batch.actions[:n], q_energy, actor, base, records)
        best, total = self._positives(candidates), th.zeros((), device=self.device)
        if losses.transport_coef > 0.0:
            starts = self.policy.start_actions(base, self._training.top_k)
            loss = weighted_transport_loss(network, features, starts, best, weights)
            total = total + losses.transport_coef * _noted(loss, "transport_loss", records)
        if losses.divergence_coef > 0.0:
            negatives = self._negatives(features, best)
            loss = guarded_divergence_loss(network, features, best, negatives, self.policy.epsilon, self._training.max_energy)
            total = total + losses.divergence_coef * _noted(loss, "divergence_loss", records)
        if losses.matching_coef > 0.0:
            loss = self._matching_loss(features, candidates.actions, ent_coef)
            total = total + losses.matching_coef * _noted(loss, "matching_loss", records)
        if losses.end_to_end_coef > 0.0:
            loss = self._end_to_end_loss(obs, base, q_energy)
            total = total + losses.end_to_end_coef * _noted(loss, "end_to_end_loss", records)
        if self._losses.is_any:  # somebody may have switched all of them off
            guarded_step(network.optimizer, total, "potential_loss", records)  # type: ignore[arg-type]

    def _value_weights(self, batch: ReplayBufferSamples, features: th.Tensor, records: Records) -> th.Tensor | None:
        if self.behaviour_critic is None or self._losses.value_weight is None:
            return None
        n, discounts = len(features), batch.discounts if batch.discounts is not None else self.gamma
        with th.no_grad():
            every, following = self.critic.encode(batch.observations), self.critic.encode(batch.next_observations)
        loss = self.behaviour_critic.loss(every, batch.actions, batch.rewards, batch.dones, discounts, following)
        guarded_step(self.behaviour_critic.optimizer, loss, "behaviour_loss", records)
        self.behaviour_critic.follow()
        with th.no_grad():
            actions = batch.actions[:n]
            q_values = -self._q_energy.bind_features(self.critic, features)(actions.unsqueeze(1)).squeeze(1)
            advantages = self.behaviour_critic.values(features, actions) - q_values
            # In units of what is common among them, so that rewards times 100 leave weights what they are
            advantages = advantages / advantages.square().mean().sqrt().clamp(min=SMALLEST_SPREAD)
        weights = value_weights(
            advantages, th.zeros_like(advantages), self._losses.value_weight, self._training.largest_weight
        )
        records["value_weight"].append(weights.mean())
        return weights

    def _candidates(
        self, obs: PyTorchObs, replayed: th.Tensor, q_energy: EnergyFn, actor: Gaussian, base: Gaussian, records: Records
    ) -> Candidates:
        training = self._training
        with th.no_grad():
            n = training.n_candidates - training.n_refined - 1
            # The Gaussian's come first, those from the box then
            found = [draw_proposals(actor, n, 0.5).particles, latent(replayed).unsqueeze(1)]
            if training.n_refined > 0:
                found.append(latent(self._refined(obs, base, training.n_refined)))
            particles = th.cat(found, dim=1)
            actions, log_prob = th.tanh(particles), mixture_log_prob(actor, particles, 0.5) - log_tanh_jacobian(particles)
            q_values = -q_energy(actions)
            self.policy.q_scale.update(q_values[:, n - n // 2 : n])
        records["q_spread"].append(self.policy.q_scale.spread.clone())
        return Candidates(actions, q_values, log_prob)

    def _positives(self, candidates: Candidates) -> th.Tensor:
        if self._training.positives == "best":
            return candidates.best(self._training.top_k)
        return candidates.draw(self._training.top_k, self.policy.epsilon * self.policy.q_scale.spread)

    def _refined(self, obs: PyTorchObs, base: Gaussian, n: int) -> th.Tensor:
        policy = self.policy
        chains = policy.simulate(obs, n, base=base, n_particles=self.update_particles)
        ends = refined_particles(chains.refiner, chains.particles, chains.target, n_steps=chains.n_steps)
        return policy.refinement.actions(base, ends)

    def _negatives(self, features: th.Tensor, best: th.Tensor) -> th.Tensor:
        training = self._training
        drawn = uniform_actions(best, training.n_chains)
        n_data = training.n_chains // 2
        index = th.randint(best.shape[1], (n_data,), device=best.device)
        starts = th.cat([best[:, index], uniform_actions(best, training.n_chains - n_data)], dim=1)
        buffer: Any = self.replay_buffer
        if self.persistent_chains:
            kept, known = (th.as_tensor(part, device=best.device) for part in buffer.last_chains(len(best)))
            starts = th.where(known[:, None, None], kept.to(best.dtype), starts)
        ends = chain_ends(self.policy.potential, features, starts, self.policy.epsilon, training)
        if self.persistent_chains:
            buffer.keep_chains(ends.cpu().numpy())
        return th.cat([ends, drawn], dim=1)

    def _matching_loss(self, features: th.Tensor, actions: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
        lowest = QEnergy("min").bind_features(self.critic, features)
        q_gradients = -energy_and_grad(lowest, actions)[1]
        gradients = energy_and_grad(partial(self.policy.potential, features), actions, create_graph=True)[1]
        return gradient_matching_loss(gradients, q_gradients, self.policy.epsilon, ent_coef).mean()

    def _end_to_end_loss(self, obs: PyTorchObs, base: Gaussian, q_energy: EnergyFn) -> th.Tensor:
        """``-E[Q̂]`` at the end of the sampler, through all of its steps."""
        policy, refiner = self.policy, self.policy.refinement.refiner
        chains = policy.simulate(obs, self._training.n_refined or 1, base=base, n_particles=self.update_particles)
        with frozen(self.critic):
            state = refine(
                replace(refiner, differentiable=True),  # type: ignore[type-var]
                chains.particles,
                chains.target,
                n_steps=chains.n_steps,
            )
            return q_energy(policy.refinement.actions(base, state.particles)).mean() / policy.q_scale.spread

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto") -> None:
        """
        As in SB3. Value weights may be switched on or off for a saved model: a behaviour critic that this model does not have
        stays in the file, and one that is not in the file stays as it is here.

        :param load_path_or_dict: Location of the saved data or a nested dictionary of parameters
        :param exact_match: Whether all of the other parts must be there
        :param device: Device on which the code should run.
        """
        found = load_path_or_dict
        if not isinstance(found, dict):
            super().set_parameters(found, exact_match, device)  # which comes back with a dictionary
            return
        own: dict[str, Any] = {}
        if self.behaviour_critic is None:
            found = {name: part for name, part in found.items() if name not in BEHAVIOUR}
        elif not any(name in found for name in BEHAVIOUR):
            own = {name: recursive_getattr(self, name).state_dict() for name in BEHAVIOUR}
        super().set_parameters(own | found, exact_match, device)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_training", "_losses", "_q_energy", "behaviour_critic"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        state_dicts.append("policy.potential.optimizer")
        if self.behaviour_critic is not None:
            state_dicts += BEHAVIOUR
        return state_dicts, tensors


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """
    Within this context a loss that goes through the network leaves nothing in its parameters' ``grad``.

    :param network: the network
    """
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


def _noted(loss: th.Tensor, name: str, records: Records) -> th.Tensor:
    records[name].append(loss.detach())
    return loss
