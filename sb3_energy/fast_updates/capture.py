"""Updates without the host: whole ones as CUDA graphs, or with refinements that are compiled."""

from collections.abc import Iterable
from typing import Any

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_energy.checks import check_choice
from sb3_energy.deferred import deferred
from sb3_energy.entropy import ENTROPY_ESTIMATORS
from sb3_energy.fast_updates.captured_updates import CapturedUpdates, CudaGraphs
from sb3_energy.fast_updates.lean_updates import LeanUpdates
from sb3_energy.policies.refined_policy import RefinedPolicy
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.training.guards import Records
from sb3_energy.types import EnergyFn, EntropyEstimator, RefinerInfo

CAPTURES = ("cuda_graph", "compile")

WAITING_ESTIMATORS = ("trace", "path", "divergence")
"""Entropies that look at numbers on their way, or learn beside."""

ADAM_ARGUMENTS = ("foreach", "fused", "capturable", "differentiable")
"""How Adam is computed, which is not the user's to say where its steps are captured."""


class CapturableUpdates(LeanUpdates, OffPolicyAlgorithm):
    """
    Mixin for off-policy algorithms with a refined policy: ``capture``.

    With ``"cuda_graph"`` the body of an update, ``_update(batch, records)``, is recorded and replayed; transitions are
    drawn and target networks follow outside. With ``"compile"`` :meth:`Refinement.sample` is compiled, in updates and in
    predictions.
    """

    policy: RefinedPolicy
    capture: str | None
    _estimator: EntropyEstimator
    log_ent_coef: th.Tensor | None
    ent_coef_tensor: th.Tensor

    def _setup_model(self) -> None:
        check_choice("capture", self.capture, (*CAPTURES, None))
        super()._setup_model()
        self._captured: CapturedUpdates | None = None
        if self.capture is not None:
            self._check_capture()
        if self.capture == "compile":
            self.policy.compiled_sample = CompiledSample()
        if self.capture == "cuda_graph":
            self._captured = CapturedUpdates(self._update, self._optimizers, self._dependencies, CudaGraphs(self.device))

    def _check_capture(self) -> None:
        needs, refiner = f"capture={self.capture!r} needs", self.policy.refinement.refiner
        if getattr(refiner, "head", None) is not None:
            raise ValueError(f"{needs} a refiner that learns nothing beside the critic, got {type(refiner).__name__}")
        if self.capture == "compile":
            if self.policy.refinement.is_identity:
                raise ValueError(f"{needs} refinements to compile, and refiner='none' makes none")
            return
        if self.update != "lean":
            raise ValueError(f"{needs} update='lean', got {self.update!r}")
        if self.use_sde:
            raise ValueError(f"{needs} use_sde=False, got True")
        if any(type(self._estimator) is ENTROPY_ESTIMATORS[name] for name in WAITING_ESTIMATORS):
            got = type(self._estimator).__name__
            raise ValueError(f"{needs} an entropy_estimator that is none of {list(WAITING_ESTIMATORS)}, got {got}")
        if self.policy.actor.stack() is None:  # SB3's looks at numbers
            raise ValueError(f"{needs} an actor of known layers, got activation_fn={self.policy.activation_fn.__name__}")
        self._check_adam(needs)
        if self.device.type != "cuda":
            raise ValueError(
                f"{needs} a CUDA device, got device={str(self.device)!r}; use capture=None, "
                "which EnergySAC.load(path, capture=None) also takes"
            )

    def _check_adam(self, needs: str) -> None:
        if self.policy.optimizer_class not in (th.optim.Adam, th.optim.AdamW):
            got = getattr(self.policy.optimizer_class, "__name__", repr(self.policy.optimizer_class))
            raise ValueError(f"{needs} optimizer_class Adam or AdamW, got {got}")
        said = [name for name in ADAM_ARGUMENTS if self.policy.optimizer_kwargs.get(name) is not None]
        if said:
            raise ValueError(f"{needs} optimizer_kwargs without {list(ADAM_ARGUMENTS)}, got {said}")

    def _update(self, batch: ReplayBufferSamples, records: Records) -> None:
        raise NotImplementedError

    def _optimizers(self) -> list[th.optim.Optimizer]:
        raise NotImplementedError

    def _run_update(self, batch: ReplayBufferSamples, records: Records) -> None:
        # A hook would be recorded as what it did once; whoever has changed the networks is not recorded at all
        if self._captured is None or not self.actor.by_hand:
            self._update(batch, records)
        else:
            self._captured(batch, records)

    def _fuse(self, optimizers: Iterable[th.optim.Optimizer]) -> None:
        super()._fuse(optimizers)
        if self._captured is not None:
            self._captured.begin()

    def _dependencies(self) -> tuple[Any, ...]:
        """Where an update finds its tensors, and what else it was told."""
        optimizers = self._optimizers()
        states = [state for optimizer in optimizers for state in optimizer.state.values()]
        tensors = [*self.policy.parameters(), *self.policy.buffers()]
        tensors += [value for state in states for value in state.values() if isinstance(value, th.Tensor)]
        tensors += [self.ent_coef_tensor if self.log_ent_coef is None else self.log_ent_coef]
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        told = [{name: value for name, value in group.items() if name not in ("params", "lr")} for group in groups]
        names = ("gamma", "target_entropy", "refine_target", "update_particles", "distillation_coef", "_estimator")
        settings = [getattr(self, name) for name in names] + [self.policy.refinement, self.policy.energy]
        return [(tensor.data_ptr(), tensor.requires_grad) for tensor in tensors], told, settings

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_captured"]


class CompiledSample:
    """What stands for :meth:`Refinement.sample` in a policy: it compiles once for each shape of its arguments."""

    def __init__(self) -> None:
        # For shapes as they are: a batch's is always the same, and an unknown one makes slower code
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
        :param refinement: how
        :param base: the Gaussian before the squash
        :param energy: ``(B, N, A) -> (B, N)`` on the box
        :param temperature: scalar
        :param infos: a list to which one ``RefinerInfo`` a step is appended
        :return: ``(B, A)``, before the squash
        :raises FloatingPointError: as the refinement itself does
        """
        with deferred() as checks:
            found = self._sample(refinement, base, energy, temperature, infos=infos)
        checks.raise_first()
        return found
