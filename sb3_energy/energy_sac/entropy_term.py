"""The log-probability of refined actions in SAC's losses: its estimator, and the reverse drift that one of them learns."""

from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from sb3_energy.deferred import NonFiniteError, require
from sb3_energy.energies import log_tanh_jacobian, tempered
from sb3_energy.entropy import BaseEntropy
from sb3_energy.networks import FieldNetwork, backbone_beside
from sb3_energy.policies.refined_policy import RefinedPolicy
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.proposals import draw_proposals
from sb3_energy.training.guards import Records, guarded_step
from sb3_energy.types import Chains, EnergyFn, EntropyContext, EntropyEstimator


class EntropyTerm:
    """
    Estimates ``log π(a|s)`` of refined actions for the temperature's loss and for refined targets.

    :param estimator: valid for the policy's refiner
    :param policy: the refined policy
    :param lr_schedule: learning rate of the reverse drift, which ``entropy_estimator="path"`` learns. It belongs to the
        algorithm, since no prediction needs it
    """

    reverse_drift: FieldNetwork | None = None

    def __init__(self, estimator: EntropyEstimator, policy: RefinedPolicy, lr_schedule: Schedule):
        self.estimator = estimator
        self.is_base = isinstance(estimator, BaseEntropy)
        if getattr(estimator, "learns_reverse", False):
            actor, n_actions = policy.actor, get_action_dim(policy.action_space)
            backbone = backbone_beside(policy.backbone)
            network = FieldNetwork(actor.features_dim, n_actions, n_actions, actor.net_arch, backbone=backbone)
            optimizer_class: Any = policy.optimizer_class
            network = network.to(policy.device)
            network.optimizer = optimizer_class(network.parameters(), lr=lr_schedule(1), **policy.optimizer_kwargs)
            self.reverse_drift = network

    def estimate(
        self,
        policy: RefinedPolicy,
        obs: PyTorchObs,
        base_log_prob: th.Tensor,
        *,
        n_particles: int,
        records: Records,
        base: Gaussian | None = None,
        energy: EnergyFn | None = None,
    ) -> th.Tensor:
        """
        Estimate the log-density ``log π(a|s)`` of refined actions.

        :param policy: the refined policy
        :param obs: ``B`` observations
        :param base_log_prob: ``(B, 1)`` log-density of the Gaussian actor's own actions there
        :param n_particles: most proposals that a chain starts from
        :param records: statistics are appended for the logger
        :param base: the Gaussian at the observations, if it is known already
        :param energy: the energy at the observations, if it is known already
        :return: ``(B, 1)``, without a graph
        :raises FloatingPointError: if it is NaN or infinite
        """
        reverse = None if self.reverse_drift is None else partial(_reverse, self.reverse_drift, policy.features(obs))
        context = EntropyContext(
            base_log_prob,
            partial(propose, policy, obs, base=base, energy=energy),
            partial(policy.simulate, obs, base=base, energy=energy, n_particles=n_particles),
            reverse,
            partial(anneal, policy, obs, base=base, energy=energy),
        )
        found = self.estimator.estimate(context)
        require(th.isfinite(found.log_prob).all(), partial(_entropy_error, type(self.estimator).__name__))
        for name, values in (found.records or {}).items():
            records[name].append(values.mean())
        if found.loss is not None and self.reverse_drift is not None:
            with th.enable_grad():
                guarded_step(self.reverse_drift.optimizer, found.loss, "reverse_loss", records)  # type: ignore[arg-type]
        return found.log_prob


def propose(
    policy: RefinedPolicy,
    obs: PyTorchObs,
    n: int,
    uniform_fraction: float,
    base: Gaussian | None = None,
    energy: EnergyFn | None = None,
) -> tuple[th.Tensor, th.Tensor]:
    """
    Actions from the mixture of the Gaussian and the uniform distribution on the box.

    :param policy: the refined policy
    :param obs: ``B`` observations
    :param n: number of actions for each
    :param uniform_fraction: part of them from the uniform distribution
    :param base: the Gaussian at the observations, if it is known already
    :param energy: the energy at the observations, if it is known already
    :return: energies, temperature included, and log-densities on the box, ``(B, n)`` each
    """
    base = policy.base(obs) if base is None else base
    energy = policy.energy_fn(obs) if energy is None else energy
    particles, log_prob = draw_proposals(base, n, uniform_fraction)
    # SAC's target entropy is that of actions on the box, not of the pre-tanh ones
    return tempered(energy, policy.temperature)(th.tanh(particles)), log_prob - log_tanh_jacobian(particles)


def anneal(
    policy: RefinedPolicy, obs: PyTorchObs, n: int, base: Gaussian | None = None, energy: EnergyFn | None = None
) -> Chains:
    """
    Particles before annealed sequential Monte Carlo brings them to the policy's energy.

    :param policy: the refined policy
    :param obs: ``B`` observations
    :param n: number of particles for each
    :param base: the Gaussian at the observations, if it is known already
    :param energy: the energy at the observations, if it is known already
    :return: the chains
    """
    base = policy.base(obs) if base is None else base
    energy = policy.energy_fn(obs) if energy is None else energy
    return policy.refinement.annealed(n).simulate(base, energy, policy.temperature)


def _entropy_error(estimator: str) -> FloatingPointError:
    return NonFiniteError(
        f"the entropy by {estimator} is not finite",
        "a lower learning_rate, entropy_estimator='soft_value', or backbone='layer_norm'",
    )


def _reverse(network: FieldNetwork, features: th.Tensor, x: th.Tensor, remaining: float) -> th.Tensor:
    return network(features, x, x.new_full(x.shape[:2], remaining))
