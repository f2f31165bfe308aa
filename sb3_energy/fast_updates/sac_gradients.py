"""The losses of SAC and their gradients without autograd, for networks whose layers are known, and when they may be used.

On ``B`` transitions, with ``μ, log σ`` from the actor, noise ``ε``, ``u = μ + σ ε``, ``a = tanh u`` and
``log π = -Σ (ε² / 2 + log σ + ½ log 2π + log(1 - a² + δ))``:

* critics, ``L = ½ Σ_i mean (Q_i - y)²``: ``dL/dQ_i = (Q_i - y) / B``;
* actor, ``L = mean(α log π - min_i Q_i)``. With ``w_i = 1`` for the lowest critic and 0 for the others,
  ``dL/da = (2 α a / (1 - a² + δ) - Σ_i w_i dQ_i/da) / B``, then ``dL/du = (1 - a²) dL/da``, ``dL/dμ = dL/du`` and
  ``dL/d log σ = σ ε dL/du - α / B``, which is 0 where ``log σ`` was clamped.

Where the critics have a scale ``σ``, ``Q_i`` here are the outputs before it, and ``y`` and ``α`` are divided by it.

The derivatives of layers are in :mod:`sb3_energy.networks.by_hand.layers`;
``tests/fast_updates/test_lean_parity.py`` compares all of it with SB3.
"""

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, Actor

from sb3_energy.fast_updates.lean_updates import LeanBatchNormUpdates, LeanUpdates
from sb3_energy.networks import (
    BoundEnsemble,
    InGrad,
    Originals,
    Stack,
    are_learned_once,
    autograd_is_plain,
    calls_are_original,
    has_own,
    is_untouched,
    optimizes_only,
)
from sb3_energy.policies.actor import BackboneActor, Draw, has_sb3_distribution
from sb3_energy.policies.categorical_critic import CategoricalCritic
from sb3_energy.policies.critics import EnsembleCritic
from sb3_energy.policies.quantile_critic import QuantileCritic
from sb3_energy.policies.refined_policy import RefinedPolicy
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.stats import normal_log_prob
from sb3_energy.training.batch_norm_updates import BatchNormUpdates
from sb3_energy.training.plain_updates import PlainUpdates

_ACTOR_METHODS = ("action_log_prob", "get_action_dist_params", "extract_features", "draw", "stack")
_CRITIC_METHODS = ("forward", "encode", "extract_features", "td_loss", "policy_values", "_policy_values", "target_values")
_CRITICS_METHODS = (*_CRITIC_METHODS, "policy_value_and_gradient", "stacks", "bind")

_CRITICS = (EnsembleCritic, QuantileCritic, CategoricalCritic)
_ORIGINALS = Originals(
    {
        Actor: ("get_action_dist_params",),  # of SB3, which ours call
        ContinuousCritic: ("forward",),
        BackboneActor: _ACTOR_METHODS,
        EnsembleCritic: _CRITICS_METHODS,
        QuantileCritic: _CRITICS_METHODS,
        CategoricalCritic: (*_CRITICS_METHODS, "logits", "values_of"),
    }
)


def are_autograds_own(actor: BackboneActor, critic: EnsembleCritic) -> bool:
    """
    Whether gradients by hand are sure to be autograd's. They may not be if a user has frozen or shared a parameter, hooked a
    tensor, a module or a node of the graph, replaced a method, switched gradients off, or subclassed actor or critic.

    :param actor: the Gaussian actor
    :param critic: the critics
    :return: whether they are
    """
    classes = type(actor) is BackboneActor and type(critic) in _CRITICS
    if not (classes and autograd_is_plain() and calls_are_original() and _ORIGINALS.are_in_place()):
        return False
    own = has_own(actor, BackboneActor, *_ACTOR_METHODS) and has_own(critic, type(critic), *_CRITICS_METHODS)
    return own and has_sb3_distribution(actor) and _is_free(actor, critic)


def _is_free(actor: BackboneActor, critic: EnsembleCritic) -> bool:
    """Whether no module and no parameter of the two is hooked, frozen, used twice or changed by the other's optimizer."""
    shares = critic.share_features_extractor and critic.features_extractor is actor.features_extractor
    parts = [actor] if shares else [actor, critic]
    modules = [module for part in parts for module in part.modules()]
    if shares:  # by SB3's own design: it learns with the actor
        modules += [critic, *(module for network in critic.q_networks for module in network.modules())]
    parameters = [p for module in modules for p in module._parameters.values() if p is not None]
    owned = all([optimizes_only(part.optimizer, part.parameters()) for part in (actor, critic)])
    return owned and all(map(is_untouched, modules)) and are_learned_once(parameters)


