"""SB3's ``predict`` for a few observations at once: the same numbers, by numpy instead of by torch."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.sac.policies import SACPolicy

from sb3_energy.conversion import as_native
from sb3_energy.deferred import NonFiniteError
from sb3_energy.policies.causes import policy_cause
from sb3_energy.policies.fast_predict.numpy_policy import ArrayPolicy
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refinement.warm_start import Plans

MAX_ROWS = 256
"""For more observations times particles torch is about as fast."""

RETRY = 1000
"""A policy whose networks are not supported is looked at again after so many predictions: a hook may be gone."""

_REPLACED = frozenset(
    [
        "_predict",
        "refine",
        "base",
        "start_base",
        "networks",
        "energy_fn",
        "bound_head",
        "obs_to_tensor",
        "is_vectorized_observation",
        "extract_features",
        "unscale_action",
    ]
)
"""Methods that are not called on the fast path. Whoever overrides one of them gets the slow path."""

_REPLACED_IN_ACTOR = frozenset(["forward", "_predict", "get_action_dist_params", "extract_features"])
_REPLACED_IN_CRITIC = frozenset(
    ["forward", "encode", "evaluate", "outputs", "extract_features", "policy_values", "target_values"]
)
_REPLACED_IN_POTENTIAL = frozenset(["forward", "bind"])
"""The same of actor, critic and potential, where they are put on an instance."""

_methods = attrgetter(*_REPLACED)


class FastPredict(SACPolicy):
    """
    Mixin for a refined policy. ``predict`` takes the fast path where every part of the policy is known to
    :class:`~sb3_energy.policies.fast_predict.numpy_policy.ArrayPolicy` and the observation is one array of a few; SB3's
    otherwise. Given the same seed both give the same actions, but for rounding, and leave the random number generator in the
    same state.
    """

    fast_predict: bool = True
    """Set to ``False``, on the policy or the class, to predict as SB3 does."""
    refinement: Refinement
    _refines: bool
    _originals: ClassVar[tuple[Any, ...]] = ()
    _arrays: ArrayPolicy | None = None  # not a module, and no parameter of a constructor
    _retry: int = 0
    compiled_sample: Any = None

    def __init_subclass__(cls, is_known: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if is_known:  # to ArrayPolicy, with what it overrides
            cls._originals = _methods(cls)

    def set_training_mode(self, mode: bool) -> None:
        """
        As in SB3, but nothing is done where the mode is right already: SB3 visits all modules at each prediction.

        :param mode: if true, set to training mode, else set to evaluation mode
        """
        modules = self._modules
        if not (self.training == mode == modules["actor"].training == modules["critic"].training):  # type: ignore[union-attr]
            super().set_training_mode(mode)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        As in SB3.

        :param observation: the input observation
        :param state: what the last call returned (``None``: there was none), see
            :class:`sb3_energy.policies.warm_predict.WarmPredict`
        :param episode_start: where an episode begins, so that its plan is forgotten (``None``: nowhere)
        :param deterministic: Whether or not to return deterministic actions.
        :return: the model's action and the next state
        :raises ValueError: if the observation is not finite or has another shape than those of the space
        :raises FloatingPointError: if an energy is not finite
        """
        try:
            with np.errstate(all="ignore"):  # what is not finite is looked for
                plans = Plans(state, episode_start) if self.refinement.keeps_plans and self._refines else None
                actions = self._fast_actions(observation, deterministic, plans)
            if actions is None:
                return super().predict(observation, state, episode_start, deterministic)
        except NonFiniteError as error:
            cause = policy_cause(self, "energy" in error.what)
            if cause is None:
                raise
            raise error.because(*cause) from error
        return actions, state if plans is None else plans.state

    @contextmanager
    def torch_predict(self) -> Iterator[None]:
        """Within this context ``predict`` is SB3's, bit by bit."""
        before, self.fast_predict = self.fast_predict, False
        try:
            yield
        finally:
            self.fast_predict = before

    @contextmanager
    def unrefined(self) -> Iterator[None]:
        """Within this context ``predict`` gives the Gaussian actor's own actions."""
        before, self._refines = self._refines, False
        try:
            yield
        finally:
            self._refines = before

    def q_values(self, observation: np.ndarray | dict[str, np.ndarray], scaled_actions: np.ndarray) -> np.ndarray:
        """
        What the critic says of actions, by the value that the actor climbs.

        :param observation: ``B`` observations, as ``predict`` takes them
        :param scaled_actions: ``(B, *A)``, scaled to [-1, 1]
        :return: ``(B,)``
        :raises ValueError: if the observation is not finite
        """
        actions = scaled_actions
        if (
            type(actions) is not np.ndarray
            or actions.dtype != np.float32
            or actions.ndim != 2
            or not actions.flags.c_contiguous
        ):
            n_actions = math.prod(self.action_space.shape)  # type: ignore[arg-type]
            actions = np.array(as_native(scaled_actions), np.float32, order="C")
            actions = actions.reshape(len(actions), n_actions)
        with np.errstate(all="ignore"):
            values = self._fast_q_values(observation, actions)
        if values is not None:
            return values
        obs_tensor, _ = self.obs_to_tensor(observation)
        with th.no_grad():
            tensor = self.critic.policy_values(obs_tensor, th.as_tensor(actions, device=self.device))  # type: ignore[operator]
        return tensor.squeeze(1).cpu().numpy()

    def _fast_actions(self, observation: Any, deterministic: bool, plans: Plans | None) -> np.ndarray | None:
        """What ``predict`` gives, or ``None`` where the slow path has to give it, and then nothing is drawn."""
        if self.compiled_sample is not None and not deterministic:  # which was asked for
            return None
        n_rows = self.refinement.n_starts if deterministic else self.refinement.n_particles
        obs = self._flat(observation, n_rows if self._refines else 1)
        arrays = None if obs is None else self._take_arrays()
        if obs is None or arrays is None:
            return None
        self.set_training_mode(False)
        try:
            temperature = None
            if self._refines and not self.refinement.is_identity:
                temperature = self._buffers["temperature"].item()  # type: ignore[union-attr]
                if not (arrays.refines and temperature > 0.0):
                    return None
            actions = arrays.act(obs, deterministic, temperature, plans)
        finally:
            self.__dict__["_arrays"] = arrays
        if actions is None:
            return None
        actions = arrays.unscaled(actions)
        return actions[0] if observation.shape == self.observation_space.shape else actions

    def _fast_q_values(self, observation: Any, actions: np.ndarray) -> np.ndarray | None:
        obs = self._flat(observation, 1)
        if obs is None or len(obs) != len(actions):
            return None
        arrays = self._take_arrays()
        if arrays is None:
            return None
        try:
            return arrays.q_values(obs, actions)
        finally:
            self.__dict__["_arrays"] = arrays

    def _flat(self, observation: Any, rows_each: int) -> np.ndarray | None:
        """The observation as ``(B, F)``, or ``None`` if it is not one or a few finite arrays of floats."""
        if type(observation) is not np.ndarray or not self.fast_predict:
            return None
        shape, expected = observation.shape, self.observation_space.shape
        if shape != expected and shape[1:] != expected:
            return None
        if observation.dtype.char not in "fd" or observation.size == 0:
            return None
        flat = observation.reshape(-1).astype(np.float32, copy=False)  # as networks see it: what is too large is infinite
        if not (math.isfinite(flat.dot(flat)) or np.isfinite(flat).all()):
            return None
        n = 1 if shape == expected else shape[0]
        return flat.reshape(n, -1) if n * rows_each <= MAX_ROWS else None

    def _take_arrays(self) -> ArrayPolicy | None:
        """The arrays, out of the policy: a second thread finds none, and makes its own."""
        if self._retry > 0:
            self._retry -= 1
            return None
        if th.is_autocast_enabled("cpu") or not self._is_original():
            return None
        arrays = self.__dict__.pop("_arrays", None)
        if arrays is None or not arrays.is_current(self):
            arrays = ArrayPolicy.of(self)  # type: ignore[arg-type]
            if arrays is None:
                self._retry = RETRY
        return arrays

    def _is_original(self) -> bool:
        potential = self._modules.get("potential")
        return (
            _methods(type(self)) == self._originals
            and _REPLACED.isdisjoint(self.__dict__)
            and _REPLACED_IN_ACTOR.isdisjoint(self._modules["actor"].__dict__)
            and _REPLACED_IN_CRITIC.isdisjoint(self._modules["critic"].__dict__)
            and (potential is None or _REPLACED_IN_POTENTIAL.isdisjoint(potential.__dict__))
        )

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._retry = 0  # the policy may come back from another device
        return super()._apply(*args, **kwargs)
