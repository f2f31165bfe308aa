"""What policies that learn from data have in common: features of observations, units of actions, an optimiser."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_energy.checks import check_bool, check_choice
from sb3_energy.conversion import as_native
from sb3_energy.deferred import NonFiniteError
from sb3_energy.keywords import plain_arguments
from sb3_energy.networks import find_activation
from sb3_energy.offline.offline_dataset import OfflineDataset
from sb3_energy.offline.standardization import Standardizer
from sb3_energy.policies.arguments import check_network_arguments
from sb3_energy.policies.causes import broken_module
from sb3_energy.policies.policy_files import PersistentModel

ADVICE = "a lower learning_rate, or a checkpoint from before"
BOUNDS = ("box", "data")


class OfflinePolicy(PersistentModel, BasePolicy):
    """
    Base of the policies of offline algorithms. Networks see features of standardised observations and actions in
    ``[-1, 1]``. What they need beside their parameters, the statistics of the data and the bounds of actions, is in their
    buffers, so a policy that is saved alone predicts.

    A subclass stores its own arguments, calls ``self._build(lr_schedule)`` at the end of its constructor, and implements
    :meth:`make_networks` and ``_predict(observation, deterministic) -> (B, A)``, in ``[-1, 1]``. Its own arguments go into
    ``_get_constructor_parameters``.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param net_arch: Width of each hidden layer (``None``: two of 256)
    :param activation_fn: Activation function, a class of ``torch.nn`` or its name
    :param normalize_observations: whether vectors among observations are standardised by mean and standard deviation of the
        first data set
    :param action_bounds: what is scaled to ``[-1, 1]``: the ``"box"`` of the action space, as in SB3, or the range of the
        ``"data"``, coordinate by coordinate; then no other actions are predicted
    :param features_extractor_class: Features extractor to use (``None``: the one of SB3's policy of this name).
    :param features_extractor_kwargs: Keyword arguments
        to pass to the features extractor.
    :param normalize_images: Whether to normalize images or not,
         dividing by 255.0 (True by default)
    :param optimizer_class: The optimizer to use,
        ``th.optim.Adam`` by default
    :param optimizer_kwargs: Additional keyword arguments,
        excluding the learning rate, to pass to the optimizer
    :raises ValueError: if a name or a number is not one of those that are accepted
    :raises TypeError: if something has the wrong type
    """

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor
    default_net_arch: ClassVar[tuple[int, ...]] = (256, 256)
    action_low: th.Tensor
    action_high: th.Tensor

    @plain_arguments
    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] | str = nn.ReLU,
        normalize_observations: bool = True,
        action_bounds: str = "box",
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ):
        shared: dict[str, Any] = dict(
            features_extractor_class=features_extractor_class or self.default_features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        networks: dict[str, Any] = dict(net_arch=net_arch, activation_fn=activation_fn)
        check_network_arguments(dict(observation_space=observation_space, action_space=action_space) | shared | networks)
        _check_extractor(shared["features_extractor_class"], observation_space, normalize_images)
        super().__init__(observation_space, action_space, squash_output=True, **shared)
        self.net_arch = list(self.default_net_arch) if net_arch is None else net_arch
        self.activation_fn = find_activation(activation_fn)
        self.normalize_observations = check_bool("normalize_observations", normalize_observations)
        self.action_bounds = check_choice("action_bounds", action_bounds, BOUNDS)
        self.action_dim = get_action_dim(action_space)
        for name, bound in (("action_low", action_space.low), ("action_high", action_space.high)):
            self.register_buffer(name, th.as_tensor(bound, dtype=th.float32).flatten().clone())
        self.standardizer = Standardizer(observation_space) if normalize_observations else nn.Identity()
        self.features_extractor = self.make_features_extractor()
        self.features_dim = self.features_extractor.features_dim

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | dict(
            lr_schedule=self._dummy_schedule,  # of no use without an optimiser's state
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            normalize_observations=self.normalize_observations,
            action_bounds=self.action_bounds,
            features_extractor_class=self.features_extractor_class,
            features_extractor_kwargs=self.features_extractor_kwargs,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        self.make_networks()
        optimizer_class: Any = self.optimizer_class
        self.optimizer = optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    @abstractmethod
    def make_networks(self) -> None:
        """Make the networks, as attributes; they see ``features_dim`` features and ``action_dim`` coordinates."""

    def learn_statistics(self, dataset: OfflineDataset) -> None:
        """
        Take the statistics of observations and, with ``action_bounds="data"``, the bounds of actions from data.

        :param dataset: the data
        :raises ValueError: if a coordinate of the actions is constant and bounds are to be taken from them
        """
        if isinstance(self.standardizer, Standardizer):
            self.standardizer.fit(dataset.observations)
        if self.action_bounds != "data":
            return
        flat = dataset.actions.reshape(len(dataset), -1)
        low, high = flat.min(axis=0), flat.max(axis=0)
        if not (low < high).all():
            index = int(np.flatnonzero(low >= high)[0])
            raise ValueError(f"action_bounds='data' needs actions that vary, got {low[index]:g} only in coordinate {index}")
        self.action_low.copy_(th.as_tensor(low))
        self.action_high.copy_(th.as_tensor(high))

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
        """
        Preprocess observations, standardise vectors, and extract features.

        :param obs: ``B`` observations
        :param features_extractor: the features extractor to use
        :return: ``(B, F)``
        """
        preprocessed = preprocess_obs(obs, self.observation_space, normalize_images=self.normalize_images)
        return features_extractor(self.standardizer(preprocessed))

    def features(self, obs: PyTorchObs) -> th.Tensor:
        """
        What the networks see of observations.

        :param obs: ``B`` observations
        :return: ``(B, F)``
        """
        return self.extract_features(obs, self.features_extractor)

    def scaled(self, actions: th.Tensor) -> th.Tensor:
        """
        From the units of the environment to ``[-1, 1]``.

        :param actions: ``(B, *A)``
        :return: ``(B, A)``
        """
        return 2.0 * (actions.flatten(1) - self.action_low) / (self.action_high - self.action_low) - 1.0

    def scale_action(self, action: np.ndarray) -> np.ndarray:
        """
        From the units of the environment to [-1, 1].

        :param action: Action to scale
        :return: Scaled action
        """
        low, high = self._numpy_bounds()
        return 2.0 * ((action - low) / (high - low)) - 1.0

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """
        From [-1, 1] to the units of the environment; what is outside is clipped.

        :param scaled_action: Action to un-scale
        :return: an action in the box
        :raises FloatingPointError: if it is NaN or infinity
        """
        if not np.isfinite(scaled_action).all():
            raise NonFiniteError("the action is NaN or infinity", ADVICE)
        low, high = self._numpy_bounds()
        return np.clip(low + 0.5 * (scaled_action + 1.0) * (high - low), low, high)

    def _numpy_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        low, high = (bound.cpu().numpy().reshape(self.action_space.shape) for bound in (self.action_low, self.action_high))
        return low, high

    def obs_to_tensor(self, observation: np.ndarray | dict[str, np.ndarray]) -> tuple[PyTorchObs, bool]:
        """
        As in SB3, but raises for NaN and infinity.

        :param observation: the input observation
        :return: The observation as PyTorch tensor
            and whether the observation is vectorized or not
        :raises ValueError: if the observation is not finite
        """
        obs_tensor, vectorized = super().obs_to_tensor(as_native(observation))
        for tensor in obs_tensor.values() if isinstance(obs_tensor, Mapping) else (obs_tensor,):
            if tensor.is_floating_point() and not th.isfinite(tensor.float()).all():  # networks see single precision
                raise ValueError("the observation must be finite, got one with NaN or infinity; check the environment")
        return obs_tensor, vectorized

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        As in SB3.

        :param observation: the input observation
        :param state: hidden state of recurrent policies, returned unchanged
        :param episode_start: not used without a hidden state
        :param deterministic: Whether or not to return deterministic actions.
        :return: the model's action and the state
        :raises ValueError: if the observation is not finite or has another shape than those of the space
        :raises FloatingPointError: if the action is NaN or infinity
        """
        try:
            return super().predict(observation, state, episode_start, deterministic)
        except NonFiniteError as error:
            found = broken_module(self, "policy")
            if found is None:
                raise
            raise error.because(found, advised=True) from error


def _check_extractor(extractor: Any, space: spaces.Space, normalize_images: bool) -> None:
    """Raise for SB3's features extractors where they do not fit, which fail in other words, or later."""
    is_dict = isinstance(space, spaces.Dict)
    if is_dict and extractor in (FlattenExtractor, NatureCNN):
        raise ValueError(f"observations that are a dictionary need MultiInputPolicy, got {extractor.__name__} and {space}")
    if extractor is NatureCNN and not is_image_space(space, normalized_image=not normalize_images):
        raise ValueError(f"CnnPolicy needs images, bytes of three axes, got {space}; use MlpPolicy")
