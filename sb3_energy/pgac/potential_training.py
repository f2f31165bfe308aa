"""Settings of a potential's training, checked."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from sb3_energy.checks import check_choice, check_integer, check_number, plain_fields
from sb3_energy.keywords import refuse_changed_fields
from sb3_energy.losses import VALUE_WEIGHTS
from sb3_energy.refiners.sequence import class_names, members_of

POSITIVES = ("gibbs", "best")
OF_NEGATIVES = ("n_negatives", "negative_steps", "negative_step", "max_energy")
OF_VALUE_WEIGHTS = ("expectile", "largest_weight")


@dataclass(frozen=True)
class PotentialTraining:
    """
    Settings of a potential's training: observations, candidates, chains and bounds.

    :param n_observations: most observations of a batch that are used
    :param n_candidates: candidates for each observation: the replayed action, ``n_refined`` draws of the policy, and of the
        others one half from the Gaussian and one uniform on the box; at least ``2 top_k``
    :param top_k: number of positives among the candidates, to which actions are transported
    :param positives: ``"gibbs"``: drawn without replacement with weights ``exp(Q̂ / ε)`` over the density of Gaussian and box
        (also for those few that are replayed or refined), so that they do not depend on where the Gaussian is; ``"best"``:
        those of highest Q, more of which lie near the Gaussian
    :param n_refined: number of candidates that are draws of the policy
    :param n_negatives: negatives for each observation, an even number: one half Langevin chains, one half uniform on the box
    :param negative_steps: steps of the chains
    :param negative_step: ``Δt`` of each step
    :param max_energy: ``|V|``, in units of the temperature, from which on it is penalized: contrastive divergence would raise
        ``V`` at random actions without a bound
    :param expectile: expectile of the behaviour's value, in [0.5, 1)
    :param largest_weight: bound of the value weight
    :raises ValueError: if a number is out of range
    :raises TypeError: if an argument has the wrong type
    """

    n_observations: int = 32
    n_candidates: int = 64
    top_k: int = 20
    positives: str = "gibbs"
    n_refined: int = 4
    n_negatives: int = 16
    negative_steps: int = 5
    negative_step: float = 0.05
    max_energy: float = 10.0
    expectile: float = 0.9
    largest_weight: float = 10.0

    def __post_init__(self) -> None:
        plain_fields(self)
        for name in ("n_observations", "top_k", "n_negatives", "negative_steps"):
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("n_candidates", self.n_candidates, minimum=2)
        check_integer("n_refined", self.n_refined, minimum=0)
        check_choice("positives", self.positives, POSITIVES)
        if self.n_candidates < 2 * self.top_k:
            raise ValueError(f"n_candidates must be at least 2 top_k = {2 * self.top_k}, got {self.n_candidates}")
        if self.n_candidates - self.n_refined - 1 < 20:
            raise ValueError(
                "n_candidates must leave 20 that are neither replayed nor refined, of which Q's spread is measured, "
                f"got {self.n_candidates} with n_refined={self.n_refined}"
            )
        if self.n_negatives % 2 == 1:
            raise ValueError(f"n_negatives must be even, got {self.n_negatives}")
        for name in ("negative_step", "max_energy", "largest_weight"):
            check_number(name, getattr(self, name), strict=True)
        check_number("expectile", self.expectile)
        if not 0.5 <= self.expectile < 1.0:
            raise ValueError(f"expectile must lie in [0.5, 1), got {self.expectile!r}")

    @property
    def n_chains(self) -> int:
        """Number of negatives that are chains."""
        return self.n_negatives // 2


class PotentialSettings(NamedTuple):
    """
    Coefficients of the losses: arguments of the algorithm.

    :param transport_coef: of the transport loss
    :param divergence_coef: ``ω``, of the contrastive divergence
    :param end_to_end_coef: of ``-E[Q̂]`` through the sampler
    :param matching_coef: of the gradient matching loss
    :param value_weight: ``"relu"``, ``"exp"`` or ``None``
    """

    transport_coef: float
    divergence_coef: float
    end_to_end_coef: float
    matching_coef: float
    value_weight: str | None

    def check(self, guidance: float, refiner: Any) -> "PotentialSettings":
        """
        Check the loss coefficients and that they fit the energy and the refiner.

        :param guidance: ``λ`` of the policy's energy
        :param refiner: of the policy
        :return: the same as Python's numbers
        :raises ValueError: if a number is out of range, or two arguments do not go together
        :raises TypeError: if an argument has the wrong type
        """
        names = ("transport_coef", "divergence_coef", "end_to_end_coef", "matching_coef")
        numbers: dict[str, Any] = {name: check_number(name, getattr(self, name)) for name in names}
        check_choice("value_weight", self.value_weight, (*VALUE_WEIGHTS, None))
        if self.matching_coef > 0.0 and guidance != 0.0:
            raise ValueError(
                "matching_coef above 0 makes the potential follow Q itself and needs "
                f"policy_kwargs=dict(energy_kwargs=dict(guidance=0)), got guidance={guidance!r}"
            )
        members, can = members_of(refiner), ("differentiable", "unadjusted")
        if self.end_to_end_coef > 0.0 and not all(any(hasattr(one, name) for name in can) for one in members):
            raise ValueError(
                "end_to_end_coef above 0 needs a refiner that can be differentiated, 'mala', 'langevin' or 'svgd', "
                f"got {class_names(refiner)}"
            )
        return self._replace(**numbers)


def check_potential_training(
    training: PotentialTraining, transport_coef: float, divergence_coef: float, value_weight: str | None
) -> None:
    """
    Check that each changed setting of the potential's training has an effect.

    :param training: settings of the potential's training
    :param transport_coef: coefficient of the transport loss
    :param divergence_coef: coefficient of the contrastive divergence
    :param value_weight: weight of the transport loss, ``None`` for 1
    :raises ValueError: if a setting is not its default, and the loss that reads it has the coefficient 0
    """
    if transport_coef == 0.0 and value_weight not in (None, "exp"):
        raise ValueError(f"value_weight={value_weight!r} weighs the transport loss and needs transport_coef above 0, got 0.0")
    argument = "potential_training_kwargs"
    if divergence_coef == 0.0:
        refuse_changed_fields(argument, training, OF_NEGATIVES, "negatives, and divergence_coef above 0, got 0.0")
    if transport_coef == 0.0 or value_weight is None:
        needs = f"value weights, got transport_coef={transport_coef!r} and value_weight={value_weight!r}"
        refuse_changed_fields(argument, training, OF_VALUE_WEIGHTS, needs)
    if transport_coef == 0.0 and divergence_coef == 0.0:
        needs = "a loss with positives, transport_coef or divergence_coef above 0, got 0.0 and 0.0"
        refuse_changed_fields(argument, training, ("positives",), needs)
