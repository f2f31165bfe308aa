"""Updates as CUDA graphs, and compiled refinements. Experimental: the CUDA graphs have never run on a GPU."""

import inspect
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import numpy as np
import torch as th

from sb3_energy.deferred import deferred
from sb3_energy.entropy import ENTROPY_ESTIMATORS, SoftValueEntropy
from sb3_energy.fast_updates.captured_updates import CapturedUpdates, CudaGraphs
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refiners.sequence import class_names
from sb3_energy.types import EnergyFn, EntropyEstimator, RefinerInfo

CAPTURES = ("cuda_graph", "compile")

ADAM_ARGUMENTS = ("foreach", "fused", "capturable", "differentiable")
"""How Adam is computed, which is not the user's choice where its steps are captured."""


def check_capture(model: Any, estimator: EntropyEstimator) -> None:
    """
    Check that a model's updates can be captured as CUDA graphs.

    :param model: an algorithm that is set up, with ``capture`` not ``None``
    :param estimator: of its entropy
    :raises ValueError: if its updates cannot be captured, or its refinements cannot be compiled
    """
    policy, needs = model.policy, f"capture={model.capture!r} needs"
    if getattr(policy.refinement.refiner, "head", None) is not None:
        got = class_names(policy.refinement.refiner)
        raise ValueError(f"{needs} a refiner that learns nothing beside the critic, got {got}")
    if model.capture == "compile":
        if policy.refinement.is_identity:
            raise ValueError(f"{needs} refinements to compile, and refiner='none' makes none")
        return
    if model.update != "lean":
        raise ValueError(f"{needs} update='lean', got {model.update!r}")
    if model.use_sde:
        raise ValueError(f"{needs} use_sde=False, got True")
    if model.actor_delay != 1:
        raise ValueError(f"{needs} updates that are all the same and actor_delay=1, got {model.actor_delay!r}")
    if getattr(estimator, "reads_values", False):
        reading = [name for name, cls in ENTROPY_ESTIMATORS.items() if getattr(cls, "reads_values", False)]
        chosen = "; 'soft_value' is taken with a number of n_proposals" if isinstance(estimator, SoftValueEntropy) else ""
        raise ValueError(f"{needs} an entropy_estimator that is none of {reading}, got {type(estimator).__name__}{chosen}")
    if policy.actor.stack() is None:  # SB3's draws look at values
        raise ValueError(f"{needs} an actor of known layers, got activation_fn={policy.activation_fn.__name__}")
    if policy.optimizer_class not in (th.optim.Adam, th.optim.AdamW):
        got = getattr(policy.optimizer_class, "__name__", repr(policy.optimizer_class))
        raise ValueError(f"{needs} optimizer_class Adam or AdamW, got {got}")
    said = [name for name in ADAM_ARGUMENTS if policy.optimizer_kwargs.get(name) is not None]
    if said:
        raise ValueError(f"{needs} optimizer_kwargs without {list(ADAM_ARGUMENTS)}, got {said}")
    if model.device.type != "cuda":
        raise ValueError(
            f"{needs} a CUDA device, got device={str(model.device)!r}; use capture=None, "
            "which EnergySAC.load(path, capture=None) also takes"
        )


def captured_updates(model: Any) -> CapturedUpdates:
    """
    Wrap a model's updates for CUDA graph capture and replay.

    :param model: an algorithm whose updates pass :func:`check_capture`
    :return: its updates as CUDA graphs
    """
    return CapturedUpdates(model._update, model._optimizers, partial(dependencies, model), CudaGraphs(model.device))


def dependencies(model: Any) -> tuple[Any, ...]:
    """
    What a recorded update depends on, found by inspection.

    :param model: an algorithm
    :return: where its tensors are, the settings of its optimizers but their learning rates, and its own settings
    """
    optimizers = model._optimizers()
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    tensors = [*model.policy.parameters(), *model.policy.buffers(), *(p for group in groups for p in group["params"])]
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    tensors += [value for state in states for value in state.values() if isinstance(value, th.Tensor)]
    tensors += [value for value in vars(model).values() if isinstance(value, th.Tensor)]
    told = [{name: value for name, value in group.items() if name not in ("params", "lr")} for group in groups]
    return [(tensor.data_ptr(), tensor.requires_grad) for tensor in tensors], told, dict(settings(model))


def settings(model: Any) -> Iterator[tuple[str, Any]]:
    """
    What an update may read and no training changes: attributes of the algorithm, and of the objects that it holds, which bear
    the name of a constructor's argument or are dataclasses, such as a refinement. So counters are left out.

    :param model: an algorithm
    :return: names and values that can be compared
    """
    held = {name: value for name, value in vars(model).items() if type(value).__module__.startswith("sb3_energy.")}
    for name, owner in {"": model, **held}.items():
        constructors = [cls.__init__ for cls in type(owner).__mro__]  # type: ignore[misc]
        arguments = {argument for constructor in constructors for argument in inspect.signature(constructor).parameters}
        for key, value in getattr(owner, "__dict__", {}).items():
            is_setting = key in arguments or (is_dataclass(value) and not isinstance(value, type))
            if is_setting and not isinstance(value, (th.Tensor, np.ndarray, th.nn.Module, dict, list)):
                yield f"{name}.{key}", value


class CompiledSample:
    """A compiled :meth:`Refinement.sample`: it compiles once for each shape of its arguments."""

    def __init__(self) -> None:
        # A batch always has the same shape, and code for any shape is slower
        self._sample = th.compile(Refinement.sample, dynamic=False)

    def __call__(
        self,
        refinement: Refinement,
        base: Gaussian,
        energy: EnergyFn,
        temperature: th.Tensor,
        infos: list[RefinerInfo] | None,
    ) -> th.Tensor:
        """
        Sample refined actions with the compiled function.

        :param refinement: the refinement
        :param base: the Gaussian, pre-tanh
        :param energy: ``(B, N, A) -> (B, N)`` on the box
        :param temperature: scalar
        :param infos: a list to which one ``RefinerInfo`` a step is appended
        :return: ``(B, A)``, pre-tanh
        :raises FloatingPointError: as the refinement itself does
        """
        with deferred() as checks:
            found = self._sample(refinement, base, energy, temperature, infos=infos)
        checks.raise_first()
        return found
