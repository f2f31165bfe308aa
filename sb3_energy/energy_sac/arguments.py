"""Arguments of EnergySAC that must fit its policy: each raises with one sentence where nothing would read it."""

import math
from dataclasses import fields
from typing import Any

from torch import nn

from sb3_energy.entropy import BaseEntropy, SoftValueEntropy
from sb3_energy.keywords import is_same, refuse_changed_fields
from sb3_energy.networks import batch_norms
from sb3_energy.policies.heads import UNREAD_TRAINING, HeadTraining
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refiners.sequence import class_names
from sb3_energy.training.arguments import SCALED
from sb3_energy.types import EntropyEstimator


def refuse_policys_own_sde(policy_kwargs: Any, use_sde: Any) -> None:
    """
    Raise if ``use_sde`` in the policy's arguments contradicts the algorithm's.

    :param policy_kwargs: the argument
    :param use_sde: the algorithm's argument, which SB3 writes into them
    :raises ValueError: if they have another value
    """
    if isinstance(policy_kwargs, dict) and not is_same(policy_kwargs.get("use_sde", use_sde), use_sde):
        raise ValueError(
            f"use_sde must be given to the algorithm, which tells its policy, got policy_kwargs=dict(use_sde="
            f"{policy_kwargs['use_sde']!r}) with use_sde={use_sde!r}"
        )


def check_refined_updates(refinement: Refinement, refine_target: bool) -> None:
    """
    Check that ``refine_target`` fits the refiner.

    :param refinement: the policy's
    :param refine_target: whether the next actions in the critic's target are refined
    :raises ValueError: if ``refine_target`` is true and nothing refines, or the refiner takes no step
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
    Check that a chosen entropy estimator is used by the updates.

    :param estimator: of the entropy
    :param name: the argument ``entropy_estimator``
    :param kwargs: the argument ``entropy_estimator_kwargs``
    :param is_asked: whether the temperature or the critic's target needs an entropy
    :raises ValueError: if neither does, and an estimator other than SAC's own is given
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
    Check that ``update_particles`` has an effect.

    :param update_particles: most proposals that a chain starts from in updates
    :param default: its default
    :param chooses: whether anything in an update starts chains
    :raises ValueError: if nothing does, and the number is not the default
    """
    if update_particles != default and not chooses:
        raise ValueError(
            f"update_particles={update_particles} needs updates that refine: refine_target=True, distillation_coef above 0 "
            "or an entropy_estimator that runs chains, and a refiner that is no flow, which starts each at one draw"
        )


def check_joint_batch(actor: nn.Module, critic: nn.Module, backbone: str) -> None:
    """
    Check that there is something for a joint batch to change.

    :param actor: the Gaussian actor
    :param critic: the critics
    :param backbone: of both, for the message
    :raises ValueError: if no layer depends on the other rows of a batch
    """
    if not batch_norms(actor, critic):
        raise ValueError(
            f"joint_batch=True needs layers of batch normalisation, such as backbone='flash' has, got backbone={backbone!r}"
        )


def target_entropy_of(target_entropy: Any, n_actions: int) -> Any:
    """
    Convert a standard deviation to the target entropy that it stands for.

    :param target_entropy: the argument; ``"auto_0.15"`` is the entropy ``½ A log(2πe · 0.15²)`` of a Gaussian of that standard
        deviation in each of ``A`` coordinates, in the box from -1 to 1 (FlashSAC, arXiv 2604.04539)
    :param n_actions: ``A``
    :return: a number for this, or the argument, which SB3 takes
    """
    if not (isinstance(target_entropy, str) and target_entropy.startswith("auto_")):
        return target_entropy
    std = float(target_entropy.partition("_")[2])
    return 0.5 * n_actions * math.log(2.0 * math.pi * math.e * std**2)


def check_scaled_ent_coef(ent_coef: Any, value_scale: str) -> None:
    """
    Check that there is a scale whose units a coefficient begins in.

    :param ent_coef: the argument
    :param value_scale: ``"auto"`` or ``"none"``
    :raises ValueError: if there is none
    """
    if value_scale == "none" and str(ent_coef).endswith(SCALED):
        raise ValueError(f"ent_coef={ent_coef!r} is in units of a scale and needs value_scale='auto', got 'none'")


def check_rows(batch_size: int, normalizes: bool) -> None:
    """
    Check that a batch has a variance, where its rows are normalised.

    :param batch_size: transitions of an update
    :param normalizes: whether a backbone normalises batches
    :raises ValueError: if it does and there is one row
    """
    if normalizes and batch_size < 2:
        raise ValueError(f"batch_size must be at least 2 with batch normalisation, got {batch_size!r}")


def runs_chains(estimator: EntropyEstimator) -> bool:
    """
    Check whether an entropy estimator runs Markov chains.

    :param estimator: of the entropy
    :return: whether it may start chains; one of the user's own may
    """
    return not isinstance(estimator, (BaseEntropy, SoftValueEntropy))


def check_head_training(training: HeadTraining, refiner: Any, learns: bool) -> None:
    """
    Check that each changed setting of the head's training has an effect.

    :param training: settings of the head's training
    :param refiner: that needs the head, by its name in :data:`sb3_energy.policies.heads.HEADS`
    :param learns: whether the head has parameters
    :raises ValueError: if a setting has no effect and is not its default
    """
    argument = "head_training_kwargs"
    needs = f"refiner='flow' or 'mean_flow', got {class_names(refiner)}"
    refuse_changed_fields(argument, training, UNREAD_TRAINING.get(refiner.head, ()), needs)
    if training.n_refined == 0:
        needs = (
            f"refined candidates, got refined_fraction={training.refined_fraction!r} of n_candidates={training.n_candidates}"
        )
        refuse_changed_fields(argument, training, ("step_size",), needs)
    if not learns:
        names = [field.name for field in fields(training)]
        refuse_changed_fields(argument, training, names, "an action of more than one coordinate, got one, which has no prefix")
