"""
Optuna search spaces for the RL Zoo. They hold valid combinations only: the zoo prunes a trial whose arguments raise.

A name has one distribution in all trials of a study, so that names of ranges that depend on the refiner begin with its name.
rl_zoo3 is imported inside the functions, since this module may be imported while the zoo is half imported.
"""

from typing import Any

import optuna

from sb3_energy.energies import ENERGIES
from sb3_energy.energies.q_ensemble import AGGREGATES
from sb3_energy.keywords import choices_of
from sb3_energy.networks import BACKBONES
from sb3_energy.pgac.arguments import PotentialArguments
from sb3_energy.policies.arguments import PolicyArguments
from sb3_energy.refinement.estimators import valid_estimators
from sb3_energy.refinement.proposals import is_flow
from sb3_energy.refiners import REFINERS, Identity

ONE_TO_128, EIGHT_OR_MORE = (0, 7), (3, 7)
"""Particles, as powers of two, of refiners without a ``search_space``."""
RESIDUAL_BACKBONES = ("simba", "bro", "flash")  # of one width, which the zoo's "big" is not

Q: Any = PolicyArguments.energy
GUIDED: Any = PotentialArguments.energy
"""The default energies."""
GUIDANCES, TEMPERATURES, DIVERGENCE_COEFS = (0.1, 10.0), (0.01, 1.0), (0.01, 1.0)
JKO_STEPS, TRANSPORT_PARTS, JKO_PARTICLES_POW = (4, 16), (0.0, 0.9), (0, 7)
VALUE_WEIGHTS = (None, "relu", "exp")
POLICY_DELAYS = (1, 2, 4)

FLASH: dict[str, list[Any]] = dict(critic=["scalar", "categorical"], joint_batch=[True, False], actor_delay=[1, 2])
"""What is searched beside ``backbone="flash"``, whose critics are in units of the scale of returns."""

_POLICY = ("refiner", "backbone", "initial_particles", "box", "energy", "critic")
_ALGORITHM = ("refine_exploration", "refine_target", "joint_batch", "actor_delay")
_POTENTIAL_ENERGY = ("guidance", "temperature", "aggregate")
_POTENTIAL_POLICY = ("backbone", "refiner_steps", "initial_particles")
_POTENTIAL_ALGORITHM = ("refine_exploration", "refine_target", "divergence_coef", "value_weight", "policy_delay")
_POTENTIAL = ("energy", *_POTENTIAL_ENERGY, *_POTENTIAL_POLICY, *_POTENTIAL_ALGORITHM, "transport_part", "n_particles_pow")
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


def search_space(refiner: str) -> dict[str, Any]:
    """
    The search space of a refiner: ``steps`` and ``particles_pow`` (powers of two), pairs of integers, and arguments of the
    refiner by their names: a pair of numbers is a range, logarithmic if it holds a float, and a list holds the choices. It is
    the class attribute ``search_space``; without one, steps and particles are searched. A user's subclass of one of the
    package's refiners does not inherit it.

    :param refiner: a name in :data:`sb3_energy.refiners.REFINERS`
    :return: ranges and choices by name
    """
    cls: Any = REFINERS[refiner]
    for parent in cls.__mro__:
        if "search_space" in vars(parent) and (parent is cls or not _is_of_the_package(parent)):
            return dict(parent.search_space)
    if issubclass(cls, Identity):
        return {}
    max_steps = getattr(cls, "max_steps", None)
    space: dict[str, Any] = dict(particles_pow=EIGHT_OR_MORE if getattr(cls, "resamples", True) else ONE_TO_128)
    return space if max_steps == 1 else dict(steps=(1, min(10, max_steps or 10)), **space)


def own_energies(needs_potential: bool) -> list[str]:
    """
    List the energies that the user has registered.

    :param needs_potential: whether to return those that are made of a potential, or the others
    :return: names of the user's own energies
    """
    own = {name: cls for name, cls in ENERGIES.items() if not _is_of_the_package(cls)}
    return [name for name, cls in own.items() if getattr(cls, "needs_potential", False) == needs_potential]


def _is_of_the_package(cls: Any) -> bool:
    return getattr(cls, "__module__", "").startswith("sb3_energy.")


