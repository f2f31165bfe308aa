"""Batch norms as if they had learned: with statistics that are not those of a standard normal batch."""

from torch import nn

from sb3_energy.networks import BACKBONES, backbone_beside, batch_norms

ALONE = sorted(name for name in BACKBONES if backbone_beside(name) == name)
"""Backbones whose rows are alone, which networks beside actor and critics may have."""


def with_statistics(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, with statistics that are drawn."""
    for layer in batch_norms(network):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.3, 2.0)
    return network.eval()
