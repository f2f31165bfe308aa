"""What an energy of observations and actions learns by: the losses, what each of them needs, and their settings, checked."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from sb3_energy.checks import check_choice, check_integer, check_number, check_positive, check_unit_interval, plain_fields
from sb3_energy.keywords import refuse_changed_fields
from sb3_energy.offline.ibc import objectives
from sb3_energy.refinement.chosen_refiner import make_refiner
from sb3_energy.refiners import Identity
from sb3_energy.types import Refiner

NEGATIVES = ("uniform", "chain", "both", "proposal")
ARGUMENT = "energy_training_kwargs"


class Loss(NamedTuple):
    """
    A loss and what it needs.

    :param objective: ``Examples -> `` scalars by name, of which ``"loss"`` is descended
    :param negatives: kinds of counter-examples that it may have, the default first; none where it has no counter-examples
    :param settings: of :class:`EnergyTraining` that it reads, beside those of counter-examples
    :param needs_smooth: whether it learns by the derivative of the energy's own gradient
    """

    objective: Callable[["objectives.Examples"], objectives.Losses]
    negatives: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    needs_smooth: bool = False


LOSSES: dict[str, Loss] = {
    "info_nce": Loss(objectives.info_nce, ("uniform", "chain", "both")),
    "r_nce": Loss(objectives.r_nce, ("proposal",)),
    "nce": Loss(objectives.nce, ("uniform", "proposal")),
    "contrastive_divergence": Loss(objectives.contrastive_divergence, ("chain",), ("magnitude_coef",)),
    "denoising_score_matching": Loss(objectives.denoising_score_matching, (), ("noise_std",), True),
    "sliced_score_matching": Loss(objectives.sliced_score_matching, (), ("n_probes",), True),
    "ebt": Loss(objectives.ebt, (), ("n_descents",), True),
}
"""By the argument ``loss`` of :class:`~sb3_energy.offline.ibc.IBC`."""

REFUSED = {
    ("r_nce", "uniform"): "with uniform ones it is loss='info_nce'",
    ("r_nce", "chain"): "where a chain has moved them their density is not known",
    ("r_nce", "both"): "where a chain has moved some of them their density is not known",
    ("nce", "chain"): "where a chain has moved them their density is not known",
    ("nce", "both"): "where a chain has moved some of them their density is not known",
    ("info_nce", "proposal"): "its optimum would be off by the proposal's log-density; loss='r_nce' subtracts it",
    ("contrastive_divergence", "uniform"): "at other places than the model's own draws the loss has no bound",
    ("contrastive_divergence", "proposal"): "at other places than the model's own draws the loss has no bound",
    ("contrastive_divergence", "both"): "at other places than the model's own draws the loss has no bound",
}


@dataclass(frozen=True)
class EnergyTraining:
    """
    Settings of an energy's training: counter-examples, the gradient penalty, and numbers of single losses. Actions are scaled
    to [-1, 1].

    :param negatives: what counter-examples are: ``"uniform"`` in the box, ``"chain"``: ends of chains on the energy as it is,
        held fixed, ``"both"``, or ``"proposal"``: draws of a mixture density network that learns beside the energy, by
        likelihood (``None``: the loss's default)
    :param n_negatives: counter-examples for each observation
    :param uniform_fraction: part of the counter-examples that is uniform with ``"both"`` and ``"proposal"``
    :param box_margin: by which part of its size the box is wider in which counter-examples are drawn and chains move
    :param chain: how chains move: ``"annealed_gradient"``, as in implicit behavioral cloning, ``"langevin"``, or another
        refiner that moves each particle alone, a name in :data:`sb3_energy.refiners.REFINERS` or a class
    :param chain_kwargs: keyword arguments of it
    :param chain_steps: number of steps of a chain (``None``: the refiner's own default)
    :param gradient_margin: slope of a coordinate from which on it is penalised (``None``: no penalty)
    :param penalty_coef: coefficient of that penalty
    :param magnitude_coef: coefficient of the mean square of energies, with ``loss="contrastive_divergence"``, which has no
        bound without it
    :param noise_std: standard deviation of the noise of ``loss="denoising_score_matching"``
    :param n_probes: random directions for each example, of ``loss="sliced_score_matching"``
    :param n_descents: descents for each example, of ``loss="ebt"``
    :raises ValueError: if a number is out of range
    :raises TypeError: if an argument has the wrong type
    """

    negatives: str | None = None
    n_negatives: int = 256
    uniform_fraction: float = 0.5
    box_margin: float = 0.05
    chain: str | type[Refiner] = "annealed_gradient"
    chain_kwargs: dict[str, Any] | None = None
    chain_steps: int | None = None
    gradient_margin: float | None = None
    penalty_coef: float = 1.0
    magnitude_coef: float = 0.1
    noise_std: float = 0.1
    n_probes: int = 1
    n_descents: int = 4

    def __post_init__(self) -> None:
        plain_fields(self)
        check_choice("negatives", self.negatives, (*NEGATIVES, None))
        for name in ("n_negatives", "n_probes", "n_descents"):
            check_integer(name, getattr(self, name), minimum=1)
        check_unit_interval("uniform_fraction", self.uniform_fraction)
        check_number("box_margin", self.box_margin)
        for name in ("penalty_coef", "magnitude_coef", "noise_std"):
            check_number(name, getattr(self, name), strict=True)
        check_positive("gradient_margin", self.gradient_margin)

    @property
    def width(self) -> float:
        """Half of the size of the box in which counter-examples are."""
        return 1.0 + self.box_margin

    @property
    def n_uniform(self) -> int:
        """How many of them are uniform with ``"both"`` and ``"proposal"``."""
        return round(self.uniform_fraction * self.n_negatives)

    def kind_for(self, loss: str) -> str | None:
        """
        What counter-examples of a loss are.

        :param loss: a name in :data:`LOSSES`
        :return: a name in :data:`NEGATIVES`, or ``None`` where the loss has none
        :raises ValueError: if the loss cannot have what is asked for
        """
        accepted = LOSSES[loss].negatives
        if self.negatives is None:
            return accepted[0] if accepted else None
        if not accepted:
            raise ValueError(
                f"negatives must be None with loss={loss!r}, which has no counter-examples, got {self.negatives!r}"
            )
        if self.negatives not in accepted:
            raise ValueError(
                f"negatives must be one of {list(accepted)} with loss={loss!r}, got {self.negatives!r}: "
                f"{REFUSED[loss, self.negatives]}"
            )
        return self.negatives

    def make_chain(self) -> tuple[Refiner, int]:
        """
        Make what moves chains.

        :return: the refiner and its number of steps
        :raises ValueError: if it compares particles, needs a learned network, or moves nothing
        :raises TypeError: if it is no refiner, or an argument has the wrong type
        """
        refiner, n_steps = make_refiner(self.chain, self.chain_kwargs, self.chain_steps)
        if refiner.resamples or isinstance(refiner, Identity) or getattr(refiner, "head", None) is not None or n_steps == 0:
            raise ValueError(
                "chain must be a refiner that moves each particle alone along the energy, such as 'annealed_gradient' or "
                f"'langevin', by at least one step, got {self.chain!r} with {n_steps}"
            )
        return refiner, n_steps


def check_training(training: EnergyTraining, loss: str, learns_prefixes: bool = False) -> None:
    """
    Check that a loss's settings go together and each changed one has an effect.

    :param training: settings of the energy's training
    :param loss: a name in :data:`LOSSES`
    :param learns_prefixes: whether the energies of prefixes are learned, by uniform counter-examples
    :raises ValueError: if they do not, or one has not
    :raises TypeError: if ``chain`` is no refiner, or an argument of it has the wrong type
    """
    kind = training.kind_for(loss)
    read = {"negatives", *LOSSES[loss].settings}
    has_uniform = kind in ("uniform", "both") or (kind == "proposal" and training.uniform_fraction > 0.0) or learns_prefixes
    if kind is not None or learns_prefixes:
        read.add("n_negatives")
    if kind is not None:
        read.add("gradient_margin")
    if has_uniform or kind == "chain":
        read.add("box_margin")
    if kind in ("both", "proposal"):
        read.add("uniform_fraction")
    if kind in ("chain", "both"):
        read |= {"chain", "chain_kwargs", "chain_steps"}
        training.make_chain()
    if training.gradient_margin is not None:
        read.add("penalty_coef")
    unread = [field.name for field in fields(training) if field.name not in read]
    refuse_changed_fields(ARGUMENT, training, unread, _needs(loss, kind))
    if kind == "both" and not 0 < training.n_uniform < training.n_negatives:
        raise ValueError(
            "uniform_fraction must leave counter-examples of both kinds with negatives='both', "
            f"got {training.uniform_fraction!r} of {training.n_negatives}"
        )
    if kind == "proposal" and training.n_uniform == training.n_negatives:
        raise ValueError(
            "uniform_fraction must leave counter-examples that are drawn from the proposal with negatives='proposal', "
            f"got {training.uniform_fraction!r} of {training.n_negatives}"
        )


def _needs(loss: str, kind: str | None) -> str:
    has = "without counter-examples" if kind is None else f"with negatives={kind!r}"
    return f"a training that reads it, got loss={loss!r} {has}"
