"""The losses of SAC and their derivatives without autograd, for networks whose layers are known.

On ``B`` transitions, with ``μ, log σ`` from the actor, noise ``ε``, ``u = μ + σ ε``, ``a = tanh u`` and
``log π = -Σ (ε² / 2 + log σ + ½ log 2π + log(1 - a² + δ))``:

* critics, ``L = ½ Σ_i mean (Q_i - y)²``: ``dL/dQ_i = (Q_i - y) / B``;
* actor, ``L = mean(α log π - min_i Q_i)``. With ``w_i = 1`` for the lowest critic and 0 for the others,
  ``dL/da = (2 α a / (1 - a² + δ) - Σ_i w_i dQ_i/da) / B``, then ``dL/du = (1 - a²) dL/da``, ``dL/dμ = dL/du`` and
  ``dL/d log σ = σ ε dL/du - α / B``, which is 0 where ``log σ`` was clamped.

The derivatives of layers are in :mod:`sb3_energy.networks.by_hand.layer_rules`;
``tests/fast_updates/test_lean_parity.py`` compares all of it with SB3.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN

from sb3_energy.networks import (
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
from sb3_energy.policies.actor import BackboneActor, Draw, density_of_noise
from sb3_energy.policies.critics import EnsembleCritic
from sb3_energy.policies.quantile_critic import QuantileCritic
from sb3_energy.refinement.bases import Gaussian

_ACTOR_METHODS = ("action_log_prob", "get_action_dist_params", "extract_features", "draw", "stack")
_CRITIC_METHODS = ("forward", "encode", "extract_features", "td_loss", "policy_values", "_policy_values", "target_values")
_CRITICS_METHODS = (*_CRITIC_METHODS, "policy_value_and_gradient", "stacks", "bind")
_DISTRIBUTION_METHODS = ("log_prob_from_params", "actions_from_params", "proba_distribution", "sample", "log_prob")

_ORIGINALS = Originals(
    {
        BackboneActor: _ACTOR_METHODS,
        EnsembleCritic: _CRITICS_METHODS,
        QuantileCritic: _CRITICS_METHODS,
        SquashedDiagGaussianDistribution: _DISTRIBUTION_METHODS,
    }
)


def are_autograds_own(actor: BackboneActor, critic: EnsembleCritic) -> bool:
    """
    The condition of every derivative of actor and critics that autograd does not take: it would find just what their classes
    say. Whoever freezes or shares a parameter, hooks a tensor, a module or a node of the graph, replaces a method or switches
    gradients off gets autograd.

    :param actor: the Gaussian actor
    :param critic: the critics
    :return: whether derivatives by hand are those of autograd
    """
    classes = type(actor) is BackboneActor and type(critic) in (EnsembleCritic, QuantileCritic)
    if not (classes and autograd_is_plain() and calls_are_original() and _ORIGINALS.are_in_place()):
        return False
    own = has_own(actor, BackboneActor, *_ACTOR_METHODS) and has_own(critic, type(critic), *_CRITICS_METHODS)
    distribution = actor.action_dist
    own = own and (actor.use_sde or type(distribution) is SquashedDiagGaussianDistribution)
    own = own and not any(name in distribution.__dict__ for name in _DISTRIBUTION_METHODS)
    return own and _is_free(actor, critic)


def _is_free(actor: BackboneActor, critic: EnsembleCritic) -> bool:
    """Whether no module and no parameter of the two is hooked, frozen, used twice or changed by the other's optimiser."""
    shares = critic.share_features_extractor and critic.features_extractor is actor.features_extractor
    parts = [actor] if shares else [actor, critic]
    modules = [module for part in parts for module in part.modules()]
    if shares:  # by SB3's own design: it learns with the actor
        modules += [critic, *(module for network in critic.q_networks for module in network.modules())]
    parameters = [p for module in modules for p in module._parameters.values() if p is not None]
    optimizers: list[Any] = [actor.optimizer, critic.optimizer]
    parts_of = zip(optimizers, (actor, critic), strict=True)
    optimized = all(optimizes_only(optimizer, part.parameters()) for optimizer, part in parts_of)
    return optimized and all(map(is_untouched, modules)) and are_learned_once(parameters)


def is_temperature_free(log_ent_coef: th.Tensor, optimizer: th.optim.Optimizer) -> bool:
    """
    :param log_ent_coef: ``log α``, learned
    :param optimizer: which changes it
    :return: whether its derivative by hand is the one that autograd would leave in its ``grad``
    """
    single = log_ent_coef.numel() == 1
    return single and autograd_is_plain() and optimizes_only(optimizer, [log_ent_coef]) and are_learned_once([log_ent_coef])


