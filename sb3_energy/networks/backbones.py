"""Backbones: the layers between the features and the linear head of an actor or a critic.

SB3's ``net_arch`` says how large they are, SB3's ``activation_fn`` what lies between their linear layers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn

from sb3_energy.checks import did_you_mean
from sb3_energy.networks.batch_norm import BatchNorm
from sb3_energy.networks.unit_norms import project_to_unit_norms
from sb3_energy.registry import NOT_REGISTERED


class SimbaBlock(nn.Module):
    """
    ``x + Linear(act(Linear_4h(LayerNorm(x))))``, both linear layers with He's initialisation.
    The pre-normalised residual block of SimBa (Lee et al. 2025, section 4).

    :param width: width of what goes in and comes out
    :param activation_fn: activation function
    """

    def __init__(self, width: int, activation_fn: type[nn.Module]):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), he_linear(width, 4 * width), activation_fn(), he_linear(4 * width, width)
        )

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        Apply the residual block.

        :param x: ``(..., width)``
        :return: ``(..., width)``
        """
        return x + self.layers(x)


class BroBlock(nn.Module):
    """
    ``x + LayerNorm(Linear(act(LayerNorm(Linear(x)))))``, both linear layers orthogonal with gain √2.
    The residual block of BroNet (Nauman et al. 2024, section 3).

    :param width: width of what goes in and comes out
    :param activation_fn: activation function
    """

    def __init__(self, width: int, activation_fn: type[nn.Module]):
        super().__init__()
        self.layers = nn.Sequential(
            orthogonal_linear(width, width, gain=2.0**0.5),
            nn.LayerNorm(width),
            activation_fn(),
            orthogonal_linear(width, width, gain=2.0**0.5),
            nn.LayerNorm(width),
        )

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        Apply the residual block.

        :param x: ``(..., width)``
        :return: ``(..., width)``
        """
        return x + self.layers(x)


class FlashBlock(nn.Module):
    """
    ``x + act(BatchNorm(Linear(act(BatchNorm(Linear_4h(x))))))``, both linear layers orthogonal and without bias.
    The inverted residual block of FlashSAC (arXiv 2604.04539).

    :param width: width of what goes in and comes out
    :param activation_fn: activation function
    """

    def __init__(self, width: int, activation_fn: type[nn.Module]):
        super().__init__()
        self.layers = nn.Sequential(
            orthogonal_linear(width, 4 * width, bias=False),
            BatchNorm(4 * width),
            activation_fn(),
            orthogonal_linear(4 * width, width, bias=False),
            BatchNorm(width),
            activation_fn(),
        )

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        Apply the residual block.

        :param x: ``(..., width)``
        :return: ``(..., width)``
        """
        return x + self.layers(x)


def he_linear(input_dim: int, output_dim: int) -> nn.Linear:
    """
    A linear layer with normal weights of variance ``2 / input_dim`` and no bias at first (He et al. 2015, equation 10).

    :param input_dim: width of the input
    :param output_dim: width of the output
    :return: the layer
    """
    layer = nn.Linear(input_dim, output_dim)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


