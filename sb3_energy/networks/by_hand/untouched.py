"""Whether a user has changed what networks do, or what autograd does with them.

Derivatives by hand and predictions by numpy compute what the classes of layers say. Autograd computes what a user has made of
them: hooks, replaced methods, frozen and shared parameters, gradients that are switched off. The two agree where the functions
of this page say so; everywhere else autograd has to do it.
"""

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import torch as th
from torch import nn
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_EVERYWHERE = [getattr(torch_module, f"_global{name}") for name in _HOOKS]
_CALL = (nn.Module.__call__, nn.Module._call_impl, nn.Module._wrapped_call_impl)

_top_saved_tensors_hooks = getattr(th._C._autograd, "_top_saved_tensors_default_hooks", None)
_n_function_modes = getattr(th._C, "_len_torch_function_stack", None)
_use_count = getattr(th.Tensor, "_use_count", None)


def hooks_of(modules: Iterable[nn.Module]) -> list[dict[Any, Any]]:
    """
    Collect the hook dictionaries of modules, together with torch's global ones.

    :param modules: whose hooks, beside those of all modules
    :return: torch's own dictionaries of them, empty where there are none
    """
    return _EVERYWHERE + [getattr(module, name) for module in modules for name in _HOOKS]


def calls_are_original() -> bool:
    """
    Check that torch's module call is not modified globally.

    :return: whether calling a module calls its ``forward`` and nothing else: no hook of all modules, no replaced ``__call__``,
        and no mode that takes over torch's functions
    """
    return (
        (nn.Module.__call__, nn.Module._call_impl, nn.Module._wrapped_call_impl) == _CALL
        and not any(_EVERYWHERE)
        and (_n_function_modes is None or _n_function_modes() == 0 or _only_devices())
    )


def is_untouched(module: nn.Module) -> bool:
    """
    Check that a module instance has no hooks and no replaced methods.

    :param module: any
    :return: whether it does what its class says: no hook of its own, and no method replaced that its call goes through.
        Modules below it are not looked at
    """
    own = module.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or "_call_impl" in own
        or "_compiled_call_impl" in own
    )


def has_own(instance: Any, cls: type, *names: str) -> bool:
    """
    Check that methods of an instance are not overridden.

    :param instance: of a class or a subclass of it
    :param cls: the class
    :param names: of methods
    :return: whether the instance has the methods that the class itself defines or inherits, not those of a subclass and none
        that was set on the instance
    """
    return all(getattr(getattr(instance, name), "__func__", None) is getattr(cls, name) for name in names)


class Originals:
    """
    Methods as they are when this is made, which is when the package is imported: notices if one is replaced on a class.

    :param methods: for each class, the names of methods
    """

    def __init__(self, methods: dict[type, Sequence[str]]):
        self._getters = {cls: attrgetter(*names) for cls, names in methods.items()}
        self._methods = {cls: getter(cls) for cls, getter in self._getters.items()}

    def of(self, classes: Iterable[type]) -> "Originals":
        """
        Restrict the check to some of the classes.

        :param classes: any
        :return: the same for those of them alone that are known: to ask all takes as long as a small prediction's tenth
        """
        part = Originals({})
        part._getters = {cls: self._getters[cls] for cls in set(classes) & self._getters.keys()}
        part._methods = {cls: self._methods[cls] for cls in part._getters}
        return part

    def are_in_place(self) -> bool:
        """
        Check that no method has been replaced since the package was imported.

        :return: whether the classes still have these methods
        """
        methods = self._methods
        return all([getter(cls) == methods[cls] for cls, getter in self._getters.items()])


def autograd_is_plain() -> bool:
    """
    Check that autograd runs in its default mode.

    :return: whether a graph would be kept and walked unobserved: gradients are enabled, no hook packs saved
        tensors and anomalies are not looked for
    """
    return (
        th.is_grad_enabled()
        and not th.is_anomaly_enabled()
        and (_top_saved_tensors_hooks is None or _top_saved_tensors_hooks(True) is None)
    )


def _only_devices() -> bool:
    # torch.set_default_device() is a mode, and changes no gradient
    modes = th.overrides._get_current_function_mode_stack()
    return all(type(mode).__name__ == "DeviceContext" for mode in modes)


def are_learned_once(parameters: Sequence[th.Tensor]) -> bool:
    """
    The part of the condition that is a matter of parameters: autograd would leave in the ``grad`` of each the derivative of
    the loss and nothing else.

    :param parameters: each as often as it is used
    :return: whether all are trainable leaves, used once, without hooks on the tensor, after its gradient is accumulated, or
        on the node of the graph that accumulates it
    """
    if len(set(map(id, parameters))) < len(parameters):
        return False
    return all(
        parameter.requires_grad
        and type(parameter) in (nn.Parameter, th.Tensor)
        and parameter.is_leaf
        and not parameter._backward_hooks
        and not parameter._post_accumulate_grad_hooks
        # A node that accumulates keeps its parameter alive, and so does a graph or a view that leads to one
        and ((_use_count is not None and _use_count(parameter) == 1) or not _has_hooked_node(parameter))
        for parameter in parameters
    )


def _has_hooked_node(parameter: th.Tensor) -> bool:
    """Whether the node of the graph that accumulates a parameter's gradient has hooks: torch lists them to a new hook only."""
    function: Any = parameter.view_as(parameter).grad_fn  # gradients are enabled and the parameter requires one
    node = function.next_functions[0][0]
    for register in (node.register_hook, node.register_prehook):
        handle = register(_nothing)
        try:
            if len(handle.hooks_dict_ref()) > 1:
                return True
        finally:
            handle.remove()
    return False


def _nothing(*_: Any) -> None:
    """A hook that changes no gradient."""


def optimizes_only(optimizer: th.optim.Optimizer, parameters: Iterable[th.Tensor]) -> bool:
    """
    Check that an optimizer updates only the given parameters.

    :param optimizer: any
    :param parameters: what its loss is made of
    :return: whether it changes some of these parameters and no other, and forgets gradients before a loss as torch's do: who
        replaces ``zero_grad`` may want gradients to add up
    """
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return optimized <= set(map(id, parameters)) and has_own(optimizer, th.optim.Optimizer, "zero_grad")
