"""How particles stay in the box of actions: squashed into it, or reflected at its walls. Both are exact, clipping is not."""

from dataclasses import dataclass
from typing import Protocol

import torch as th

from sb3_energy.energies import folded, log_tanh_jacobian, on_box, reflected, squashed
from sb3_energy.refinement.proposals import Gaussian, latent
from sb3_energy.types import EnergyFn


class Box(Protocol):
    """Coordinates in ``R^d`` for a refiner. ``u`` is what the base draws, before the squash: the action is ``tanh(u)``."""

    def start(self, u: th.Tensor) -> th.Tensor:
        """
        :param u: ``(B, N, A)``
        :return: coordinates
        """
        ...

    def end(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``(B, N, A)`` coordinates
        :return: ``u``
        """
        ...

    def log_prob(self, u: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
        """
        :param u: ``(B, N, A)``
        :param log_prob: ``(B, N)`` log-density of ``u``
        :return: that of the coordinates
        """
        ...

    def log_jacobian(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``(B, N, A)`` coordinates
        :return: ``(B, N)``, ``log |da/dx|`` of the actions
        """
        ...

    def sampled(self, energy: EnergyFn) -> EnergyFn:
        """
        :param energy: of actions in the box
        :return: of coordinates, for a sampler: its draws follow ``exp(-energy)`` on the box
        """
        ...

    def descended(self, energy: EnergyFn) -> EnergyFn:
        """
        :param energy: of actions in the box
        :return: the same values as a function of coordinates, for a descent
        """
        ...

    def frame(self, base: Gaussian) -> Gaussian:
        """
        :param base: ``(B, A)``
        :return: ``(B, 1, A)``, where and how wide the base is in these coordinates, for a preconditioner
        """
        ...


@dataclass(frozen=True)
class TanhBox:
    """Coordinates before the squash, ``a = tanh(x)``: the Jacobian joins the energy of a sampler."""

    def start(self, u: th.Tensor) -> th.Tensor:
        """
        :param u: ``(B, N, A)``, before the squash
        :return: coordinates
        """
        return u

    def end(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``(B, N, A)`` coordinates
        :return: the same, before the squash
        """
        return x

    def log_prob(self, u: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
        """
        :param u: ``(B, N, A)``, before the squash
        :param log_prob: ``(B, N)`` log-density of ``u``
        :return: that of the coordinates
        """
        return log_prob

    def log_jacobian(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``(B, N, A)`` coordinates
        :return: ``(B, N)``, ``log |da/dx|`` of the actions
        """
        return log_tanh_jacobian(x)

    def sampled(self, energy: EnergyFn) -> EnergyFn:
        """
        :param energy: of actions in the box
        :return: of coordinates, for a sampler
        """
        return squashed(energy)

    def descended(self, energy: EnergyFn) -> EnergyFn:
        """
        :param energy: of actions in the box
        :return: of coordinates, for a descent
        """
        return on_box(energy)

    def frame(self, base: Gaussian) -> Gaussian:
        """
        :param base: ``(B, A)``, before the squash
        :return: ``(B, 1, A)``, where and how wide it is in these coordinates
        """
        # The uniform distribution on the box has a standard deviation of .91 before the squash: longer steps than that
        # scale's would jump from wall to wall, however wide the base is.
        return Gaussian(base.mean.unsqueeze(1), base.std.unsqueeze(1).clamp(max=1.0))


@dataclass(frozen=True)
class ReflectingBox:
    """
    Coordinates are actions, and the walls of the box are mirrors: the energy goes on behind them as its mirror image,
    so that a particle behind a wall is one in front of it. A flat energy is flat, up to the walls.
    """

    def start(self, u: th.Tensor) -> th.Tensor:
        """
        :param u: ``(B, N, A)``, before the squash
        :return: coordinates
        """
        return th.tanh(u)

    def end(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``(B, N, A)`` coordinates
        :return: the same, before the squash
        """
        return latent(folded(x))

    def log_prob(self, u: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
        """
        :param u: ``(B, N, A)``, before the squash
        :param log_prob: ``(B, N)`` log-density of ``u``
        :return: that of the coordinates
        """
        return log_prob - log_tanh_jacobian(u)

    def log_jacobian(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``(B, N, A)`` coordinates
        :return: ``(B, N)``, ``log |da/dx|`` of the actions
        """
        return x.new_zeros(x.shape[:2])

    def sampled(self, energy: EnergyFn) -> EnergyFn:
        """
        :param energy: of actions in the box
        :return: of coordinates, for a sampler
        """
        return reflected(energy)

    def descended(self, energy: EnergyFn) -> EnergyFn:
        """
        :param energy: of actions in the box
        :return: of coordinates, for a descent
        """
        return reflected(energy)

    def frame(self, base: Gaussian) -> Gaussian:
        """
        :param base: ``(B, A)``, before the squash
        :return: ``(B, 1, A)``, where and how wide it is in these coordinates
        """
        # The base squeezed by the squash's slope. At the walls that is next to nothing, and nothing would move; and no
        # step needs to be longer than that of the uniform distribution, whose standard deviation is .58.
        mean = th.tanh(base.mean)
        return Gaussian(mean.unsqueeze(1), (base.std * (1.0 - mean.square())).clamp(0.02, 0.5).unsqueeze(1))


BOXES: dict[str, Box] = {"tanh": TanhBox(), "reflect": ReflectingBox()}
"""How particles stay in the box, by name."""