def _sample_refinement(trial: optuna.Trial) -> dict[str, Any]:
    refiner = trial.suggest_categorical("refiner", tuple(REFINERS))
    params: dict[str, Any] = {"refiner": refiner, "backbone": trial.suggest_categorical("backbone", sorted(BACKBONES))}
    if params["backbone"] == "flash":
        params |= {name: trial.suggest_categorical(name, choices) for name, choices in FLASH.items()}
    cls: Any = REFINERS[refiner]
    if issubclass(cls, Identity):
        return params
    for name, values in search_space(refiner).items():
        params[f"{refiner}_{name}"] = _suggest(trial, f"{refiner}_{name}", values)
    if not is_flow(cls):  # which starts at the Gaussian, pre-tanh
        for name in ("initial_particles", "box"):
            params[name] = trial.suggest_categorical(name, choices_of(PolicyArguments, name))
    if own := own_energies(needs_potential=False):
        params["energy"] = trial.suggest_categorical("energy", (Q, *own))
    if params.get("energy", Q) == Q:
        params["aggregate"] = trial.suggest_categorical("aggregate", AGGREGATES)
    params["refine_exploration"] = trial.suggest_categorical("refine_exploration", [True, False])
    params["refine_target"] = trial.suggest_categorical("refine_target", [True, False])
    if params["refine_target"]:  # otherwise an estimator is not used with a fixed ent_coef, and raises
        estimators = _estimators(refiner)
        if len(estimators) > 1:
            params[f"{refiner}_entropy"] = trial.suggest_categorical(f"{refiner}_entropy", estimators)
    return params


def _suggest(trial: optuna.Trial, name: str, values: Any) -> Any:
    if isinstance(values, list):
        return trial.suggest_categorical(name, values)
    if any(isinstance(value, float) for value in values):
        return trial.suggest_float(name, *values, log=True)
    return trial.suggest_int(name, *values)


def _estimators(refiner: str) -> tuple[str, ...]:
    # Those that are valid whatever the box and the number of particles
    return tuple(name for name in valid_estimators(REFINERS[refiner]) if name not in ("mixture", "path", "trace"))


def _is_refinement(key: str) -> bool:
    of_refiners = (f"{refiner}_{name}" for refiner in REFINERS for name in (*search_space(refiner), "entropy"))
    return key in (*_POLICY, *_ALGORITHM, "aggregate", *of_refiners)


def _add_refinement(hyperparams: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    refiner = params["refiner"]
    policy_kwargs = _of_one_width({**hyperparams["policy_kwargs"], **{key: params[key] for key in _POLICY if key in params}})
    searched = {name: params[f"{refiner}_{name}"] for name in search_space(refiner) if f"{refiner}_{name}" in params}
    if "steps" in searched:
        policy_kwargs["refiner_steps"] = searched.pop("steps")
    if "particles_pow" in searched:
        policy_kwargs["n_particles"] = 2 ** searched.pop("particles_pow")
    if searched:
        policy_kwargs["refiner_kwargs"] = searched
    if "critic" in params:  # heads of fixed length need it
        policy_kwargs["value_scale"] = "auto"
    if "aggregate" in params:
        policy_kwargs["energy_kwargs"] = {"aggregate": params["aggregate"]}
    algorithm = {key: params[key] for key in _ALGORITHM if key in params}
    if f"{refiner}_entropy" in params:
        algorithm["entropy_estimator"] = params[f"{refiner}_entropy"]
    return {**hyperparams, **algorithm, "policy_kwargs": policy_kwargs}


def _sample_potential(trial: optuna.Trial) -> dict[str, Any]:
    own = own_energies(needs_potential=True)
    energy: dict[str, Any] = {"energy": trial.suggest_categorical("energy", (GUIDED, *own))} if own else {}
    if energy.get("energy", GUIDED) == GUIDED:
        energy |= {
            "guidance": trial.suggest_float("guidance", *GUIDANCES, log=True),
            "temperature": trial.suggest_float("temperature", *TEMPERATURES, log=True),
            "aggregate": trial.suggest_categorical("aggregate", AGGREGATES),
        }
    return {
        **energy,
        "refiner_steps": trial.suggest_int("refiner_steps", *JKO_STEPS),
        "transport_part": trial.suggest_float("transport_part", *TRANSPORT_PARTS),
        "n_particles_pow": trial.suggest_int("n_particles_pow", *JKO_PARTICLES_POW),
        "initial_particles": trial.suggest_categorical(
            "initial_particles", choices_of(PotentialArguments, "initial_particles")
        ),
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
        "energy_kwargs": {key: params[key] for key in _POTENTIAL_ENERGY if key in params},
        "n_particles": 2 ** params["n_particles_pow"],
        "transport_time": params["transport_part"],  # of a sampling time of 1, in which a learned velocity has arrived
    }
    policy_kwargs |= {"energy": params["energy"]} if "energy" in params else {}
    policy_kwargs |= {"value_scale": "auto"} if params["backbone"] == "flash" else {}  # heads of fixed length need it
    return {**hyperparams, **{key: params[key] for key in _POTENTIAL_ALGORITHM}, "policy_kwargs": policy_kwargs}


def _of_one_width(policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    if policy_kwargs["backbone"] in RESIDUAL_BACKBONES:
        net_arch = policy_kwargs["net_arch"]
        return {**policy_kwargs, "net_arch": [max(net_arch)] * len(net_arch)}
    return policy_kwargs
