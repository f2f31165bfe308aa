"""Notices cheaply whether modules are what they were."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Watched:
    """
    Notices when modules are no longer what they were: others below them, other memory, a hook.

    Numbers may change. No address is older than its memory: views keep memory alive, so that no other gets the same address.

    :param modules: to watch
    """

    def __init__(self, modules: Sequence[nn.Module]):
        self._hooks = hooks_of(modules)
        self._parents = [module._modules for module in modules if module._modules]
        self._owners = [module._parameters for module in modules if module._parameters]
        self._children, self._addresses = self._current_children(), self._current_addresses()

    def is_unchanged(self) -> bool:
        """
        :return: whether they still are what they were
        """
        return (
            self._addresses == self._current_addresses()
            and self._children == self._current_children()  # modules compare by identity
            and not any(self._hooks)
        )

    def _current_children(self) -> list[nn.Module | None]:
        return [*chain.from_iterable(map(dict.values, self._parents))]

    def _current_addresses(self) -> list[int]:
        return [0 if p is None else p.data_ptr() for owner in self._owners for p in owner.values()]


def hooks_of(modules: Iterable[nn.Module]) -> list[dict[Any, Any]]:
    """
    :param modules: whose hooks, beside those of all modules
    :return: torch's own dictionaries of them, empty where there are none
    """
    everywhere = [getattr(torch_module, f"_global{name}", {}) for name in _HOOKS]
    return everywhere + [getattr(module, name) for module in modules for name in _HOOKS]
