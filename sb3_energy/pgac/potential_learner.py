"""The losses of a potential and its steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples, Schedule
from torch import nn

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.energies import QEnergy, folded, reflected, tempered
from sb3_energy.losses import (
    contrastive_divergence_loss,
    gradient_matching_loss,
    points_between,
    transport_loss,
    transport_pairs,
    value_weights,
)
from sb3_energy.networks import PotentialNetwork, backbone_beside
from sb3_energy.pgac.action_candidates import ActionCandidates, uniform_actions
from sb3_energy.pgac.behaviour_critic import BehaviourCritic
from sb3_energy.pgac.persistent_chains import PersistentChains
from sb3_energy.pgac.potential_policy import PotentialPolicy
from sb3_energy.pgac.potential_training import PotentialSettings, PotentialTraining
from sb3_energy.pgac.q_scale import SMALLEST_SPREAD
from sb3_energy.policies.features import first_observations
from sb3_energy.refinement.bases import Gaussian, latent
from sb3_energy.refinement.proposals import draw_proposals, mixture_log_prob
from sb3_energy.refiners import Langevin, refine, refined_particles
from sb3_energy.refiners.sequence import keeping_graph
from sb3_energy.stats import log_tanh_jacobian
from sb3_energy.training.guards import Records, guarded_step
from sb3_energy.types import EnergyFn, Target


class PotentialLearner:
    """
    Trains a policy's potential by ``L = transport_coef L_OT + ω L_CD + matching_coef L_GM - end_to_end_coef E[Q̂]``. Terms with
    the coefficient 0 are not computed.

    :param policy: with the potential
    :param training: candidates, chains and bounds
    :param settings: coefficients of the losses
    :param lr_schedule: learning rate of the behaviour critic
    :param tau: of the behaviour critic's target network
    """

    behaviour_critic: BehaviourCritic | None = None

    def __init__(
        self,
        policy: PotentialPolicy,
        training: PotentialTraining,
        settings: PotentialSettings,
        lr_schedule: Schedule,
        tau: float,
    ):
        self.training, self.settings = training, settings
        energy: Any = policy.energy
        self._q_energy = QEnergy(getattr(energy, "aggregate", "mean"), getattr(energy, "coefficient", None))
        if settings.value_weight is not None and settings.transport_coef > 0.0:
            critic, action_dim = policy.critic, get_action_dim(policy.action_space)
            network = BehaviourCritic(
                critic.features_dim,
                action_dim,
                critic.net_arch,
                critic.activation_fn,
                backbone_beside(policy.backbone),
                expectile=training.expectile,
                tau=tau,
                value_scale=critic.value_scale,
            ).to(policy.device)
            network.make_optimizer(policy.optimizer_class, lr_schedule, **policy.optimizer_kwargs)
            self.behaviour_critic = network

    def optimizers(self, policy: PotentialPolicy) -> list[th.optim.Optimizer]:
        """
        List the optimizers of the learned networks.

        :param policy: with the potential
        :return: optimizers of the potential and of the behaviour critic, if there is one
        """
        learned: tuple[Any, ...] = (policy.potential, self.behaviour_critic)
        return [module.optimizer for module in learned if module is not None]

    def step(
        self,
        policy: PotentialPolicy,
        batch: ReplayBufferSamples,
        *,
        ent_coef: th.Tensor,
        n_particles: int,
        records: Records,
        chains: PersistentChains | None = None,
    ) -> None:
        """
        One step of the potential's optimizer.

        :param policy: with the potential
        :param batch: transitions, of which the first ``n_observations`` are used for the potential
        :param ent_coef: ``α``
        :param n_particles: most proposals that a refined candidate is chosen from
        :param records: losses and statistics are appended for the logger
        :param chains: buffer whose chains go on (``None``: chains start anew)
        :raises FloatingPointError: if a loss or its gradient is not finite
        """
        n, settings, network = self.training.n_observations, self.settings, policy.potential
        obs = first_observations(batch.observations, n)
        with th.no_grad():  # actor and critic do not learn from the potential's losses
            features, actor = policy.critic.encode(obs), policy.base(obs)
            base = policy.start_base(obs, actor)
        weights = self._value_weights(batch.actions[:n], features, records)
        q_energy = self._q_energy.bind_features(policy.critic, features)
        candidates = self._candidates(policy, obs, batch.actions[:n], q_energy, (actor, base), n_particles)
        records["q_spread"].append(policy.q_scale.spread.clone())
        positives, terms = self._positives(policy, candidates), dict[str, tuple[float, th.Tensor]]()
        if settings.transport_coef > 0.0:
            starts = policy.start_actions(base, self.training.top_k)
            loss = weighted_transport_loss(network, features, starts, positives, weights)
            terms["transport_loss"] = settings.transport_coef, loss
        if settings.divergence_coef > 0.0:
            negatives = self._negatives(policy, features, positives, chains)
            epsilon, bound = policy.epsilon, self.training.max_energy
            loss = guarded_divergence_loss(network, features, positives, negatives, epsilon, bound)
            terms["divergence_loss"] = settings.divergence_coef, loss
        if settings.matching_coef > 0.0:
            loss = self._matching_loss(policy, features, candidates.actions, ent_coef)
            terms["matching_loss"] = settings.matching_coef, loss
        if settings.end_to_end_coef > 0.0:
            loss = self._end_to_end_loss(policy, obs, base, q_energy, n_particles)
            terms["end_to_end_loss"] = settings.end_to_end_coef, loss
        total = th.zeros((), device=features.device)
        for name, (coefficient, loss) in terms.items():
            records[name].append(loss.detach())
            total = total + coefficient * loss
        if terms:
            guarded_step(network.optimizer, total, "potential_loss", records)  # type: ignore[arg-type]

    def learn_behaviour(self, policy: PotentialPolicy, batch: ReplayBufferSamples, *, gamma: float, records: Records) -> None:
        """
        One step of the behaviour critic, which is taken in each update: its values must not lag behind the critic's.

        :param policy: whose critic encodes observations
        :param batch: transitions
        :param gamma: discount factor, unless the batch has its own
        :param records: the loss is appended for the logger
        :raises FloatingPointError: if the loss or its gradient is not finite
        """
        behaviour, critic = self.behaviour_critic, policy.critic
        if behaviour is None:
            return
        with th.no_grad(), evaluating(critic):
            features, following = critic.encode(batch.observations), critic.encode(batch.next_observations)
        discounts = gamma if batch.discounts is None else batch.discounts
        loss = behaviour.loss(features, batch.actions, batch.rewards, batch.dones, discounts, following)
        guarded_step(behaviour.optimizer, loss, "behaviour_loss", records)
        behaviour.follow()

    def _value_weights(self, actions: th.Tensor, features: th.Tensor, records: Records) -> th.Tensor | None:
        """``(B,)`` weights of the transport loss by the advantage of the replayed actions."""
        if self.behaviour_critic is None or self.settings.value_weight is None:
            return None
        advantages = self.behaviour_critic.advantages(features, actions)
        # Over their root mean square, so that the scale of rewards does not change the weights
        advantages = advantages / advantages.square().mean().sqrt().clamp(min=SMALLEST_SPREAD)
        weights = value_weights(advantages, self.settings.value_weight, self.training.largest_weight)
        records["value_weight"].append(weights.mean())
        return weights

    def _candidates(
        self,
        policy: PotentialPolicy,
        obs: PyTorchObs,
        replayed: th.Tensor,
        q_energy: EnergyFn,
        bases: tuple[Gaussian, Gaussian],
        n_particles: int,
    ) -> ActionCandidates:
        (actor, base), training = bases, self.training
        with th.no_grad():
            n = training.n_candidates - training.n_refined - 1
            # First those of the Gaussian, then those that are uniform on the box
            found = [draw_proposals(actor, n, 0.5).particles, latent(replayed).unsqueeze(1)]
            if training.n_refined > 0:
                chains = policy.simulate(obs, training.n_refined, base=base, n_particles=n_particles)
                ends = refined_particles(chains.refiner, chains.particles, chains.target, n_steps=chains.n_steps)
                found.append(latent(policy.refinement.actions(base, ends)))
            particles = th.cat(found, dim=1)
            actions, log_prob = th.tanh(particles), mixture_log_prob(actor, particles, 0.5) - log_tanh_jacobian(particles)
            q_values = -q_energy(actions)
            policy.q_scale.update(q_values[:, n - n // 2 : n])
        return ActionCandidates(actions, q_values, log_prob)

    def _positives(self, policy: PotentialPolicy, candidates: ActionCandidates) -> th.Tensor:
        if self.training.positives == "best":
            return candidates.best(self.training.top_k)
        return candidates.draw(self.training.top_k, policy.temperature_of_q())

    def _negatives(
        self, policy: PotentialPolicy, features: th.Tensor, positives: th.Tensor, chains: PersistentChains | None
    ) -> th.Tensor:
        training = self.training
        drawn = uniform_actions(positives, training.n_chains)
        n_data = training.n_chains // 2
        index = th.randint(positives.shape[1], (n_data,), device=positives.device)
        starts = th.cat([positives[:, index], uniform_actions(positives, training.n_chains - n_data)], dim=1)
        if chains is not None:
            kept, known = (th.as_tensor(part, device=starts.device) for part in chains.last_chains(len(starts)))
            starts = th.where(known[:, None, None], kept.to(starts.dtype), starts)
        ends = chain_ends(policy.potential, features, starts, policy.epsilon, training)
        if chains is not None:
            chains.keep_chains(ends.cpu().numpy())
        return th.cat([ends, drawn], dim=1)

    def _matching_loss(
        self, policy: PotentialPolicy, features: th.Tensor, actions: th.Tensor, ent_coef: th.Tensor
    ) -> th.Tensor:
        lowest = QEnergy("min").bind_features(policy.critic, features)
        q_gradients = -energy_and_grad(lowest, actions)[1]
        gradients = energy_and_grad(partial(policy.potential, features), actions, create_graph=True)[1]
        return gradient_matching_loss(gradients, q_gradients, policy.epsilon, ent_coef).mean()

    def _end_to_end_loss(
        self, policy: PotentialPolicy, obs: PyTorchObs, base: Gaussian, q_energy: EnergyFn, n_particles: int
    ) -> th.Tensor:
        """``-E[Q̂]`` of the sampler's actions, differentiated through all of its steps."""
        chains = policy.simulate(obs, self.training.n_refined or 1, base=base, n_particles=n_particles)
        refiner = keeping_graph(chains.refiner)
        with frozen(policy.critic):
            state = refine(refiner, chains.particles, chains.target, n_steps=chains.n_steps)
            return q_energy(policy.refinement.actions(base, state.particles)).mean() / policy.q_scale.spread


