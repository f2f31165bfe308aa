"""Arguments that nothing would read beside the others, refused one sentence each: nobody is to believe in them."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from sb3_energy.checks import plain
from sb3_energy.energies import QEnergy
from sb3_energy.entropy import BaseEntropy, SoftValueEntropy
from sb3_energy.policies.heads import UNREAD_TRAINING, HeadTraining
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.types import Energy, EntropyEstimator

GSDE_OF_THE_ALGORITHM = dict(sde_sample_freq=-1, use_sde_at_warmup=False)
GSDE_OF_THE_POLICY = dict(log_std_init=-3, use_expln=False, clip_mean=2.0)
"""SAC's arguments of gSDE and their defaults."""

NO_GSDE = "use_sde=True, which PGAC does not take; EnergySAC with refiner='none' does"

OF_NEGATIVES = ("n_negatives", "negative_steps", "negative_step", "max_energy")
OF_VALUE_WEIGHTS = ("expectile", "largest_weight")


def changed_fields(settings: Any, names: Iterable[str]) -> list[str]:
    """
    :param settings: a dataclass with a default for each field
    :param names: of fields
    :return: those of them whose values are not their defaults
    """
    defaults = {field.name: field.default for field in fields(settings)}
    return [name for name in names if getattr(settings, name) != defaults[name]]


def is_same(value: Any, other: Any) -> bool:
    """
    :param value: anything, an array among it
    :param other: a number, or a bool
    :return: whether the first is the second
    """
    number = plain(value)
    return isinstance(number, (bool, int, float)) and number == other


def refuse_changed_fields(argument: str, settings: Any, names: Iterable[str], needs: str) -> None:
    """
    :param argument: which gave the settings
    :param settings: a dataclass with a default for each field
    :param names: of fields that nothing would read
    :param needs: what they need, and what there is in place of it
    :raises ValueError: if one of them is not its default
    """
    for name in changed_fields(settings, names):
        raise ValueError(f"{argument}=dict({name}={getattr(settings, name)!r}) needs {needs}")


def refuse_changed(given: Mapping[str, Any], defaults: Mapping[str, Any], needs: str) -> None:
    """
    :param given: arguments that nothing would read
    :param defaults: theirs
    :param needs: what they need, and what there is in place of it
    :raises ValueError: if one of them is given and is not its default
    """
    for name, default in defaults.items():
        if name in given and not is_same(given[name], default):
            raise ValueError(f"{name}={given[name]!r} needs {needs}")


def refuse_policys_own_sde(policy_kwargs: Any, use_sde: Any) -> None:
    """
    :param policy_kwargs: as they were given
    :param use_sde: the algorithm's, which SB3 writes into them
    :raises ValueError: if they are to be overwritten by another value
    """
    if isinstance(policy_kwargs, dict) and not is_same(policy_kwargs.get("use_sde", use_sde), use_sde):
        raise ValueError(
            f"use_sde must be given to the algorithm, which tells its policy, got policy_kwargs=dict(use_sde="
            f"{policy_kwargs['use_sde']!r}) with use_sde={use_sde!r}"
        )


def check_energy_is_asked(refiner: Any, refinement: Refinement, energy: Energy) -> None:
    """
    :param refiner: as it was given
    :param refinement: what was made of it
    :param energy: of the policy
    :raises ValueError: if nothing refines, and another energy than the default is given
    """
    if refinement.is_identity and energy != QEnergy():
        raise ValueError(f"energy and energy_kwargs need a refiner that follows them, got {energy!r} with refiner={refiner!r}")


def check_refined_updates(refinement: Refinement, refine_target: bool) -> None:
    """
    :param refinement: the policy's
    :param refine_target: whether the critic's targets are to be refined
    :raises ValueError: if nothing refines, and what asks for it is given
    """
    if refinement.is_identity:
        if refine_target:
            raise ValueError("refine_target=True needs a refiner, and refiner='none' leaves next actions as they are")
    elif refinement.n_steps == 0:
        raise ValueError(
            f"refiner_steps must be at least 1 with {type(refinement.refiner).__name__}, which no step would ask, got 0; "
            "refiner='none' refines nothing, and 'snis' chooses without moving"
        )


def check_estimator_is_asked(estimator: EntropyEstimator, name: Any, kwargs: Any, is_asked: bool) -> None:
    """
    :param estimator: of the entropy
    :param name: as it was given
    :param kwargs: as they were given
    :param is_asked: whether the temperature or the critic's target asks for an entropy
    :raises ValueError: if nothing does, and an estimator that does more than SAC's is given
    """
    if is_asked or isinstance(estimator, BaseEntropy):
        return
    for argument, value in (("entropy_estimator", name), ("entropy_estimator_kwargs", kwargs or None)):
        if value is not None:
            raise ValueError(
                f"{argument}={value!r} would not be asked: with a fixed ent_coef it needs refine_target=True and a refiner"
            )


def check_update_particles(update_particles: int, default: int, chooses: bool) -> None:
    """
    :param update_particles: the most proposals of a chain in updates
    :param default: if nobody says how many
    :param chooses: whether anything in an update starts chains
    :raises ValueError: if nothing does, and the number is given
    """
    if update_particles != default and not chooses:
        raise ValueError(
            f"update_particles={update_particles} needs updates that refine: refine_target=True, distillation_coef above 0 "
            "or an entropy_estimator that runs chains, and a refiner that is no flow, which starts each at one draw"
        )


def runs_chains(estimator: EntropyEstimator) -> bool:
    """
    :param estimator: of the entropy
    :return: whether it may start chains, as one of the user's own may
    """
    return not isinstance(estimator, (BaseEntropy, SoftValueEntropy))


def check_head_training(training: HeadTraining, refiner: Any, learns: bool) -> None:
    """
    :param training: how a head learns
    :param refiner: which needs it, by its name in :data:`sb3_energy.policies.heads.HEADS`
    :param learns: whether it has parameters
    :raises ValueError: if something that it does not read is given
    """
    argument = "head_training_kwargs"
    needs = f"refiner='flow' or 'mean_flow', got {type(refiner).__name__}"
    refuse_changed_fields(argument, training, UNREAD_TRAINING.get(refiner.head, ()), needs)
    if training.n_refined == 0:
        needs = (
            f"refined candidates, got refined_fraction={training.refined_fraction!r} of n_candidates={training.n_candidates}"
        )
        refuse_changed_fields(argument, training, ("step_size",), needs)
    if not learns:
        names = [field.name for field in fields(training)]
        refuse_changed_fields(argument, training, names, "an action of more than one coordinate, got one, which has no prefix")


def check_potential_training(training: Any, transport_coef: float, divergence_coef: float, value_weight: str | None) -> None:
    """
    :param training: how a potential learns
    :param transport_coef: of the transport loss
    :param divergence_coef: of the contrastive divergence
    :param value_weight: of the transport loss, ``None`` for 1
    :raises ValueError: if a loss is switched off and something that it alone reads is given
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
