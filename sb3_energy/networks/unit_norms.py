"""Parameters of fixed length, so that the size of a step does not depend on how long a network has learned."""

import math

import torch as th
from torch import nn

from sb3_energy.networks.batch_norm import BatchNorm
from sb3_energy.networks.value_scale import ScaledLinear

SMALLEST_LENGTH = 1e-8
"""Of a row or of a norm's parameters. It only keeps the division finite: shorter ones stay short."""


@th.no_grad()
def project_to_unit_norms(network: nn.Module) -> None:
    """
    Give parameters their length back, as after each step of FlashSAC's optimisers (arXiv 2604.04539): a row of a linear layer
    has length 1, scale and bias of a norm have together the length ``sqrt(width)``. Biases of linear layers are free.

    Layers with a frozen parameter (``requires_grad=False``) and subclasses of these layers stay as they are.

    :param network: whose layers of the types ``nn.Linear``,
        :class:`~sb3_energy.networks.value_scale.ScaledLinear`, ``nn.RMSNorm`` and
        :class:`~sb3_energy.networks.batch_norm.BatchNorm` are projected, in place
    """
    for layer in network.modules():
        if type(layer) is nn.Linear or type(layer) is ScaledLinear:
            if _is_learned(layer):
                layer.weight.div_(th.linalg.vector_norm(layer.weight, dim=1, keepdim=True).clamp_(min=SMALLEST_LENGTH))
        elif type(layer) in (BatchNorm, nn.RMSNorm) and _is_learned(layer):
            parameters = [parameter for parameter in layer._parameters.values() if parameter is not None]
            squares = sum(parameter.square().sum() for parameter in parameters)
            factor = math.sqrt(len(parameters[0])) / th.as_tensor(squares).sqrt().clamp(min=SMALLEST_LENGTH)
            for parameter in parameters:
                parameter.mul_(factor)


def _is_learned(layer: nn.Module) -> bool:
    parameters = [parameter for parameter in layer._parameters.values() if parameter is not None]
    return bool(parameters) and all(parameter.requires_grad for parameter in parameters)
