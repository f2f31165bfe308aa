"""
The same trained networks under other settings of the policy: what refiner, steps, particles and energy are worth in acting.

``python -m benchmarks.acting --envs dm_control/walker-walk-v0 --setting one='{"n_particles": 1}'`` reads the models which
``python -m benchmarks.returns`` trained.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch as th

from benchmarks.envs import make_env
from benchmarks.evaluation import EVALUATION_SEED, isolated_randomness, play, predict
from benchmarks.files import RunFiles, write_text
from benchmarks.report import interval_text
from benchmarks.statistics import iqm_interval
from benchmarks.variants import REFINED, algorithm_class, parse_json_object
from sb3_energy import EnergySAC
from sb3_energy.policies.refined_policy import RefinedPolicy

AS_TRAINED = "as trained"
Setting = tuple[str, Mapping[str, Any]]


def parser() -> argparse.ArgumentParser:
    """
    :return: the command line
    """
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.acting", description=__doc__.strip().splitlines()[0])
    add = arguments.add_argument
    add("--runs", type=Path, default=Path("results/returns"), help="folder of the trained models (default %(default)s)")
    add("--algo", default="energy_sac", help="variant whose models are played (default %(default)s)")
    add("--envs", required=True, help="gymnasium ids, by comma")
    add("--setting", action="append", default=[], metavar="NAME=JSON", help="policy_kwargs, under a name")
    add("--episodes", type=int, default=10, help="of each kind, for each model (default %(default)s)")
    return arguments


def parse_setting(text: str) -> Setting:
    """
    :param text: ``NAME=JSON``
    :return: the name and the keyword arguments of the policy that change
    :raises ValueError: if the form is another
    """
    name, equals, kwargs = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--setting must be NAME=JSON, got {text!r}")
    return name, parse_json_object(kwargs, f"--setting {name}")


def with_settings(policy: RefinedPolicy, changes: Mapping[str, Any]) -> RefinedPolicy:
    """
    :param policy: a trained policy
    :param changes: keyword arguments of its constructor that change how it acts, and not which networks it has; another
        refiner or energy begins with its own defaults
    :return: a policy of the same class with the same networks and temperature
    :raises ValueError: if a keyword argument is unknown, or the networks do not fit any more
    """
    arguments = policy._get_constructor_parameters()
    unknown = sorted(set(changes) - set(arguments))
    if unknown:
        raise ValueError(f"--setting must have keyword arguments of {type(policy).__name__}, got {unknown}")
    for part in ("refiner", "energy"):  # arguments of one are not those of another
        if changes.get(part, arguments[part]) != arguments[part]:
            arguments[f"{part}_kwargs"] = None
    changed = type(policy)(**{**arguments, **changes}).to(policy.device)
    try:
        changed.load_state_dict(policy.state_dict())
    except RuntimeError as error:
        raise ValueError(f"--setting must leave the networks as they are, got {dict(changes)!r}") from error
    changed.set_training_mode(False)
    return changed


def trained_models(runs: Path, env_id: str, algo: str) -> Iterator[tuple[EnergySAC, int]]:
    """
    :param runs: folder of the returns benchmark
    :param env_id: the environment
    :param algo: the variant
    :return: its trained models with their action repeat, one for each seed
    :raises ValueError: if there is none, or they have no refined policy
    """
    folder = RunFiles.of(runs, env_id, algo, 0).csv.parent
    found = [RunFiles(path.with_suffix("")) for path in sorted(folder.glob(f"{algo}_seed*.zip"))]
    if not found:
        raise ValueError(f"--runs must hold trained models of {algo!r} on {env_id}, found none in {folder}")
    for files in found:
        config = files.read_config() or {}
        algorithm = config.get("algorithm")
        if algorithm not in REFINED:
            raise ValueError(f"--algo must be a variant of EnergySAC or PGAC, got {algo!r}")
        yield cast(EnergySAC, algorithm_class(algorithm).load(files.model, device="cpu")), config["action_repeat"]


def returns_of(model: EnergySAC, env_id: str, action_repeat: int, n_episodes: int) -> tuple[float, float]:
    """
    :param model: the model
    :param env_id: where to play
    :param action_repeat: environment steps per policy step
    :param n_episodes: of each kind, from the same seeds for all
    :return: mean return of the deterministic and of the sampled actions
    """
    envs = [make_env(env_id, action_repeat) for _ in range(n_episodes)]
    with isolated_randomness(EVALUATION_SEED):
        deterministic, sampled = (play(envs, partial(predict, model, kind)).mean_return for kind in (True, False))
    return deterministic, sampled


def table(args: argparse.Namespace, settings: Sequence[Setting], env_id: str) -> str:
    """
    :param args: the command line
    :param settings: how to act
    :param env_id: where
    :return: markdown, one line for each setting
    """
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in settings}
    for model, action_repeat in trained_models(args.runs, env_id, args.algo):
        trained = model.policy
        for name, changes in settings:
            model.policy = with_settings(trained, changes)
            scores[name].append(returns_of(model, env_id, action_repeat, args.episodes))
    lines = [f"### {env_id}, `{args.algo}`, {args.episodes} episodes", ""]
    lines += ["| setting | models | deterministic return, IQM [95 % interval] | sampled |", "|---|---|---|---|"]
    for name, pairs in scores.items():
        columns = [interval_text(iqm_interval(list(column))) for column in zip(*pairs, strict=True)]
        lines.append(f"| {name} | {len(pairs)} | " + " | ".join(columns) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """
    :param argv: the command line's arguments
    :return: 0, or 2 for a command line that is refused
    """
    args = parser().parse_args(argv)
    th.set_num_threads(1)
    try:
        if args.episodes < 1:
            raise ValueError(f"--episodes must be at least 1, got {args.episodes}")
        settings = [(AS_TRAINED, {}), *map(parse_setting, args.setting)]
        tables = []
        for env_id in args.envs.split(","):
            tables.append(table(args, settings, env_id))
            print(tables[-1], flush=True)
    except (ValueError, TypeError) as error:
        print(error, file=sys.stderr)
        return 2
    write_text(args.runs / f"acting_{args.algo}.md", "\n".join(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
