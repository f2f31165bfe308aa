"""Notices cheaply whether modules are what they were."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import nn

from sb3_energy.networks.by_hand.untouched import calls_are_original, hooks_of


class Watched:
    """
    Notices when modules are no longer what they were: others below them, other memory, a hook, a replaced method, another
    class, another setting of a layer such as ``eps``.

    Numbers may change. No address is older than its memory: views keep memory alive, so that no other gets the same address.

    :param modules: to watch
    """

    def __init__(self, modules: Sequence[nn.Module]):
        self._hooks = hooks_of(modules)
        self._modules, self._types = list(modules), [type(module) for module in modules]
        # What is put onto an instance, such as a method, makes its dictionary longer
        self._instances = [module.__dict__ for module in modules]
        self._lengths = [*map(len, self._instances)]
        self._parents = [module._modules for module in modules if module._modules]
        self._owners = [module._parameters for module in modules if module._parameters]
        self._places = [(layer.__dict__, name) for layer in modules for name in _settings_of(layer)]
        self._children, self._addresses = self._current_children(), self._current_addresses()
        self._settings = self._current_settings()

    def is_unchanged(self) -> bool:
        """
        :return: whether they still are what they were
        """
        return (
            self._addresses == self._current_addresses()
            and self._children == self._current_children()  # modules compare by identity
            and not any(self._hooks)
            and self._types == [*map(type, self._modules)]
            and self._lengths == [*map(len, self._instances)]
            and self._settings == self._current_settings()
            and calls_are_original()
        )

    def _current_children(self) -> list[nn.Module | None]:
        return [*chain.from_iterable(map(dict.values, self._parents))]

    def _current_addresses(self) -> list[int]:
        return [0 if p is None else p.data_ptr() for owner in self._owners for p in owner.values()]

    def _current_settings(self) -> list[Any]:
        return [own.get(name) for own, name in self._places]


def _settings_of(layer: nn.Module) -> list[str]:
    """What the forward of a layer reads beside its parameters; a linear layer reads nothing else."""
    if layer._modules or type(layer) in (nn.Linear, nn.Flatten, nn.Identity):
        return []
    kept = [name for name in layer.__dict__ if not name.startswith("_") and name != "training"]
    return [name for name in kept if name not in ("normalized_shape", "elementwise_affine", "inplace")]
