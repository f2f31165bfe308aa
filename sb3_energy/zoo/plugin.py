"""
Registration of the algorithms in the RL Zoo. The start-up hook calls :func:`patch` for each module of ``rl_zoo3`` after its
body has run; nothing here imports the zoo or Optuna.
"""

import inspect
import pkgutil
import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import _sb3_energy_autoload
from sb3_energy.zoo import checkpoints, hub
from sb3_energy.zoo.paths import hyperparams_dir


class Algorithm(NamedTuple):
    """
    Import paths of the parts of one algorithm, resolved only when the zoo is imported.

    :param algorithm: the class
    :param sampler: the Optuna sampler ``(trial, n_actions, n_envs, additional_args) -> hyperparameters``
    :param converter: ``parameters of a trial -> hyperparameters``, for ``--trial-id``
    """

    algorithm: str
    sampler: str
    converter: str


ALGORITHMS = {
    "energy_sac": Algorithm(
        "sb3_energy:EnergySAC",
        "sb3_energy.zoo.samplers:sample_energy_sac_params",
        "sb3_energy.zoo.samplers:convert_energy_sac_params",
    ),
    "pgac": Algorithm(
        "sb3_energy:PGAC",
        "sb3_energy.zoo.samplers:sample_pgac_params",
        "sb3_energy.zoo.samplers:convert_pgac_params",
    ),
}
"""Every off-policy algorithm of the package, by its name on the zoo's command line; one more is one entry and one YAML."""

OFFLINE_ALGORITHMS = {
    "ibc": Algorithm(
        "sb3_energy:IBC",
        "sb3_energy.zoo.offline_samplers:sample_ibc_params",
        "sb3_energy.zoo.offline_samplers:convert_ibc_params",
    ),
}
"""Those that learn from data and have no replay buffer. Where the data are is their argument ``dataset``."""

PREDICTION_SCRIPTS = ("rl_zoo3.enjoy", "rl_zoo3.record_video", "rl_zoo3.push_to_hub")


def register() -> None:
    """
    Register in the zoo, whatever the value of ``SB3_ENERGY_AUTOLOAD``: in the modules that are imported, and in the others
    as soon as they are.
    """
    _sb3_energy_autoload.install(force=True)


def patch(module: ModuleType) -> None:
    """
    Register in one module of the zoo. Doing so again changes nothing.

    :param module: a module of ``rl_zoo3`` whose body has run
    """
    _PATCHES[module.__name__](module)


def _patch_utils(module: ModuleType) -> None:
    import sb3_energy

    # StoreDict evaluates `-params key:value` with the names of this module
    module.__dict__.setdefault("sb3_energy", sb3_energy)
    script = _running_script()
    hub.mend(script)
    wrap = _for_prediction if script in PREDICTION_SCRIPTS else _unchanged
    for name, parts in ALGORITHMS.items():
        module.ALGOS.setdefault(name, wrap(pkgutil.resolve_name(parts.algorithm)))
    for name, parts in OFFLINE_ALGORITHMS.items():
        module.ALGOS.setdefault(name, pkgutil.resolve_name(parts.algorithm))


def _running_script() -> str | None:
    """
    The script of the zoo that this process is, as ``rl_zoo3.enjoy``. ``python -m`` imports the package of a script, and so
    this module, before it says in ``__main__.__spec__`` which script it is; until then ``sys.argv[0]`` is ``-m``.
    """
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None and sys.argv[:1] == ["-m"]:
        words = (word.removeprefix("-m") for word in sys.orig_argv)
        return next((word for word in words if word.startswith("rl_zoo3.")), None)
    # the explicit route leaves the name in argv[0] until the script has begun
    return sys.argv[0] if sys.argv and sys.argv[0].startswith("rl_zoo3.") else getattr(spec, "name", None)


def _unchanged(cls: type) -> type:
    return cls


def _for_prediction(cls: Any) -> type:
    """
    The class as scripts that only predict should see it. They keep lists of the off-policy algorithms of the zoo that
    are loaded with a replay buffer of one row; others get one of full size (26 GiB for a million images).
    """

    class Loader(cls):
        @classmethod
        def load(_: type, *args: Any, **kwargs: Any) -> Any:
            return cls.load(*args, **{"buffer_size": 1, **kwargs})

    Loader.__name__ = cls.__name__
    Loader.__qualname__ = cls.__qualname__
    return Loader


def _patch_hyperparams_opt(module: ModuleType) -> None:
    for name, parts in _all().items():
        module.HYPERPARAMS_SAMPLER.setdefault(name, pkgutil.resolve_name(parts.sampler))
        module.HYPERPARAMS_CONVERTER.setdefault(name, pkgutil.resolve_name(parts.converter))


def _patch_callbacks(module: ModuleType) -> None:
    _replace(module.ParallelTrainCallback, "_init_callback", _refuse_parallel_training)
    _replace(module.SaveVecNormalizeCallback, "_on_step", _save_whole_statistics)


