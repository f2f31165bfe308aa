"""What refiners that follow gradients begin with."""

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.checks import check_positive, check_schedule
from sb3_energy.types import RefinerState, Target


class GradientStart:
    """Begins with the gradients at the particles, which every step leaves to the next one in ``extra``."""

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        :param particles: ``(B, N, *E)``
        :param target: what to draw from
        :return: particles, energies, and the gradients in ``extra``
        """
        energies, gradients = energy_and_grad(target.energy, particles)
        return RefinerState(particles, energies, gradients)


def check_steps(step_size: float | Schedule, max_grad_norm: float | None, max_displacement: float | None) -> None:
    """
    :param step_size: a positive number or a schedule
    :param max_grad_norm: a positive number, or ``None``
    :param max_displacement: a positive number, or ``None``
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    """
    check_schedule("step_size", step_size, minimum=0.0, strict=True)
    check_positive("max_grad_norm", max_grad_norm)
    check_positive("max_displacement", max_displacement)
