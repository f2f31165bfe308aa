"""An image encoder whose features are places: where in the image each of its channels is active."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_energy.checks import check_integer, check_number, plain


class SpatialSoftmax(nn.Module):
    """
    The expected coordinates of each channel, under a softmax over its pixels: a differentiable argmax
    (Finn et al. 2016, section 4.1).

    :param rows: coordinate of each row, downward
    :param columns: coordinate of each column, to the right
    :param temperature: of the softmax at first; it is learned
    """

    rows: th.Tensor
    columns: th.Tensor

    def __init__(self, rows: th.Tensor, columns: th.Tensor, temperature: float = 1.0):
        super().__init__()
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.log_temperature = nn.Parameter(th.tensor(float(temperature)).log())

    def forward(self, activations: th.Tensor) -> th.Tensor:
        """
        Find where channels are active.

        :param activations: ``(B, C, H, W)``
        :return: ``(B, 2 C)``: the column coordinates of all channels, then the row coordinates
        """
        weights = (activations.flatten(2) / self.log_temperature.exp()).softmax(-1).reshape(activations.shape)
        across, down = weights.sum(2) @ self.columns, weights.sum(3) @ self.rows
        return th.cat([across, down], dim=1)


class SpatialSoftmaxCNN(BaseFeaturesExtractor):
    """
    Convolutions that keep the image's plane, then the expected coordinates of each channel: for ``CnnPolicy`` with
    ``policy_kwargs=dict(features_extractor_class=SpatialSoftmaxCNN)``. Where an answer is a place, it is learned from far
    fewer images than by dense layers on top (Levine et al. 2016, section 6.1; of implicit policies Florence et al. 2021,
    section 4).

    Coordinates are -1 at the centre of the first pixel and 1 at that of the last one. As with SB3's ``NatureCNN``, images are
    channel first, which SB3's wrappers see to, and have been divided by 255 by the policy; with ``normalize_images=False``
    they are taken as they are.

    :param observation_space: of images ``(C, H, W)``
    :param n_channels: channels of each convolution; the features are two coordinates of each of the last
    :param kernel_size: pixels of a side of the kernels, an odd number
    :param stride: of the first convolution: every how many pixels the plane is kept
    :param temperature: of the softmax at first; it is learned
    :raises ValueError: if the space is not one of images, or a number is out of range
    :raises TypeError: if something has the wrong type
    """

    def __init__(
        self,
        observation_space: gym.Space,
        n_channels: Sequence[int] = (32, 32, 32),
        kernel_size: int = 3,
        stride: int = 2,
        temperature: float = 0.1,
    ) -> None:
        shape = _image_shape(observation_space)
        widths = _checked_channels(n_channels)
        kernel_size = check_integer("kernel_size", kernel_size, minimum=1)
        stride = check_integer("stride", stride, minimum=1)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that a kernel has a centre, got {kernel_size!r}")
        super().__init__(observation_space, features_dim=2 * widths[-1])
        layers: list[nn.Module] = []
        for n_inputs, n_outputs, step in zip([shape[0], *widths], widths, [stride] + [1] * len(widths), strict=False):
            layers += [nn.Conv2d(n_inputs, n_outputs, kernel_size, step, padding=kernel_size // 2), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers[:-1])  # a softmax looks at what is below 0, too
        rows, columns = (_coordinates(size, stride) for size in shape[1:])
        self.softmax = SpatialSoftmax(rows, columns, check_number("temperature", temperature, strict=True))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        Encode images.

        :param observations: ``(B, C, H, W)``
        :return: ``(B, F)``
        """
        return self.softmax(self.convolutions(observations))


def _coordinates(size: int, stride: int) -> th.Tensor:
    """Of the pixels that a convolution with this stride is centred on."""
    return 2.0 * th.arange(0, size, stride, dtype=th.float32) / max(size - 1, 1) - 1.0


def _image_shape(observation_space: Any) -> tuple[int, ...]:
    if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 3:
        raise ValueError(f"observation_space must be one of images, a Box of shape (C, H, W), got {observation_space!r}")
    if is_image_space(observation_space) and not is_image_space_channels_first(observation_space):
        raise ValueError(
            f"observation_space must have its channels first, got the shape {observation_space.shape}; VecTransposeImage of "
            "Stable-Baselines3 moves them there"
        )
    return observation_space.shape


def _checked_channels(n_channels: Any) -> list[int]:
    if not isinstance(n_channels, (list, tuple)) or not n_channels:
        raise TypeError(f"n_channels must be a list of at least one integer, got {n_channels!r}")
    return [check_integer("n_channels", n, minimum=1) for n in plain(list(n_channels))]
