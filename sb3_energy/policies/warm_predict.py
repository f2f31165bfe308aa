"""SB3's ``predict``, which hands plans on."""

import numpy as np
from stable_baselines3.common.policies import BasePolicy

from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refinement.warm_start import Plans, PredictState


class WarmPredict(BasePolicy):
    """Part of a refined policy whose refinement may keep plans."""

    refinement: Refinement
    _refines: bool
    _plans: Plans | None = None  # something only during a predict that hands plans on

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: PredictState = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, PredictState]:
        """
        As in SB3. With ``mppi`` and ``warm_start=True`` the state that is returned holds the plans' means, and plans that
        are passed in are among the places where the next ones start.

        :param observation: the input observation
        :param state: what the last call returned (``None``: there was none)
        :param episode_start: where an episode begins, so that its plan is forgotten (``None``: nowhere)
        :param deterministic: Whether or not to return deterministic actions.
        :return: the model's action and the next state: a tuple of one array ``(n_envs, A)`` before the squash, or the state
            that was passed where no plans are kept
        :raises ValueError: if the state or episode_start do not fit to the observation
        """
        if not (self.refinement.keeps_plans and self._refines):
            return super().predict(observation, state, episode_start, deterministic)
        plans = Plans(state, episode_start)
        self._plans = plans
        try:
            actions, _ = super().predict(observation, deterministic=deterministic)
        finally:
            self._plans = None
        return actions, plans.state
