"""How particles stay in the box of events: by a tanh, or by reflection at its walls. Both are exact, clipping is not."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch as th

from sb3_energy.energies import folded, on_box, reflected, squashed, standardized
from sb3_energy.refinement.bases import Gaussian, latent
from sb3_energy.stats import log_tanh_jacobian
from sb3_energy.types import EnergyFn, Head


class Coordinates(Protocol):
    """Coordinates ``x`` in ``R^D`` in which a refiner sees particles; pre-tanh they are ``u``, the event is ``tanh(u)``."""

    def start(self, u: th.Tensor) -> th.Tensor:
        """
        Map pre-tanh particles to these coordinates.

        :param u: ``(B, N, *E)``, pre-tanh
        :return: coordinates
        """
        ...

    def end(self, x: th.Tensor) -> th.Tensor:
        """
        Map coordinates back to pre-tanh particles.

        :param x: ``(B, N, *E)`` coordinates
        :return: the same pre-tanh
        """
        ...

    def log_prob(self, u: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
        """
        Change variables in a pre-tanh log-density.

        :param u: ``(B, N, *E)``, pre-tanh
        :param log_prob: ``(B, N)`` log-density of ``u``
        :return: that of the coordinates
        """
        ...

    def log_jacobian(self, x: th.Tensor) -> th.Tensor:
        """
        Compute the log-determinant of the map from coordinates to actions.

        :param x: ``(B, N, *E)`` coordinates
        :return: ``(B, N)``, ``log |da/dx|`` of the events
        """
        ...

    def sampled(self, energy: EnergyFn) -> EnergyFn:
        """
        Pull an energy back to these coordinates with the Jacobian term that sampling needs.

        :param energy: of events in the box
        :return: of coordinates, for a sampler: its draws follow ``exp(-energy)`` in the box
        """
        ...

    def descended(self, energy: EnergyFn) -> EnergyFn:
        """
        Pull an energy back to these coordinates without a Jacobian term.

        :param energy: of events in the box
        :return: the same values as a function of coordinates, for a descent
        """
        ...

    def velocities(self, head: Head) -> Head:
        """
        Express learned velocities in these coordinates.

        :param head: with velocities pre-tanh, if it has some
        :return: the same flow, followed by the coordinates
        """
        return head

    def rows(self, index: th.Tensor) -> Any:
        """
        Restrict the coordinates to some observations of the batch.

        :param index: ``(b,)`` of observations
        :return: the coordinates at these alone
        """
        return self


class Box(Coordinates, Protocol):
    """Coordinates that are the same at all observations."""

    def frame(self, base: Gaussian) -> Gaussian:
        """
        Express a pre-tanh Gaussian's mean and standard deviation in these coordinates.

        :param base: ``(B, *E)``, pre-tanh
        :return: ``(B, 1, *E)``, its place and width in these coordinates, for a preconditioner
        """
        ...


@dataclass(frozen=True)
class TanhBox(Box):
    """Coordinates pre-tanh, ``a = tanh(x)``: the Jacobian joins the energy of a sampler."""

    def start(self, u: th.Tensor) -> th.Tensor:
        return u

    def end(self, x: th.Tensor) -> th.Tensor:
        return x

    def log_prob(self, u: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
        return log_prob

    def log_jacobian(self, x: th.Tensor) -> th.Tensor:
        return log_tanh_jacobian(x)

    def sampled(self, energy: EnergyFn) -> EnergyFn:
        return squashed(energy)

    def descended(self, energy: EnergyFn) -> EnergyFn:
        return on_box(energy)

    def frame(self, base: Gaussian) -> Gaussian:
        # The uniform distribution on the box has a standard deviation of .91 pre-tanh: steps in larger units would jump
        # from wall to wall, however wide the base is
        return Gaussian(base.mean.unsqueeze(1), base.std.unsqueeze(1).clamp(max=1.0))


@dataclass(frozen=True)
class ReflectingBox(Box):
    """
    Coordinates are the events, and the walls of the box are mirrors: the energy behind them is its mirror image, so that a
    particle behind a wall stands for one in front of it. A flat energy is flat up to the walls.
    """

    def start(self, u: th.Tensor) -> th.Tensor:
        return th.tanh(u)

    def end(self, x: th.Tensor) -> th.Tensor:
        return latent(folded(x))

    def log_prob(self, u: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
        return log_prob - log_tanh_jacobian(u)

    def log_jacobian(self, x: th.Tensor) -> th.Tensor:
        return x.new_zeros(x.shape[:2])

    def sampled(self, energy: EnergyFn) -> EnergyFn:
        return reflected(energy)

    def descended(self, energy: EnergyFn) -> EnergyFn:
        return reflected(energy)

    def frame(self, base: Gaussian) -> Gaussian:
        # The width times the slope of tanh. At the walls that is next to 0 and nothing would move; and no step needs to be
        # longer than for the uniform distribution, whose standard deviation is .58
        mean = th.tanh(base.mean)
        return Gaussian(mean.unsqueeze(1), (base.std * (1.0 - mean.square())).clamp(0.02, 0.5).unsqueeze(1))


class Framed(NamedTuple):
    """
    A box's coordinates as ``(x - loc) / scale``: steps are in units of ``scale``.

    :param box: the box
    :param loc: ``(B, 1, *E)``
    :param scale: ``(B, 1, *E)``, positive
    """

    box: Box
    loc: th.Tensor
    scale: th.Tensor

    def start(self, u: th.Tensor) -> th.Tensor:
        """As :meth:`Coordinates.start`."""
        return (self.box.start(u) - self.loc) / self.scale

    def end(self, x: th.Tensor) -> th.Tensor:
        """As :meth:`Coordinates.end`."""
        return self.box.end(self.loc + self.scale * x)

    def log_prob(self, u: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
        """As :meth:`Coordinates.log_prob`."""
        return self.box.log_prob(u, log_prob) + self.scale.log().flatten(2).sum(-1)

    def log_jacobian(self, x: th.Tensor) -> th.Tensor:
        """As :meth:`Coordinates.log_jacobian`."""
        return self.box.log_jacobian(self.loc + self.scale * x) + self.scale.log().flatten(2).sum(-1)

    def sampled(self, energy: EnergyFn) -> EnergyFn:
        """As :meth:`Coordinates.sampled`."""
        return standardized(self.box.sampled(energy), self.loc, self.scale)

    def descended(self, energy: EnergyFn) -> EnergyFn:
        """As :meth:`Coordinates.descended`."""
        return standardized(self.box.descended(energy), self.loc, self.scale)

    def velocities(self, head: Head) -> Head:
        """As :meth:`Coordinates.velocities`: a solver's steps stay the same, since the coordinates are affine."""
        changes = {
            name: partial(_framed, getattr(head, name), self.loc, self.scale, unit)
            for name, unit in (("velocity", self.scale), ("average_velocity", self.scale), ("average_divergence", None))
            if getattr(head, name) is not None
        }
        return head._replace(**changes)

    def rows(self, index: th.Tensor) -> "Framed":
        """As :meth:`Coordinates.rows`."""
        return Framed(self.box, self.loc[index], self.scale[index])


def _framed(field: Any, loc: th.Tensor, scale: th.Tensor, unit: th.Tensor | None, x: th.Tensor, *times: th.Tensor) -> Any:
    values = field(loc + scale * x, *times)
    return values if unit is None else values / unit


BOXES: dict[str, Box] = {"tanh": TanhBox(), "reflect": ReflectingBox()}
"""How particles stay in the box, by name."""
