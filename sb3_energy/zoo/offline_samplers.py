"""Optuna search spaces of algorithms that learn from data. Each holds valid combinations only."""

from typing import Any

import optuna

NET_ARCHS = {"small": [64, 64], "medium": [256, 256], "big": [256, 256, 256]}
LOSSES = ("info_nce", "r_nce")
"""Whose energies can be searched from anywhere."""
SEARCHES: dict[str, dict[str, Any]] = {
    "derivative_free": dict(refiner="derivative_free"),
    "then_descent": dict(
        refiner=["derivative_free", "langevin"], refiner_steps=[None, 10], refiner_kwargs=[None, dict(step_size=0.01)]
    ),
}


def sample_ibc_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Search space of IBC.

    :param trial: the trial
    :param n_actions: size of the action space
    :param n_envs: number of environments
    :param additional_args: of the zoo, not used
    :return: arguments of IBC, without the data
    """
    return convert_ibc_params(
        dict(
            learning_rate=trial.suggest_float("learning_rate", 1e-4, 5e-3, log=True),
            batch_size_pow=trial.suggest_int("batch_size_pow", 5, 9),
            n_negatives_pow=trial.suggest_int("n_negatives_pow", 4, 8),
            net_arch=trial.suggest_categorical("net_arch", sorted(NET_ARCHS)),
            loss=trial.suggest_categorical("loss", LOSSES),
            gradient_margin=trial.suggest_categorical("gradient_margin", [None, 1.0, 3.0, 10.0]),
            search=trial.suggest_categorical("search", sorted(SEARCHES)),
        )
    )


def convert_ibc_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Arguments from the parameters of a finished trial, for ``--trial-id``.

    :param sampled_params: what Optuna has stored
    :return: arguments of IBC, without the data
    """
    p = sampled_params
    return dict(
        learning_rate=p["learning_rate"],
        batch_size=2 ** p["batch_size_pow"],
        loss=p["loss"],
        energy_training_kwargs=dict(n_negatives=2 ** p["n_negatives_pow"], gradient_margin=p["gradient_margin"]),
        policy_kwargs=dict(net_arch=NET_ARCHS[p["net_arch"]], **SEARCHES[p["search"]]),
    )
