"""The settings of an Energy Matching and their checks."""

from dataclasses import dataclass, fields
from typing import Any

from sb3_energy.checks import check_bool, check_choice, check_fraction, check_integer, check_number, plain_fields

BASES = ("normal", "uniform")
BOXES = (None, "reflect")


@dataclass(frozen=True)
class Settings:
    """
    The arguments of :class:`~sb3_energy.offline.energy_matching.EnergyMatching`, under the same names. They are plain values,
    so that reading them from a file runs no code.

    :raises ValueError: if a number is out of range, or two settings exclude each other
    :raises TypeError: if something has the wrong type
    """

    net_arch: list[int]
    activation_fn: str
    layer_norm: bool
    spectral_norm: bool
    input_gain: float
    normalize_observations: bool
    learning_rate: float
    final_learning_rate: float
    batch_size: int
    temperature: float
    sampling_time: float
    transport_time: float
    n_steps: int
    n_particles: int
    warm_up_steps: int
    transport_coef: float
    divergence_coef: float
    magnitude_coef: float
    noise_fraction: float
    ema_decay: float | None
    base: str
    box: str | None

    def __post_init__(self) -> None:
        plain_fields(self)
        for name in ("batch_size", "n_steps", "n_particles"):
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("warm_up_steps", self.warm_up_steps, minimum=0)
        for name in ("learning_rate", "final_learning_rate", "temperature", "sampling_time"):
            check_number(name, getattr(self, name), strict=True)
        for name in ("transport_time", "transport_coef", "divergence_coef", "magnitude_coef", "noise_fraction"):
            check_number(name, getattr(self, name))
        check_fraction("transport_time", self.transport_time)
        if self.noise_fraction > 1.0:
            raise ValueError(f"noise_fraction must lie in [0, 1], got {self.noise_fraction!r}")
        if self.divergence_coef == self.magnitude_coef == 0.0 and self.noise_fraction != 1.0:
            raise ValueError(
                "noise_fraction below 1 needs negatives, and divergence_coef or magnitude_coef above 0, "
                f"got {self.noise_fraction!r} with 0.0 and 0.0"
            )
        if self.ema_decay is not None:
            check_number("ema_decay", self.ema_decay, strict=True)
            if not self.ema_decay < 1.0:
                raise ValueError(f"ema_decay must lie in (0, 1), or be None for no average, got {self.ema_decay!r}")
        check_bool("normalize_observations", self.normalize_observations)
        for name, accepted in (("base", BASES), ("box", BOXES)):
            check_choice(name, getattr(self, name), accepted)

    def as_dict(self) -> dict[str, Any]:
        """
        The settings by name, for a file.

        :return: plain values
        """
        return {field.name: getattr(self, field.name) for field in fields(self)}
