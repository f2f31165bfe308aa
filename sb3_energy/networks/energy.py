"""Scalar networks of observations and actions: energies ``E(s, a)``, with gradients by hand where the layers are known."""

from functools import partial

import torch as th
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm as spectrally_normalised

from sb3_energy.autodiff import gradient_of
from sb3_energy.checks import check_bool
from sb3_energy.keywords import plain_arguments
from sb3_energy.networks.backbones import find_backbone, make_backbone
from sb3_energy.networks.by_hand.ensembles import BoundEnsemble
from sb3_energy.networks.by_hand.untouched import has_own, is_untouched
from sb3_energy.networks.particles import evaluate_particles
from sb3_energy.types import EnergyFn


class ScalarNetwork(nn.Module):
    """
    A number for each particle: ``(s, a) -> f(s, a)``.

    :param network: ``(..., F + A) -> (..., 1)``
    """

    by_hand: bool = True
    """Whether gradients that need no graph are taken by hand where the layers are known, or by autograd."""

    def __init__(self, network: nn.Sequential):
        super().__init__()
        self.network = network

    def forward(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Evaluate the network at action particles.

        :param features: ``(B, F)``
        :param actions: ``(B, N, A)``
        :return: ``(B, N)``
        """
        return evaluate_particles(self.network, features, actions).squeeze(-1)

    def bind(self, features: th.Tensor) -> EnergyFn:
        """
        The network at these features as it is now; bind again after an update.

        :param features: ``(B, F)``
        :return: ``(B, N, A) -> (B, N)``
        """
        is_known = self.by_hand and is_untouched(self) and has_own(self, ScalarNetwork, "forward")
        stacks = BoundEnsemble.stacks_of([self.network]) if is_known else None
        return partial(_scalar, self, features, None if stacks is None else BoundEnsemble(stacks, features))


class EnergyNetwork(ScalarNetwork):
    """
    ``(s, a) -> E`` on one of the backbones: what implicit behavioral cloning learns (Florence et al. 2021, section 2).

    :param features_dim: ``F``; 0 for an energy that depends on nothing else
    :param action_dim: ``A``, coordinates of a flattened action
    :param net_arch: width of each layer
    :param activation_fn: activation function. Score matching and descents that are differentiated learn by the derivative of
        the energy's own gradient and need one of :data:`SMOOTH_ACTIVATIONS`
    :param backbone: a name in :data:`BACKBONES`, of one without batch normalisation: an energy must not depend on what else
        is evaluated beside it
    :param spectral_norm: whether the weights of each linear layer are divided by their largest singular value
        (Miyato et al. 2018), which bounds how steep the energy can be
    :raises ValueError: if the backbone is unknown, normalises over batches, or cannot have these widths
    :raises TypeError: if ``spectral_norm`` is no bool
    """

    @plain_arguments
    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.ReLU,
        backbone: str = "plain",
        spectral_norm: bool = False,
    ):
        check_bool("spectral_norm", spectral_norm)
        beside = find_backbone(backbone).beside
        if beside is not None:
            raise ValueError(
                f"backbone of an energy must not normalise over batches, got {backbone!r}, with which an energy would depend "
                f"on what is evaluated beside it; {beside!r} is what other networks have in its place"
            )
        trunk, trunk_dim = make_backbone(backbone, features_dim + action_dim, net_arch, activation_fn)
        super().__init__(nn.Sequential(*trunk, nn.Linear(trunk_dim, 1)))
        if spectral_norm:
            normalise_spectra(self.network)


def normalise_spectra(network: nn.Module) -> None:
    """
    Divide the weights of all linear layers by their largest singular value, which each evaluation in training mode estimates
    a little better by a step of power iteration (Miyato et al. 2018).

    :param network: whose layers of the type ``nn.Linear`` are parametrised, in place
    """
    for layer in [part for part in network.modules() if isinstance(part, nn.Linear)]:
        spectrally_normalised(layer)


def _scalar(network: ScalarNetwork, features: th.Tensor, bound: BoundEnsemble | None, x: th.Tensor) -> th.Tensor:
    if bound is None or th.is_grad_enabled():  # a graph is wanted
        return network(features, x)
    return bound.values(x)[0, ..., 0]


@gradient_of(_scalar)
def _scalar_by_hand(
    network: ScalarNetwork, features: th.Tensor, bound: BoundEnsemble | None, x: th.Tensor
) -> tuple[th.Tensor, th.Tensor] | None:
    return None if bound is None else bound.value_and_gradient(x, _alone)


def _alone(values: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    return values[0], th.ones_like(values)