def is_temperature_free(log_ent_coef: th.Tensor | None, optimizer: th.optim.Optimizer | None) -> bool:
    """
    Check that the temperature's gradient may be computed by hand.

    :param log_ent_coef: ``log α``, if it is learned
    :param optimizer: of it
    :return: whether its gradient by hand is the one that autograd would leave in its ``grad``
    """
    if log_ent_coef is None or optimizer is None:
        return True
    single = log_ent_coef.numel() == 1
    return single and autograd_is_plain() and optimizes_only(optimizer, [log_ent_coef]) and are_learned_once([log_ent_coef])


class _ActorTape(NamedTuple):
    """What the backward pass of the first observations' actions needs; ``(B, A)`` each, except the layers'."""

    layers: list[th.Tensor]
    is_free: th.Tensor  # where log σ was not clamped
    noise: th.Tensor
    slope: th.Tensor  # 1 - a²
    padded: th.Tensor  # 1 - a² + δ


@dataclass
class SACGradients(LeanUpdates):
    """
    Losses that leave their gradients in the parameters' ``grad``. The layers are looked up once, when this is made, so it is
    made anew for each call of ``train()``.

    :param actor_stack: layers of the actor
    :param critic_stacks: layers of each critic, all of them scalar, but for its scale
    :param target_stacks: the same of each target critic, or ``None`` if they are not known
    """

    actor_stack: Stack
    critic_stacks: list[Stack]
    target_stacks: list[Stack] | None
    sigma: th.Tensor | None = field(default=None, init=False)
    """The scale of the critics, if they have one."""
    target_sigma: th.Tensor | None = field(default=None, init=False)
    _tape: _ActorTape | None = field(default=None, init=False)

    has_gradient: ClassVar[frozenset[str]] = frozenset({"ent_coef_loss", "critic_loss", "actor_loss"})

    @classmethod
    def of(cls, policy: RefinedPolicy) -> "SACGradients | None":
        """
        Construct the updates for a policy with supported layers.

        :param policy: whose actor and critic pass :func:`are_autograds_own`
        :return: its updates, or ``None`` where features are learned, a layer is unknown, or actor or critic is not SAC's.
            A batch norm is known in evaluation mode alone: who uses these does not learn its statistics
        """
        actor, critic, target = policy.actor, policy.critic, policy.critic_target
        if any(True for network in (actor, critic) for _ in network.features_extractor.parameters()):
            return None
        actor_stack, critic_stacks = actor.stack(), _stacks(critic, "td_loss", "policy_values")
        if actor_stack is None or critic_stacks is None:
            return None
        target_stacks = _stacks(target, "target_values", "forward", "encode", "extract_features")
        found = cls(actor, critic, target, actor_stack, critic_stacks, target_stacks)
        if critic.value_scale is not None and target.value_scale is not None:
            found.sigma, found.target_sigma = critic.value_scale.sigma, target.value_scale.sigma
        return found

    @th.no_grad()
    def draw(self, obs: PyTorchObs, next_obs: PyTorchObs) -> tuple[Draw, Draw]:
        """
        Sample reparameterized actions at both ends of transitions.

        :param obs: ``B`` observations
        :param next_obs: the ``B`` observations after them
        :return: actions at both, from one pass through the actor, with SB3's noise
        """
        features = [self.actor.extract_features(part, self.actor.features_extractor) for part in (obs, next_obs)]
        n, layers = len(features[0]), list[th.Tensor]()
        mean, unclamped = self.actor_stack.forward(th.cat(features), layers).chunk(2, dim=1)
        log_std = unclamped.clamp(LOG_STD_MIN, LOG_STD_MAX)
        std, noise = log_std.exp(), th.empty(mean.shape, device=mean.device, dtype=mean.dtype)
        noise[:n].normal_(), noise[n:].normal_()
        actions = th.tanh(th.addcmul(mean, std, noise))
        slope = 1.0 - actions.square()
        padded = slope + self.actor.action_dist.epsilon
        log_prob = normal_log_prob(noise, log_std + padded.log()).unsqueeze(1)
        self._tape = _ActorTape([kept[:n] for kept in layers], unclamped[:n] == log_std[:n], noise[:n], slope[:n], padded[:n])
        parts = zip(*(part.split(n) for part in (actions, log_prob, mean, std)), strict=True)
        first, second = (Draw(a, density, Gaussian(mu, sigma)) for a, density, mu, sigma in parts)
        return first, second

    @th.no_grad()
    def target_values(self, batch: ReplayBufferSamples, next_actions: th.Tensor) -> th.Tensor:
        """
        Clipped double-Q values of the target critics.

        :param batch: ``B`` transitions
        :param next_actions: ``(B, A)``
        :return: ``(B, 1)``, the lowest value of the target critics, or their mean
        """
        if self.target_stacks is None:
            return self.critic_target.target_values(batch.next_observations, next_actions)
        inputs = th.cat([_features(self.critic_target, batch.next_observations), next_actions], dim=1)
        q_values = th.cat([stack.forward(inputs, []) for stack in self.target_stacks], dim=1)
        if self.critic_target.target_aggregate == "mean":
            values = q_values.mean(dim=1, keepdim=True)
        else:
            values = q_values.min(dim=1, keepdim=True).values
        return values if self.target_sigma is None else values * self.target_sigma

    @th.no_grad()
    def critic_loss(self, batch: ReplayBufferSamples, next_actions: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """
        SAC's critic loss, differentiated by hand: this sets the critics' ``grad``.

        :param batch: ``B`` transitions
        :param next_actions: ``(B, A)``, which do not count
        :param targets: ``(B, 1)``
        :return: scalar, in units of the critic's scale
        """
        inputs = th.cat([_features(self.critic, batch.observations), batch.actions], dim=1)
        targets = targets if self.sigma is None else targets / self.sigma
        errors, n = [], len(inputs)
        for stack in self.critic_stacks:
            layers: list[th.Tensor] = []
            errors.append((stack.forward(inputs, layers) - targets) / n)
            stack.backward(errors[-1], layers, InGrad(), wants_dx=False)
        return 0.5 * n * th.cat(errors).square().sum()

    @th.no_grad()
    def actor_loss(self, obs: PyTorchObs, draw: Draw, ent_coef: th.Tensor) -> th.Tensor:
        """
        SAC's actor loss, differentiated by hand: this sets the actor's ``grad``.

        :param obs: ``B`` observations, those of :meth:`draw`
        :param draw: its first result
        :param ent_coef: ``α``, scalar or ``(1,)``
        :return: scalar, in units of the critic's scale
        """
        assert self._tape is not None
        layers, is_free, noise, slope, padded = self._tape
        ent_coef = ent_coef if self.sigma is None else ent_coef / self.sigma
        ensemble = BoundEnsemble(self.critic_stacks, _features(self.critic, obs))
        q_values, gradients = ensemble.value_and_gradient(draw.actions.unsqueeze(1), _lowest, sparse=True)
        n = len(slope)
        d_latent = (2.0 * ent_coef * draw.actions / padded - gradients.squeeze(1)) * (slope / n)
        d_log_std = (d_latent * draw.base.std * noise - ent_coef / n) * is_free
        self.actor_stack.backward(th.cat([d_latent, d_log_std], dim=1), layers, InGrad(), wants_dx=False)
        self._tape = None
        return (ent_coef * draw.log_prob - q_values).mean()


def _features(critic: EnsembleCritic, obs: PyTorchObs) -> th.Tensor:
    return critic.extract_features(obs, critic.features_extractor)


def _lowest(q_values: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """The lowest critic's value, and its derivatives with respect to all of them."""
    values, lowest = q_values.min(dim=0)
    return values, th.zeros_like(q_values).scatter_(0, lowest.unsqueeze(0), 1.0)


def _stacks(critic: EnsembleCritic, *methods: str) -> list[Stack] | None:
    """Layers of scalar critics but for their scale, unless a user has changed what they do."""
    own = critic.by_hand and is_untouched(critic) and has_own(critic, EnsembleCritic, *methods)
    stacks = BoundEnsemble.stacks_of(list(critic.q_networks)) if own else None
    if stacks is None or critic.value_scale is None:
        return stacks
    is_last = all([stack.layers[-1] is critic.value_scale for stack in stacks])
    return [Stack(stack.layers[:-1]) for stack in stacks] if is_last else None


def choose_updates(
    policy: RefinedPolicy,
    temperature: tuple[th.Tensor | None, th.optim.Optimizer | None],
    lean: bool,
    needs_graph: bool,
    joint_batch: bool = False,
) -> PlainUpdates:
    """
    Choose between SB3's updates by autograd and faster ones.

    :param policy: whose networks are updated
    :param temperature: ``log α`` and its optimizer, if it is learned
    :param lean: whether updates may be faster than SB3's, where a user has not changed what autograd does
    :param needs_graph: whether another loss is added to the actor's
    :param joint_batch: whether statistics are those of both ends of the transitions
    :return: the arithmetic for one call of ``train()``; actor and critics know by ``by_hand`` whether it is lean
    """
    networks = policy.actor, policy.critic, policy.critic_target
    lean = lean and are_autograds_own(policy.actor, policy.critic) and is_temperature_free(*temperature)
    policy.actor.by_hand = policy.critic.by_hand = lean
    if policy.has_batch_norm or joint_batch:
        return (LeanBatchNormUpdates if lean else BatchNormUpdates)(*networks, joint_batch=joint_batch)
    if not lean:
        return PlainUpdates(*networks)
    return (None if needs_graph else SACGradients.of(policy)) or LeanUpdates(*networks)
