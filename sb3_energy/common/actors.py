"""SB3's Gaussian actor on a backbone of choice."""

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import Actor
from torch import nn

from sb3_energy.common.features import NormalizedFeatures
from sb3_energy.networks import make_backbone, make_normalizer


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
    :raises ValueError: if the backbone is unknown or cannot have these widths
    """

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
        self.net_arch = net_arch
        self.features_dim = features_dim
        self.backbone = backbone
        self.normalizer = make_normalizer(backbone, features_extractor, features_dim)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | dict(backbone=self.backbone)
