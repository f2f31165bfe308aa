"""The landscape of a potential in TensorBoard, while it is learned."""

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat, Figure, HumanOutputFormat, JSONOutputFormat

from sb3_energy.checks import check_integer
from sb3_energy.keywords import plain_arguments
from sb3_energy.landscape.drawing import draw_landscape, figure_class
from sb3_energy.landscape.landscape import landscape_of, potential_policy_of

ONLY_TEXT = (HumanOutputFormat, JSONOutputFormat, CSVOutputFormat)


class LandscapeCallback(BaseCallback):
    """
    Draw what PGAC's potential says at one observation, always the same, into TensorBoard (``landscape/observation``). Training
    is what it is without: neither its random numbers nor its networks notice.

    :param observation: one observation, as ``model.predict`` is given it, normalised if the training's are (``None``: the
        first one of the training environment)
    :param freq: draw once in so many calls, each of which is a step of all environments; and when training ends
    :param dims: which dimensions of the actions are shown (``None``: the first two)
    :param n_grid: how many points the grid has in each of them
    :param n_particles: how many particles are followed
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    :raises ImportError: if there is no matplotlib
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
        figure_class()  # not after an hour of training
        self.observation = observation
        self.freq = freq
        self.dims = dims
        self.n_grid = n_grid
        self.n_particles = n_particles
        self._drawn_at: int | None = None

    def _init_callback(self) -> None:
        potential_policy_of(self.model)
        outputs = self.logger.output_formats
        if all(isinstance(output, ONLY_TEXT) for output in outputs):
            names = [type(output).__name__ for output in outputs]
            raise ValueError(
                f"LandscapeCallback needs a logger that takes pictures, such as that of PGAC(tensorboard_log=...), got {names}"
            )

    def _on_training_start(self) -> None:
        self._drawn_at = None
        if self.observation is None:
            self.observation = first_of(self.model._last_obs)
        landscape_of(self.model, self.observation, self.dims, n_grid=2, n_particles=1)  # says what is wrong with them

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
        # As EvalCallback does: the logger keeps one of a name, and writes it when an episode happens to end; and outputs of
        # text want a line
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)


def first_of(observations: Any) -> Any:
    """
    :param observations: of all environments, an array or a dictionary of them
    :return: a copy of the first environment's
    """
    if isinstance(observations, dict):
        return {key: np.array(part[0]) for key, part in observations.items()}
    return np.array(observations[0])
