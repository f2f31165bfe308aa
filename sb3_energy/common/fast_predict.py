"""SB3's ``predict`` for a few observations at once: the same numbers, by numpy instead of by torch."""

import math
from operator import attrgetter
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.sac.policies import SACPolicy

from sb3_energy.common.array_policy import ArrayPolicy

MAX_OBSERVATIONS = 64
"""For more of them at once torch takes no longer."""

RETRY = 1000
"""A policy whose networks are not supported is looked at again after so many predictions: a hook may be gone."""

_REPLACED = frozenset(
    [
        "_predict",
        "refine",
        "base",
        "energy_fn",
        "bound_head",
        "obs_to_tensor",
        "is_vectorized_observation",
        "extract_features",
        "unscale_action",
    ]
)
"""Methods that are not called on the fast path. Whoever overrides one of them gets the slow path."""

_methods = attrgetter(*_REPLACED)


class FastPredict(SACPolicy):
    """
    Mixin for a refined policy. ``predict`` takes the fast path where every part of the policy is known to
    :class:`sb3_energy.common.array_policy.ArrayPolicy` and the observation is one array of a few; SB3's otherwise. Given the
    same seed both give the same actions, but for rounding, and leave the random number generator in the same state.
    """

    fast_predict: bool = True
    """Set to ``False``, on the policy or the class, to predict as SB3 does."""
    _originals: ClassVar[tuple[Any, ...]] = ()
    _arrays: ArrayPolicy | None = None  # not a module, and no parameter of a constructor
    _retry: int = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if FastPredict in cls.__bases__:
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
        :param state: The last hidden states (can be None, used in recurrent policies)
        :param episode_start: The last masks (can be None, used in recurrent policies)
        :param deterministic: Whether or not to return deterministic actions.
        :return: the model's action and the next hidden state
        :raises ValueError: if the observation is not finite or has another shape than those of the space
        :raises FloatingPointError: if an energy is not finite
        """
        obs = self._flat(observation)
        if obs is not None:
            arrays = self._take_arrays()
            if arrays is not None:
                self.set_training_mode(False)
                try:
                    actions = self._act(arrays, obs, deterministic)
                finally:
                    self.__dict__["_arrays"] = arrays
                if actions is not None:
                    actions = arrays.unscaled(actions)
                    return (actions if observation.ndim > len(self.observation_space.shape) else actions[0]), state
        return super().predict(observation, state, episode_start, deterministic)

    def q_values(self, observation: np.ndarray | dict[str, np.ndarray], scaled_actions: np.ndarray) -> np.ndarray:
        """
        What the critic says of actions, by the value that the actor climbs.

        :param observation: ``B`` observations, as ``predict`` takes them
        :param scaled_actions: ``(B, *A)``, scaled to [-1, 1]
        :return: ``(B,)``
        :raises ValueError: if the observation is not finite
        """
        obs = self._flat(observation)
        actions = np.asarray(scaled_actions, np.float32).reshape(len(scaled_actions), -1)
        if obs is not None:
            arrays = self._take_arrays()
            if arrays is not None:
                try:
                    with np.errstate(all="ignore"):
                        return arrays.q_values(obs, actions)
                finally:
                    self.__dict__["_arrays"] = arrays
        obs_tensor, _ = self.obs_to_tensor(observation)
        with th.no_grad():
            values = self.critic.policy_values(obs_tensor, th.as_tensor(actions, device=self.device))  # type: ignore[operator]
        return values.squeeze(1).cpu().numpy()

    def _act(self, arrays: ArrayPolicy, obs: np.ndarray, deterministic: bool) -> np.ndarray | None:
        temperature = None
        if self._refines and not self.refinement.is_identity:
            temperature = self._buffers["temperature"].item()  # type: ignore[union-attr]
            if not (arrays.refines and temperature > 0.0):
                return None
        with np.errstate(all="ignore"):  # what is not finite is looked for
            return arrays.act(obs, deterministic, temperature)

    def _flat(self, observation: Any) -> np.ndarray | None:
        """The observation as ``(B, F)``, or ``None`` if it is not one or a few finite arrays of floats."""
        if type(observation) is not np.ndarray or not self.fast_predict:
            return None
        shape, expected = observation.shape, self.observation_space.shape
        if shape != expected and shape[1:] != expected:
            return None
        if observation.dtype.char not in "fd" or observation.size == 0:
            return None
        flat = observation.reshape(-1)
        if not (math.isfinite(flat.dot(flat)) or np.isfinite(flat).all()):
            return None
        n = 1 if shape == expected else shape[0]
        return flat.reshape(n, -1).astype(np.float32, copy=False) if n <= MAX_OBSERVATIONS else None

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
        return _methods(type(self)) == self._originals and _REPLACED.isdisjoint(self.__dict__)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._retry = 0  # the policy may come back from another device
        return super()._apply(*args, **kwargs)
