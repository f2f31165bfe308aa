"""
Optuna search spaces for the RL Zoo. They hold valid combinations only: the zoo prunes a trial whose arguments are refused.

rl_zoo3 is imported inside the functions: the module may be asked for while the zoo is half imported.
"""

from typing import Any

import optuna

from sb3_energy import refiners
from sb3_energy.common.potential_policy import NORMAL
from sb3_energy.networks import BACKBONES

# A name has one distribution in all trials of a study, so that ranges that depend on the refiner carry its name.
REFINERS = (
    *("none", "langevin", "mala", "hmc", "svgd", "mppi", "derivative_free"),
    *("autoregressive_derivative_free", "flow", "mean_flow", "snis"),
)
STEPS = {
    **{"langevin": (1, 10), "mala": (1, 10), "hmc": (1, 3), "svgd": (1, 10), "mppi": (1, 6), "derivative_free": (1, 4)},
    **{"autoregressive_derivative_free": (1, 3), "flow": (1, 8), "mean_flow": (1, 2)},
}
STEP_SIZES = {"langevin": (1e-3, 0.5), "mala": (1e-2, 1.0), "hmc": (0.03, 1.0), "svgd": (1e-2, 1.0)}
NOISE_STDS = dict.fromkeys(("derivative_free", "autoregressive_derivative_free"), (0.03, 1.0))
PARTICLES_POW = {
    **dict.fromkeys(("langevin", "mala", "hmc"), (0, 7)),
    **dict.fromkeys(("mppi", "derivative_free", "autoregressive_derivative_free"), (4, 7)),
    **{"svgd": (2, 5), "snis": (3, 7), "flow": (0, 4), "mean_flow": (0, 4)},
}
LENGTHS = {"step_size": STEP_SIZES, "noise_std": NOISE_STDS}
AGGREGATES = ("mean", "min", "lcb")
RESIDUAL_BACKBONES = ("simba", "bro")  # of one width, which the zoo's "big" is not
INITIAL_PARTICLES = ("base", "uniform", "mixture")
BOXES = ("tanh", "reflect")
FLOWS = ("flow", "mean_flow")  # they start at the Gaussian, before the squash

GUIDANCES, TEMPERATURES, DIVERGENCE_COEFS = (0.1, 10.0), (0.01, 1.0), (0.01, 1.0)
JKO_STEPS, TRANSPORT_PARTS, JKO_PARTICLES_POW = (4, 16), (0.0, 0.9), (0, 7)
VALUE_WEIGHTS = (None, "relu", "exp")
POLICY_DELAYS = (1, 2, 4)

_POLICY = ("refiner", "backbone", "initial_particles", "box")
_ALGORITHM = ("refine_exploration", "refine_target")
_POTENTIAL_ENERGY = ("guidance", "temperature", "aggregate")
_POTENTIAL_POLICY = ("backbone", "refiner_steps", "initial_particles")
_POTENTIAL_ALGORITHM = (*_ALGORITHM, "divergence_coef", "value_weight", "policy_delay")
_POTENTIAL = (*_POTENTIAL_ENERGY, *_POTENTIAL_POLICY, *_POTENTIAL_ALGORITHM, "transport_part", "n_particles_pow")
_HER = ("n_sampled_goal", "goal_selection_strategy")


def sample_energy_sac_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    SAC's search space of the zoo, and the refinement's.

    :param trial: the trial
    :param n_actions: size of the action space
    :param n_envs: number of environments
    :param additional_args: whether hindsight replay is used, and with which arguments
    :return: arguments of EnergySAC
    """
    from rl_zoo3.hyperparams_opt import sample_sac_params

    hyperparams = sample_sac_params(trial, n_actions, n_envs, additional_args)
    return _add_refinement(hyperparams, _sample_refinement(trial))


def convert_energy_sac_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Arguments from the parameters of a finished trial, for ``--trial-id``.

    :param sampled_params: what Optuna has stored
    :return: arguments of EnergySAC
    """
    refinement = {key: value for key, value in sampled_params.items() if _is_refinement(key)}
    return _add_refinement(_converted_without(refinement, sampled_params), refinement)


def sample_pgac_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    SAC's search space of the zoo, the potential's and its sampler's.

    :param trial: the trial
    :param n_actions: size of the action space
    :param n_envs: number of environments
    :param additional_args: whether hindsight replay is used, and with which arguments
    :return: arguments of PGAC
    """
    from rl_zoo3.hyperparams_opt import sample_sac_params

    hyperparams = sample_sac_params(trial, n_actions, n_envs, additional_args)
    return _add_potential(hyperparams, _sample_potential(trial))


def convert_pgac_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Arguments from the parameters of a finished trial, for ``--trial-id``.

    :param sampled_params: what Optuna has stored
    :return: arguments of PGAC
    """
    potential = {key: value for key, value in sampled_params.items() if key in _POTENTIAL}
    return _add_potential(_converted_without(potential, sampled_params), potential)


def _converted_without(ours: dict[str, Any], sampled_params: dict[str, Any]) -> dict[str, Any]:
    """The zoo's own conversion of those parameters that are its own."""
    from rl_zoo3.hyperparams_opt import convert_offpolicy_params

    rest = {key: value for key, value in sampled_params.items() if key not in ours}
    her_kwargs = {key: rest.pop(key) for key in _HER if key in rest}
    if her_kwargs:
        rest["replay_buffer_kwargs"] = her_kwargs
    return convert_offpolicy_params(rest)