def transport_gradients(
    network: PotentialNetwork, features: th.Tensor, starts: th.Tensor, ends: th.Tensor
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Gradients of the potential between starts and ends that are paired by optimal transport.

    :param network: ``V``
    :param features: ``(B, F)``, without a graph
    :param starts: ``(B, N, A)``
    :param ends: ``(B, N, A)``
    :return: gradients with a graph, starts, and ends in the order of their starts, ``(B, N, A)`` each
    """
    ends = transport_pairs(starts, ends)
    time = th.rand(starts.shape[:2], device=starts.device, dtype=starts.dtype)
    points = points_between(starts, ends, time)
    return energy_and_grad(partial(network, features), points, create_graph=True)[1], starts, ends


def weighted_transport_loss(
    network: PotentialNetwork,
    features: th.Tensor,
    starts: th.Tensor,
    ends: th.Tensor,
    weights: th.Tensor | None = None,
) -> th.Tensor:
    """
    ``mean_b w_b |∇V(a_t) + (a_1 - a_0)|²``: each observation's loss by its own weight, before the mean over observations.

    :param network: ``V``
    :param features: ``(B, F)``, without a graph
    :param starts: ``(B, N, A)``
    :param ends: ``(B, N, A)``
    :param weights: ``(B,)``, or ``None`` for 1
    :return: scalar
    """
    losses = transport_loss(*transport_gradients(network, features, starts, ends))
    return (losses if weights is None else weights * losses).mean()


def chain_ends(
    network: PotentialNetwork, features: th.Tensor, starts: th.Tensor, temperature: float, training: PotentialTraining
) -> th.Tensor:
    """
    Run short Langevin chains of ``exp(-V / ε)`` in the box, whose walls reflect.

    :param network: ``V``
    :param features: ``(B, F)``, without a graph
    :param starts: ``(B, M, A)`` in the box
    :param temperature: ``ε``
    :param training: number and size of the steps
    :return: ``(B, M, A)`` in the box, without a graph
    """
    with th.no_grad():
        target = Target(reflected(tempered(network.bind(features), temperature)))
        refiner = Langevin(2.0 * temperature * training.negative_step)
        return folded(refined_particles(refiner, starts, target, n_steps=training.negative_steps))


def guarded_divergence_loss(
    network: PotentialNetwork,
    features: th.Tensor,
    positives: th.Tensor,
    negatives: th.Tensor,
    temperature: float,
    max_energy: float,
) -> th.Tensor:
    """
    Contrastive divergence, and a penalty on ``|V| / ε`` beyond a bound.

    :param network: ``V``
    :param features: ``(B, F)``, without a graph
    :param positives: ``(B, N, A)``
    :param negatives: ``(B, M, A)``
    :param temperature: ``ε``
    :param max_energy: the bound
    :return: scalar
    """
    potentials = network(features, th.cat([positives, negatives], dim=1))
    good, bad = potentials.split([positives.shape[1], negatives.shape[1]], dim=1)
    excess = (potentials.abs() / temperature - max_energy).relu().square().mean()
    return contrastive_divergence_loss(good, bad, temperature).mean() + excess


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """
    Within this context batch normalization takes no statistics and nothing is dropped.

    :param network: the network
    """
    training = [module for module in network.modules() if module.training]
    for module in training:  # not network.train(), which would put all of them back into one mode
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


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