def temperature_loss_by_hand(log_ent_coef: th.Tensor, entropy: th.Tensor, target_entropy: float) -> th.Tensor:
    """
    ``log α (entropy - target entropy)``, whose derivative is its other factor and is left in ``log_ent_coef.grad``.

    :param log_ent_coef: one number of any shape, learned
    :param entropy: scalar, ``-mean log π`` without a graph
    :param target_entropy: in nats
    :return: scalar
    """
    gradient = entropy - target_entropy
    log_ent_coef.grad = gradient.reshape(log_ent_coef.shape)
    return (log_ent_coef.detach() * gradient).reshape(())


class _ActorTape(NamedTuple):
    """What the way back from the first observations' actions needs; ``(B, A)`` each, but the layers'."""

    layers: list[th.Tensor]
    is_free: th.Tensor  # where log σ was not clamped
    noise: th.Tensor
    slope: th.Tensor  # 1 - a²
    padded: th.Tensor  # 1 - a² + δ


class SACGradients:
    """
    Losses that leave their derivatives in the parameters' ``grad``.

    :param actor: the Gaussian actor
    :param critic: scalar critics
    :param stacks: the layers of the actor, then those of each critic
    """

    def __init__(self, actor: BackboneActor, critic: EnsembleCritic, stacks: Sequence[Stack]):
        self.actor, self.critic = actor, critic
        self.actor_stack, *self.critic_stacks = stacks
        self._tape: _ActorTape | None = None

    @classmethod
    def of(cls, actor: BackboneActor, critic: EnsembleCritic) -> "SACGradients | None":
        """
        :param actor: the actor
        :param critic: the critics, which pass :func:`are_autograds_own` together
        :return: their updates, or ``None`` where features are learned, a layer is unknown, or one of the two is not SAC's
        """
        if not critic.is_own("td_loss", "policy_values"):
            return None
        actor_stack, critic_stacks = actor.stack(), critic.stacks()
        if actor_stack is None or critic_stacks is None:
            return None
        learned = any(True for network in (actor, critic) for _ in network.features_extractor.parameters())
        return None if learned else cls(actor, critic, [actor_stack, *critic_stacks])

    @th.no_grad()
    def draw(self, obs: PyTorchObs, next_obs: PyTorchObs) -> tuple[Draw, Draw]:
        """
        :param obs: ``B`` observations
        :param next_obs: those that followed
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
        log_prob = density_of_noise(noise, log_std, padded)
        self._tape = _ActorTape([kept[:n] for kept in layers], unclamped[:n] == log_std[:n], noise[:n], slope[:n], padded[:n])
        parts = zip(*(part.split(n) for part in (actions, log_prob, mean, std)), strict=True)
        first, second = (Draw(a, density, Gaussian(mu, sigma)) for a, density, mu, sigma in parts)
        return first, second

    @th.no_grad()
    def critic_loss(self, obs: PyTorchObs, actions: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """
        :param obs: ``B`` observations
        :param actions: ``(B, A)``
        :param targets: ``(B, 1)``
        :return: scalar
        """
        inputs = th.cat([self.critic.encode(obs), actions], dim=1)
        errors, n = [], len(inputs)
        for stack in self.critic_stacks:
            layers: list[th.Tensor] = []
            errors.append((stack.forward(inputs, layers) - targets) / n)
            stack.backward(errors[-1], layers, InGrad(), wants_dx=False)
        return 0.5 * n * th.cat(errors).square().sum()

    @th.no_grad()
    def actor_loss(self, obs: PyTorchObs, draw: Draw, ent_coef: th.Tensor) -> th.Tensor:
        """
        :param obs: ``B`` observations, those of :meth:`draw`
        :param draw: the first of what it gave
        :param ent_coef: ``α``, scalar or ``(1,)``
        :return: scalar
        """
        assert self._tape is not None
        layers, is_free, noise, slope, padded = self._tape
        features = self.critic.encode(obs)
        q_values, gradients = self.critic.policy_value_and_gradient(self.critic_stacks, features, draw.actions)
        n = len(slope)
        d_latent = (2.0 * ent_coef * draw.actions / padded - gradients) * (slope / n)
        d_log_std = (d_latent * draw.base.std * noise - ent_coef / n) * is_free
        self.actor_stack.backward(th.cat([d_latent, d_log_std], dim=1), layers, InGrad(), wants_dx=False)
        self._tape = None
        return (ent_coef * draw.log_prob - q_values).mean()
