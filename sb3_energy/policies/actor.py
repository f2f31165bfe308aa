"""SB3's Gaussian actor on a backbone of choice."""

from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution, StateDependentNoiseDistribution
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, Actor
from torch import nn

from sb3_energy.networks import (
    BatchNorm,
    Originals,
    Stack,
    batch_norms,
    find_backbone,
    initialize_head,
    make_backbone,
    make_normalizer,
    project_to_unit_norms,
)
from sb3_energy.policies.features import NormalizedFeatures
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.stats import normal_log_prob

_DISTRIBUTION_METHODS = (
    *("actions_from_params", "log_prob_from_params", "proba_distribution"),
    *("get_actions", "sample", "mode", "log_prob"),
)
_DISTRIBUTIONS = (SquashedDiagGaussianDistribution, StateDependentNoiseDistribution)
_ORIGINALS = Originals(dict.fromkeys(_DISTRIBUTIONS, _DISTRIBUTION_METHODS))


def has_sb3_distribution(actor: Actor) -> bool:
    """
    Check that the actor samples from an unmodified SB3 action distribution.

    :param actor: of SAC
    :return: whether its distribution is the one that SB3 makes, and no method of it has been replaced
    """
    distribution = actor.action_dist
    own = distribution.__dict__
    known = type(distribution) is _DISTRIBUTIONS[actor.use_sde] and _ORIGINALS.are_in_place()
    return known and not any([name in own for name in _DISTRIBUTION_METHODS])


class Draw(NamedTuple):
    """
    Actions of the Gaussian actor.

    :param actions: ``(B, A)``, after tanh
    :param log_prob: ``(B, 1)``, on the box
    :param base: the Gaussian, pre-tanh
    """

    actions: th.Tensor
    log_prob: th.Tensor
    base: Gaussian