def _is_ours(model: Any) -> bool:
    return isinstance(model, tuple(pkgutil.resolve_name(parts.algorithm) for parts in _all().values()))


def _all() -> dict[str, Algorithm]:
    return ALGORITHMS | OFFLINE_ALGORITHMS


def _save_whole_statistics(original: Callable[[], bool], callback: Any) -> bool:
    return checkpoints.save_with_statistics(original, callback) if _is_ours(callback.model) else original()


def _refuse_parallel_training(original: Callable[[], None], callback: Any) -> None:
    """It accepts every subclass of SAC, and trains and saves a plain SAC in its place."""
    if _is_ours(callback.model):
        # no ValueError: a hyperparameter search would take it for a trial that diverged
        raise TypeError(
            f"ParallelTrainCallback would train a plain SAC instead of {type(callback.model).__name__}: "
            "remove it from the callbacks, or use --algo sac"
        )
    original()


def _patch_exp_manager(module: ModuleType) -> None:
    import sb3_energy

    # YAML strings such as policy_kwargs are evaluated with the names of this module
    module.__dict__.setdefault("sb3_energy", sb3_energy)
    manager = module.ExperimentManager
    _replace(manager, "__init__", _use_shipped_hyperparameters)
    _replace(manager, "_preprocess_schedules", _for_ours(_take_cosine, offline=_take_cosine))
    _replace(manager, "create_callbacks", _for_ours(checkpoints.create_callbacks))
    _replace(manager, "_maybe_normalize", _for_ours(checkpoints.maybe_normalize))
    _replace(manager, "_load_pretrained_agent", _for_ours(checkpoints.load_pretrained_agent))
    _replace(manager, "learn", _for_ours(checkpoints.learn, offline=checkpoints.learn_on_data))
    save = checkpoints.save_with_statistics
    _replace(manager, "save_trained_model", _for_ours(save, offline=save))
    _replace(manager, "objective", _for_ours(_prune_diverged, offline=_prune_diverged))


def _use_shipped_hyperparameters(original: Callable[..., None], manager: Any, *args: Any, **kwargs: Any) -> None:
    """Use the user's ``--conf-file``, else a file of the zoo, else the file of this package."""
    original(*args, **kwargs)
    given = inspect.signature(original).bind(*args, **kwargs).arguments.get("config")
    if manager.algo in _all() and not given and not Path(manager.config).is_file():
        manager.config = str(hyperparams_dir() / f"{manager.algo}.yml")


def _take_cosine(original: Any, manager: Any, hyperparams: dict[str, Any]) -> dict[str, Any]:
    """Make a schedule of ``learning_rate: cos_3e-4_1.5e-4``, beside the zoo's own ``lin_3e-4``."""
    from sb3_energy.schedules import Cosine

    rate = hyperparams.get("learning_rate")
    if isinstance(rate, str) and rate.startswith("cos_"):
        try:
            _, initial, final = rate.split("_")
            hyperparams["learning_rate"] = Cosine(float(initial), float(final))
        except ValueError as error:
            raise ValueError(f"learning_rate must be a number, 'lin_3e-4' or 'cos_3e-4_1.5e-4', got {rate!r}") from error
        others = {name: value for name, value in hyperparams.items() if name != "learning_rate"}
        return hyperparams | original.func(others)
    return original.func(hyperparams)  # the zoo's is a static method


def _prune_diverged(original: Callable[[Any], float], manager: Any, trial: Any) -> float:
    """Prune a trial whose loss is not finite, in place of ending the search."""
    from optuna.exceptions import TrialPruned

    try:
        return original(trial)
    except FloatingPointError as error:
        print(f"Trial {trial.number} diverged: {error}")
        raise TrialPruned(str(error)) from error


def _for_ours(handler: Callable[..., Any], offline: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Leave experiments with other algorithms alone; those with offline ones, too, unless there is a handler for them."""

    def choose(original: Callable[..., Any], manager: Any, *args: Any, **kwargs: Any) -> Any:
        if manager.algo in ALGORITHMS:
            return handler(original, manager, *args, **kwargs)
        if offline is not None and manager.algo in OFFLINE_ALGORITHMS:
            return offline(original, manager, *args, **kwargs)
        return original(*args, **kwargs)

    return choose


def _replace(owner: type, name: str, handler: Callable[..., Any]) -> None:
    """Make ``owner.name(self, ...)`` call ``handler(bound original, self, ...)``, once."""
    original = getattr(owner, name)
    if hasattr(original, "__sb3_energy__"):
        return

    @wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return handler(partial(original, self), self, *args, **kwargs)

    method.__sb3_energy__ = True  # type: ignore[attr-defined]
    setattr(owner, name, method)


_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "rl_zoo3.utils": _patch_utils,
    "rl_zoo3.hyperparams_opt": _patch_hyperparams_opt,
    "rl_zoo3.callbacks": _patch_callbacks,
    "rl_zoo3.exp_manager": _patch_exp_manager,
}
