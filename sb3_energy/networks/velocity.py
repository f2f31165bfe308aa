"""Networks of particles and times: velocities, and what is averaged over a part of the way."""

import math
from functools import partial

import torch as th
from torch import nn

from sb3_energy.checks import check_bool, check_integer
from sb3_energy.keywords import plain_arguments
from sb3_energy.networks.backbones import make_backbone
from sb3_energy.networks.particles import evaluate_particles
from sb3_energy.types import AverageVelocityFn, VelocityFn

GATE_BIAS = -4.0
"""A gate that is nearly shut at first: an untrained flow stays where it starts."""


class FieldNetwork(nn.Module):
    """
    ``(s, x, t[, r]) -> (O,)`` for pre-tanh particles.

    Beside ``x`` it sees a Fourier series of the action ``tanh(x)`` (Tancik et al. 2020): modes are narrow on the box, and a
    network that sees coordinates alone blurs them for long. The last layer is zero at first.

    :param features_dim: ``F``
    :param action_dim: ``A``
    :param n_outputs: ``O``
    :param net_arch: width of each layer
    :param activation_fn: activation function
    :param backbone: a name in :data:`sb3_energy.networks.BACKBONES`
    :param two_times: whether it has an ``r``
    :param n_frequencies: of the Fourier series of actions
    :raises TypeError: if ``n_frequencies`` is no integer
    :raises ValueError: if a number is out of range, or the backbone is unknown or cannot have these widths
    """

    @plain_arguments
    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        n_outputs: int,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.SiLU,
        backbone: str = "plain",
        two_times: bool = False,
        n_frequencies: int = 4,
    ):
        super().__init__()
        n_frequencies = check_integer("n_frequencies", n_frequencies, minimum=0)
        self.two_times = two_times
        self.n_frequencies = n_frequencies
        n_times = 2 if two_times else 1
        input_dim = features_dim + action_dim * (1 + 2 * n_frequencies) + 9 * n_times
        trunk, trunk_dim = make_backbone(backbone, input_dim, net_arch, activation_fn)
        last = nn.Linear(trunk_dim, n_outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(*trunk, last)

    def forward(self, features: th.Tensor, x: th.Tensor, t: th.Tensor, r: th.Tensor | None = None) -> th.Tensor:
        """
        Evaluate the network's outputs at pre-tanh particles and flow times.

        :param features: ``(B, F)``
        :param x: ``(B, N, A)``, pre-tanh
        :param t: ``(B, N)``
        :param r: ``(B, N)``, where it has two times
        :return: ``(B, N, O)``
        """
        parts = [x, *_waves(th.tanh(x), self.n_frequencies), _embedded(t)]
        if self.two_times:
            assert r is not None
            parts.append(_embedded(r - t))
        return evaluate_particles(self.network, features, th.cat(parts, dim=-1))


class VelocityNetwork(FieldNetwork):
    """
    A velocity ``(s, x, t[, r]) -> (A,)``, plain or gated: ``sigmoid(g) (y - x)`` with a gate ``g`` and a place ``y`` to go to,
    as gated recurrent units move their state (Flow-G of SAC Flow, Zhang et al. 2025).

    :param features_dim: ``F``
    :param action_dim: ``A``
    :param net_arch: width of each layer
    :param activation_fn: activation function
    :param backbone: a name in :data:`sb3_energy.networks.BACKBONES`
    :param two_times: whether it is an average from ``t`` to ``r``
    :param n_frequencies: of the Fourier series of actions
    :param gated: whether it is gated
    :raises TypeError: if ``gated`` is no bool or ``n_frequencies`` no integer
    :raises ValueError: if a number is out of range, or the backbone is unknown or cannot have these widths
    """

    @plain_arguments
    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.SiLU,
        backbone: str = "plain",
        two_times: bool = False,
        n_frequencies: int = 4,
        gated: bool = False,
    ):
        gated = check_bool("gated", gated)
        n_outputs = 2 * action_dim if gated else action_dim
        super().__init__(features_dim, action_dim, n_outputs, net_arch, activation_fn, backbone, two_times, n_frequencies)
        self.gated = gated

    def forward(self, features: th.Tensor, x: th.Tensor, t: th.Tensor, r: th.Tensor | None = None) -> th.Tensor:
        """
        Evaluate the velocity at pre-tanh particles and flow times.

        :param features: ``(B, F)``
        :param x: ``(B, N, A)``, pre-tanh
        :param t: ``(B, N)``
        :param r: ``(B, N)``, where it has two times
        :return: ``(B, N, A)``
        """
        outputs = super().forward(features, x, t, r)
        if not self.gated:
            return outputs
        place, gate = outputs.chunk(2, dim=-1)
        return th.sigmoid(gate + GATE_BIAS) * (place - x)

    def bind(self, features: th.Tensor) -> VelocityFn:
        """
        Fix the features, so that the velocity is a function of particles and time alone.

        :param features: ``(B, F)``
        :return: ``(B, N, A), t (B, N) -> (B, N, A)``
        """
        return partial(self, features)

    def bind_average(self, features: th.Tensor) -> AverageVelocityFn:
        """
        Fix the features, so that the average velocity is a function of particles and two times alone.

        :param features: ``(B, F)``
        :return: ``(B, N, A), t, r (B, N) -> (B, N, A)``
        """
        return partial(self, features)


def _waves(actions: th.Tensor, n_frequencies: int) -> list[th.Tensor]:
    if n_frequencies == 0:
        return []
    k = th.arange(1, n_frequencies + 1, device=actions.device, dtype=actions.dtype) * (math.pi / 2.0)
    phases = (actions.unsqueeze(-1) * k).flatten(-2)
    return [th.cos(phases), th.sin(phases)]


def _embedded(time: th.Tensor) -> th.Tensor:
    k = th.arange(1, 5, device=time.device, dtype=time.dtype) * math.pi
    phases = time.unsqueeze(-1) * k
    return th.cat([time.unsqueeze(-1), th.cos(phases), th.sin(phases)], dim=-1)
