"""Activation functions by name."""

from typing import Any

from torch import nn
from torch.nn.modules import activation

from sb3_energy.checks import did_you_mean

NAMES = sorted(set(activation.__all__) - {"MultiheadAttention"})


def find_activation(name_or_class: Any) -> type[nn.Module]:
    """
    Look up an activation function by name, or check the class that is given instead.

    :param name_or_class: the name of an activation function of ``torch.nn``, as files and command lines have it, or what makes
        one when it is called: such a class, or one of the user's own
    :return: what makes one
    :raises ValueError: if there is none of this name
    :raises TypeError: if it is neither name nor class
    """
    message = f"activation_fn must be a class of torch.nn or its name, such as 'SiLU', got {name_or_class!r}"
    if isinstance(name_or_class, str):
        if name_or_class not in NAMES:
            raise ValueError(f"{message}{did_you_mean(name_or_class, NAMES)}")
        return getattr(nn, name_or_class)
    if not callable(name_or_class) or isinstance(name_or_class, nn.Module):
        raise TypeError(message)
    return name_or_class