def _sample_refinement(trial: optuna.Trial) -> dict[str, Any]:
    refiner = trial.suggest_categorical("refiner", REFINERS)
    params: dict[str, Any] = {"refiner": refiner, "backbone": trial.suggest_categorical("backbone", sorted(BACKBONES))}
    if refiner == "none":
        return params
    for name, ranges in (("steps", STEPS), ("particles_pow", PARTICLES_POW)):
        if refiner in ranges:  # snis has one step
            params[f"{refiner}_{name}"] = trial.suggest_int(f"{refiner}_{name}", *ranges[refiner])
    for name, lengths in LENGTHS.items():
        if refiner in lengths:
            params[f"{refiner}_{name}"] = trial.suggest_float(f"{refiner}_{name}", *lengths[refiner], log=True)
    if refiner not in FLOWS:
        params["initial_particles"] = trial.suggest_categorical("initial_particles", INITIAL_PARTICLES)
        params["box"] = trial.suggest_categorical("box", BOXES)
    params["aggregate"] = trial.suggest_categorical("aggregate", AGGREGATES)
    params["refine_exploration"] = trial.suggest_categorical("refine_exploration", [True, False])
    params["refine_target"] = trial.suggest_categorical("refine_target", [True, False])
    if params["refine_target"]:  # the soft value of a target that is not refined is refused with a fixed ent_coef
        estimators = _estimators(refiner)
        if len(estimators) > 1:
            params[f"{refiner}_entropy"] = trial.suggest_categorical(f"{refiner}_entropy", estimators)
    return params


def _estimators(refiner: str) -> tuple[str, ...]:
    # Those whose validity hangs on the refiner alone, and not on the box or the number of particles too
    return tuple(name for name in refiners.REFINERS[refiner].estimators if name not in ("mixture", "path", "trace"))


def _is_refinement(key: str) -> bool:
    return key in (*_POLICY, *_ALGORITHM, "aggregate") or key.startswith(tuple(f"{refiner}_" for refiner in REFINERS))


def _add_refinement(hyperparams: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    refiner = params["refiner"]
    policy_kwargs = _of_one_width({**hyperparams["policy_kwargs"], **{key: params[key] for key in _POLICY if key in params}})
    if f"{refiner}_steps" in params:
        policy_kwargs["refiner_steps"] = params[f"{refiner}_steps"]
    if f"{refiner}_particles_pow" in params:
        policy_kwargs["n_particles"] = 2 ** params[f"{refiner}_particles_pow"]
    refiner_kwargs = {name: params[f"{refiner}_{name}"] for name in LENGTHS if f"{refiner}_{name}" in params}
    if refiner_kwargs:
        policy_kwargs["refiner_kwargs"] = refiner_kwargs
    if "aggregate" in params:
        policy_kwargs["energy_kwargs"] = {"aggregate": params["aggregate"]}
    algorithm = {key: params[key] for key in _ALGORITHM if key in params}
    if f"{refiner}_entropy" in params:
        algorithm["entropy_estimator"] = params[f"{refiner}_entropy"]
    return {**hyperparams, **algorithm, "policy_kwargs": policy_kwargs}


def _sample_potential(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "guidance": trial.suggest_float("guidance", *GUIDANCES, log=True),
        "temperature": trial.suggest_float("temperature", *TEMPERATURES, log=True),
        "refiner_steps": trial.suggest_int("refiner_steps", *JKO_STEPS),
        "transport_part": trial.suggest_float("transport_part", *TRANSPORT_PARTS),
        "n_particles_pow": trial.suggest_int("n_particles_pow", *JKO_PARTICLES_POW),
        "initial_particles": trial.suggest_categorical("initial_particles", (*INITIAL_PARTICLES, NORMAL)),
        "aggregate": trial.suggest_categorical("aggregate", AGGREGATES),
        "backbone": trial.suggest_categorical("backbone", sorted(BACKBONES)),
        "divergence_coef": trial.suggest_float("divergence_coef", *DIVERGENCE_COEFS, log=True),
        "value_weight": trial.suggest_categorical("value_weight", VALUE_WEIGHTS),
        "policy_delay": trial.suggest_categorical("policy_delay", POLICY_DELAYS),
        "refine_exploration": trial.suggest_categorical("refine_exploration", [True, False]),
        "refine_target": trial.suggest_categorical("refine_target", [True, False]),
    }


def _add_potential(hyperparams: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    policy_kwargs = _of_one_width({**hyperparams["policy_kwargs"], **{key: params[key] for key in _POTENTIAL_POLICY}})
    policy_kwargs |= {
        "energy_kwargs": {key: params[key] for key in _POTENTIAL_ENERGY},
        "n_particles": 2 ** params["n_particles_pow"],
        "transport_time": params["transport_part"],  # of a sampling time of 1, in which a learned velocity has arrived
    }
    return {**hyperparams, **{key: params[key] for key in _POTENTIAL_ALGORITHM}, "policy_kwargs": policy_kwargs}


def _of_one_width(policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    if policy_kwargs["backbone"] in RESIDUAL_BACKBONES:
        net_arch = policy_kwargs["net_arch"]
        return {**policy_kwargs, "net_arch": [max(net_arch)] * len(net_arch)}
    return policy_kwargs
