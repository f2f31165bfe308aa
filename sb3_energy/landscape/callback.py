"""Log the landscape of a policy's energy to TensorBoard during training."""

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat, Figure, HumanOutputFormat, JSONOutputFormat

from sb3_energy.checks import check_integer
from sb3_energy.keywords import plain_arguments
from sb3_energy.landscape.drawing import draw_landscape, figure_class
from sb3_energy.landscape.landscape import landscape_of, refined_policy_of

ONLY_TEXT = (HumanOutputFormat, JSONOutputFormat, CSVOutputFormat)


class LandscapeCallback(BaseCallback):
    """
    Log a figure of the policy's energy and particles at a fixed observation to TensorBoard (``landscape/observation``), for
    EnergySAC and PGAC. It changes neither the training's random numbers nor its networks.

    :param observation: one observation, as for ``model.predict``, normalised if those of the training are (``None``: the
        first one of the training environment)
    :param freq: number of calls between two figures, where a call is one step of all environments; a last figure is drawn
        when training ends
    :param dims: the dimensions of the actions to show (``None``: the first two)
    :param n_grid: number of grid points in each of them
    :param n_particles: number of particles to follow
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a number is out of range; when training starts, if dims or the observation do not fit the model, or
        its logger has no output for figures
    :raises TypeError: if something has the wrong type; when training starts, if the model has no refined policy
    :raises ImportError: if matplotlib is not installed
    """

    @plain_arguments
    def __init__(
        self,
        observation: np.ndarray | dict[str, np.ndarray] | None = None,
        freq: int = 1000,
        dims: tuple[int, ...] | None = None,
        n_grid: int = 61,
        n_particles: int = 64,
        verbose: int = 0,
    ):
        super().__init__(verbose)
        check_integer("freq", freq, minimum=1)
        check_integer("n_grid", n_grid, minimum=2)
        check_integer("n_particles", n_particles, minimum=1)
        figure_class()  # a missing matplotlib is to be noticed before training
        self.observation = observation
        self.freq = freq
        self.dims = dims
        self.n_grid = n_grid
        self.n_particles = n_particles
        self._drawn_at: int | None = None

    def _init_callback(self) -> None:
        refined_policy_of(self.model)
        outputs = self.logger.output_formats
        if all(isinstance(output, ONLY_TEXT) for output in outputs):
            names = [type(output).__name__ for output in outputs]
            raise ValueError(
                "LandscapeCallback needs a logger that takes pictures, such as that of "
                f"{type(self.model).__name__}(tensorboard_log=...), got {names}"
            )

    def _on_training_start(self) -> None:
        self._drawn_at = None
        if self.observation is None:
            self.observation = first_of(self.model._last_obs)
        landscape_of(self.model, self.observation, self.dims, n_grid=2, n_particles=1)  # raises before training

    def _on_step(self) -> bool:
        if self.n_calls % self.freq == 0:
            self._draw()
        return True

    def _on_training_end(self) -> None:
        if self._drawn_at != self.num_timesteps:  # the zoo says twice that training has ended
            self._draw()

    def _draw(self) -> None:
        self._drawn_at = self.num_timesteps
        landscape = landscape_of(self.model, self.observation, self.dims, self.n_grid, self.n_particles)
        figure = draw_landscape(landscape, f"after {self.num_timesteps} steps")
        self.logger.record("landscape/observation", Figure(figure, close=True), exclude=("stdout", "log", "json", "csv"))
        # Dump at once, as EvalCallback does: the logger keeps only the last figure of a name until an episode ends. Outputs of
        # text need a line
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)


def first_of(observations: Any) -> Any:
    """
    Select the first environment's observation from a batch.

    :param observations: of all environments, an array or a dictionary of them
    :return: a copy of the first environment's observation
    """
    if isinstance(observations, dict):
        return {key: np.array(part[0]) for key, part in observations.items()}
    return np.array(observations[0])