def orthogonal_linear(input_dim: int, output_dim: int, gain: float = 1.0, bias: bool = True) -> nn.Linear:
    """
    A linear layer with orthogonal weights and no bias at first (Saxe et al. 2014).

    :param input_dim: width of the input
    :param output_dim: width of the output
    :param gain: factor of the orthogonal matrix
    :param bias: whether it learns one
    :return: the layer
    """
    layer = nn.Linear(input_dim, output_dim, bias=bias)
    nn.init.orthogonal_(layer.weight, gain=gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def plain(input_dim: int, net_arch: list[int], activation_fn: type[nn.Module]) -> nn.Sequential:
    """
    ``act(Linear(x))`` per layer: SB3's own ``create_mlp``, layer by layer and random number by random number.

    :param input_dim: width of the input
    :param net_arch: width of each layer
    :param activation_fn: activation function
    :return: the layers; none for an empty ``net_arch``
    """
    return nn.Sequential(*create_mlp(input_dim, -1, net_arch, activation_fn))


def layer_norm(input_dim: int, net_arch: list[int], activation_fn: type[nn.Module]) -> nn.Sequential:
    """
    ``act(LayerNorm(Linear(x)))`` per layer.
    Layer norm bounds what a critic says about actions it has never seen (Ball et al. 2023, section 4.2).

    :param input_dim: width of the input
    :param net_arch: width of each layer
    :param activation_fn: activation function
    :return: the layers; none for an empty ``net_arch``
    """
    return nn.Sequential(*create_mlp(input_dim, -1, net_arch, activation_fn, post_linear_modules=[nn.LayerNorm]))


def simba(input_dim: int, net_arch: list[int], activation_fn: type[nn.Module]) -> nn.Sequential:
    """
    An orthogonal linear layer, one :class:`SimbaBlock` per entry of ``net_arch``, a layer norm.
    SimBa (Lee et al. 2025, section 4); its running observation normalisation lies before the concatenation with the
    actions, see :class:`~sb3_energy.networks.normalization.RunningNorm`.

    :param input_dim: width of the input
    :param net_arch: the same width as often as there are blocks
    :param activation_fn: activation function
    :return: the layers
    :raises ValueError: if ``net_arch`` is empty or its widths differ
    """
    width = common_width("simba", net_arch)
    blocks = [SimbaBlock(width, activation_fn) for _ in net_arch]
    return nn.Sequential(orthogonal_linear(input_dim, width), *blocks, nn.LayerNorm(width))


def bro(input_dim: int, net_arch: list[int], activation_fn: type[nn.Module]) -> nn.Sequential:
    """
    ``act(LayerNorm(Linear(x)))``, then one :class:`BroBlock` per entry of ``net_arch``.
    BroNet (Nauman et al. 2024, section 3).

    :param input_dim: width of the input
    :param net_arch: the same width as often as there are blocks
    :param activation_fn: activation function
    :return: the layers
    :raises ValueError: if ``net_arch`` is empty or its widths differ
    """
    width = common_width("bro", net_arch)
    first = [orthogonal_linear(input_dim, width, gain=2.0**0.5), nn.LayerNorm(width), activation_fn()]
    return nn.Sequential(*first, *[BroBlock(width, activation_fn) for _ in net_arch])


def flash(input_dim: int, net_arch: list[int], activation_fn: type[nn.Module]) -> nn.Sequential:
    """
    A batch norm, an orthogonal linear layer without bias, one :class:`FlashBlock` per entry of ``net_arch``, an RMS norm, all
    of :func:`unit length <sb3_energy.networks.unit_norms.project_to_unit_norms>`. FlashSAC (arXiv 2604.04539).

    :param input_dim: width of the input
    :param net_arch: the same width as often as there are blocks
    :param activation_fn: activation function
    :return: the layers
    :raises ValueError: if ``net_arch`` is empty or its widths differ
    """
    width = common_width("flash", net_arch)
    first = [BatchNorm(input_dim), orthogonal_linear(input_dim, width, bias=False)]
    trunk = nn.Sequential(*first, *[FlashBlock(width, activation_fn) for _ in net_arch], nn.RMSNorm(width, eps=1e-6))
    project_to_unit_norms(trunk)
    return trunk


def common_width(name: str, net_arch: list[int]) -> int:
    """
    Check that all hidden layers of a residual backbone have the same width.

    :param name: the backbone's name, for the error message
    :param net_arch: widths
    :return: the width they share
    :raises ValueError: if there is none
    """
    if len(set(net_arch)) != 1:
        raise ValueError(f"net_arch of backbone {name!r} must be the same width once per residual block, got {net_arch!r}")
    return net_arch[0]


@dataclass(frozen=True)
class Backbone:
    """
    How to build one kind of trunk.

    :param build: ``(input_dim, net_arch, activation_fn) -> trunk``; the trunk's last width is ``net_arch[-1]``
        (``input_dim`` where ``net_arch`` is empty)
    :param default_activation: activation function when the user names none
    :param critic_activation: the same of critics (``None``: as the actor's)
    :param normalizes_features: whether running statistics of flat features belong to it
    :param has_unit_norms: whether its parameters and those of the heads on it keep their lengths, see
        :func:`sb3_energy.networks.unit_norms.project_to_unit_norms`
    :param beside: name of the backbone of networks that learn from other data than actor and critics do (``None``: this one);
        layers of batch normalisation have statistics of one kind of batches
    """

    build: Callable[[int, list[int], type[nn.Module]], nn.Sequential]
    default_activation: type[nn.Module] = nn.ReLU
    critic_activation: type[nn.Module] | None = None
    normalizes_features: bool = False
    has_unit_norms: bool = False
    beside: str | None = None


BACKBONES: dict[str, Backbone] = {
    "plain": Backbone(plain),
    # A smooth actor learns control tasks sooner, a critic with kinks tells goals apart sooner (docs/benchmark.md)
    "layer_norm": Backbone(layer_norm, default_activation=nn.SiLU, critic_activation=nn.ReLU),
    "simba": Backbone(simba, normalizes_features=True),
    "bro": Backbone(bro),
    "flash": Backbone(flash, has_unit_norms=True, beside="layer_norm"),
}


def find_backbone(name: str) -> Backbone:
    """
    Look up a registered backbone by name.

    :param name: a name in ``BACKBONES``
    :return: what it stands for
    :raises ValueError: if it is not there
    """
    if not isinstance(name, str) or name not in BACKBONES:
        hint = did_you_mean(name, BACKBONES) or (NOT_REGISTERED if isinstance(name, str) else "")
        raise ValueError(f"backbone must be one of {sorted(BACKBONES)}, got {name!r}{hint}")
    return BACKBONES[name]


def make_backbone(name: str, input_dim: int, net_arch: list[int], activation_fn: type[nn.Module]) -> tuple[nn.Sequential, int]:
    """
    Build a trunk from its name.

    :param name: a name in ``BACKBONES``
    :param input_dim: width of the input
    :param net_arch: widths, in SB3's form
    :param activation_fn: activation function
    :return: the trunk and the width of its output
    :raises ValueError: if the name is unknown or the backbone cannot have these widths
    """
    trunk = find_backbone(name).build(input_dim, net_arch, activation_fn)
    return trunk, net_arch[-1] if net_arch else input_dim


def initialize_head(name: str, head: nn.Module) -> None:
    """
    Initialise the linear layers on top of a trunk as its backbone wants them: with unit norms orthogonal, of rows of length 1
    and without bias at first; otherwise they stay as they are.

    :param name: a name in ``BACKBONES``
    :param head: a linear layer, or what contains some
    :raises ValueError: if the name is unknown
    """
    if not find_backbone(name).has_unit_norms:
        return
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
    project_to_unit_norms(head)


def backbone_beside(name: str) -> str:
    """
    Look up the backbone of networks beside actor and critics, such as those that a refiner learns.

    :param name: the policy's, a name in ``BACKBONES``
    :return: a name in ``BACKBONES``, of a backbone without batch normalisation
    :raises ValueError: if the name is unknown
    """
    return find_backbone(name).beside or name


def default_activation(name: str, of_critic: bool = False) -> type[nn.Module]:
    """
    Look up a backbone's default activation function.

    :param name: a name in ``BACKBONES``
    :param of_critic: whether it is that of critics
    :return: the activation function it has when the user names none
    :raises ValueError: if the name is unknown
    """
    backbone = find_backbone(name)
    if of_critic and backbone.critic_activation is not None:
        return backbone.critic_activation
    return backbone.default_activation