class BackboneActor(NormalizedFeatures, Actor):
    """
    SB3's SAC actor with a backbone between the features and the layers of mean and standard deviation.
    With ``backbone="plain"`` it is SB3's, parameter by parameter and random number by random number.

    :param observation_space: Observation space
    :param action_space: Action space
    :param net_arch: Network architecture
    :param features_extractor: Network to extract features
        (a CNN when using images, a nn.Flatten() layer otherwise)
    :param features_dim: Number of features
    :param activation_fn: Activation function
    :param use_sde: Whether to use State Dependent Exploration or not
    :param log_std_init: Initial value for the log standard deviation
    :param full_std: Whether to use (n_features x n_actions) parameters
        for the std instead of only (n_features,) when using gSDE.
    :param use_expln: Use ``expln()`` function instead of ``exp()`` when using gSDE to ensure
        a positive standard deviation
    :param clip_mean: Clip the mean output when using gSDE to avoid numerical instability.
    :param normalize_images: Whether to normalize images or not,
         dividing by 255.0 (True by default)
    :param backbone: a name in :data:`sb3_energy.networks.BACKBONES`
    :param log_std_range: lowest and highest log standard deviation, between which it is a tanh of what the network gives
        (``None``: SB3's -20 and 2, at which it is clamped); not with gSDE
    :raises ValueError: if the backbone is unknown or cannot have these widths
    """

    by_hand: bool = True
    """Whether derivatives are taken by hand where the layers are known, or all of them by autograd."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        use_sde: bool = False,
        log_std_init: float = -3,
        full_std: bool = True,
        use_expln: bool = False,
        clip_mean: float = 2.0,
        normalize_images: bool = True,
        backbone: str = "plain",
        log_std_range: tuple[float, float] | None = None,
    ):
        # The trunk is made first and SB3 makes the two heads on top of it: its order of random numbers
        trunk, trunk_dim = make_backbone(backbone, features_dim, net_arch, activation_fn)
        super().__init__(
            observation_space,
            action_space,
            net_arch=[],
            features_extractor=features_extractor,
            features_dim=trunk_dim,
            activation_fn=activation_fn,
            use_sde=use_sde,
            log_std_init=log_std_init,
            full_std=full_std,
            use_expln=use_expln,
            clip_mean=clip_mean,
            normalize_images=normalize_images,
        )
        self.latent_pi = trunk
        self.log_std_range = log_std_range
        self.has_unit_norms = find_backbone(backbone).has_unit_norms
        self.has_batch_norm = any(isinstance(layer, BatchNorm) for layer in batch_norms(trunk))
        for head in self._heads():
            initialize_head(backbone, head)
        self.net_arch = net_arch
        self.features_dim = features_dim
        self.backbone = backbone
        self.normalizer = make_normalizer(backbone, features_extractor, features_dim)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | dict(backbone=self.backbone, log_std_range=self.log_std_range)

    def _heads(self) -> list[nn.Module]:
        # With gSDE the standard deviations are no layer
        return [head for head in (self.mu, self.log_std) if isinstance(head, nn.Module)]

    def project(self) -> None:
        """Give the parameters of trunk and heads their lengths back, where the backbone has unit norms: after each step."""
        for part in (self.latent_pi, *self._heads()) if self.has_unit_norms else ():
            project_to_unit_norms(part)

    def get_action_dist_params(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor, dict[str, th.Tensor]]:
        """
        As in SB3, or with log standard deviations within ``log_std_range``.

        :param obs: ``B`` observations
        :return: mean and log standard deviation ``(B, A)``, pre-tanh, and SB3's optional keyword arguments
        """
        if self.log_std_range is None:
            return super().get_action_dist_params(obs)
        latent, (low, high) = self.latent_pi(self.extract_features(obs, self.features_extractor)), self.log_std_range
        assert isinstance(self.log_std, nn.Module)
        return self.mu(latent), low + 0.5 * (high - low) * (1.0 + th.tanh(self.log_std(latent))), {}

    def draw(self, obs: PyTorchObs, next_obs: PyTorchObs) -> tuple[Draw, Draw]:
        """
        Actions at both ends of transitions, in one pass where the layers are known. Up to rounding, they are those of two
        calls of SB3's ``action_log_prob`` with the same noise.

        :param obs: ``B`` observations
        :param next_obs: the next observations
        :return: draws at both, the second without a graph
        """
        stack = self.stack()
        if stack is None:
            first = self.draw_at(obs)
            with th.no_grad():
                return first, self.draw_at(next_obs)
        features = self.extract_features(obs, self.features_extractor)
        with th.no_grad():
            next_features = self.extract_features(next_obs, self.features_extractor)
        parameters, next_parameters = stack.split(th.cat([features, next_features]), len(features))
        return self._squashed(parameters), self._squashed(next_parameters)

    def stack(self) -> Stack | None:
        """
        The actor's layers for backpropagation by hand, with mean and log standard deviation concatenated at the output.

        :return: the layers, ``(B, F) -> (B, 2 A)``, or ``None`` where derivatives by hand are not wanted, a layer is unknown
            or the Gaussian is made in another way
        """
        own = type(self).get_action_dist_params is BackboneActor.get_action_dist_params and self.log_std_range is None
        own = own and type(self).action_log_prob is Actor.action_log_prob and not self.use_sde and self.by_hand
        return Stack.of(self.latent_pi, self.mu, self.log_std) if own else None  # type: ignore[arg-type]

    def draw_at(self, obs: PyTorchObs) -> Draw:
        """
        Actions by SB3's ``action_log_prob``.

        :param obs: ``B`` observations
        :return: a draw
        """
        actions, log_prob = self.action_log_prob(obs)
        distribution = self.action_dist.distribution
        return Draw(actions, log_prob.reshape(-1, 1), Gaussian(distribution.mean, distribution.stddev))

    def _squashed(self, parameters: th.Tensor) -> Draw:
        mean, log_std = parameters.chunk(2, dim=1)
        log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        std, noise = log_std.exp(), th.randn(mean.shape, device=mean.device, dtype=mean.dtype)
        actions = th.tanh(mean + std * noise)
        # SB3's log-density of tanh(u), by the noise that u was drawn with: it does not depend on the mean
        slope = 1.0 - actions.square() + self.action_dist.epsilon
        log_prob = normal_log_prob(noise, log_std + slope.log()).unsqueeze(1)
        return Draw(actions, log_prob, Gaussian(mean, std))
