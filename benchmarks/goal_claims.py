"""
Claims on the four-goal problem: a policy may be multi-modal *and* optimal, and a potential may be multi-modal by itself.

``python -m benchmarks.goal_claims preferred`` trains with a bonus for the goal in the east and plays without and with a wall
before it; ``python -m benchmarks.goal_claims alone`` lets trained potentials act by themselves. One file for each seed;
``--docs`` puts the tables into ``docs/claims.md``.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from benchmarks.files import write_text
from benchmarks.goal_trainings import POLICIES, acting, play, trained
from benchmarks.statistics import interquartile_mean
from benchmarks.tables import put_table
from sb3_energy import PGAC

BONUS, WALL = 3.0, (2.5, 2.0)
PREFERRED = ("sac", "sac_layer_norm", "energy_sac", "energy_sac_one_particle", "pgac")
ALONE: Mapping[str, dict[str, Any]] = {
    "as trained": {},
    "one particle from a normal start": dict(n_particles=1, initial_particles="normal"),
    "the same, V alone": dict(n_particles=1, initial_particles="normal", energy_kwargs=dict(guidance=0.0)),
}
"""Arguments of the policy in acting."""
Row = dict[str, Any]


def preferred(seed: int, args: argparse.Namespace) -> list[Row]:
    """
    :param seed: of the trainings
    :param args: the command line
    :return: one row for each policy and way to act
    """
    rows: list[Row] = []
    for name in args.policies or PREFERRED:
        model = trained(name, seed, args.output / "models", args.timesteps, BONUS)
        for way, wall in (("open", None), ("wall", WALL)):
            for deterministic in (False, True):
                model.set_random_seed(seed)
                played = play(acting(model, deterministic), args.episodes, wall)
                how = "deterministic" if deterministic else "sampled"
                found = dict(shares=played.shares, lost=played.lost, mean_return=float(played.returns.mean()))
                rows.append(dict(policy=name, way=way, acts=how) | found)
        print(f"played: {name}, seed {seed}", flush=True)
    return rows


def alone(seed: int, args: argparse.Namespace) -> list[Row]:
    """
    :param seed: of the trainings
    :param args: the command line
    :return: one row for each choice of positives and way to act
    """
    rows: list[Row] = []
    for name in args.policies or ("pgac", "pgac_best"):
        model = trained(name, seed, args.output / "models", args.timesteps)
        for way, changes in ALONE.items():
            other = PGAC(
                "MlpPolicy", gym.make("MultiGoal-v0"), device="cpu", policy_kwargs=_changed(model.policy_kwargs, changes)
            )
            other.policy.load_state_dict(model.policy.state_dict())
            other.set_random_seed(seed)
            played = play(acting(other), args.episodes)
            rows.append(dict(policy=name, way=way, acts="sampled", shares=played.shares, lost=played.lost))
        print(f"played: {name}, seed {seed}", flush=True)
    return rows


def _changed(policy_kwargs: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    energy = {**(policy_kwargs.get("energy_kwargs") or {}), **(changes.get("energy_kwargs") or {})}
    return {**policy_kwargs, **changes, "energy_kwargs": energy or None}


EXPERIMENTS: Mapping[str, Callable[[int, argparse.Namespace], list[Row]]] = {"preferred": preferred, "alone": alone}


def report(rows: Sequence[Row]) -> str:
    """
    :param rows: of all seeds
    :return: the table
    """
    has_returns = "mean_return" in rows[0]
    lines = [
        f"| policy | way | acts | east | north | west | south | none |{' return |' if has_returns else ''} runs |",
        f"|---|---|---|---:|---:|---:|---:|---:|{'---:|' if has_returns else ''}---:|",
    ]
    for key in dict.fromkeys((row["policy"], row["way"], row["acts"]) for row in rows):
        group = [row for row in rows if (row["policy"], row["way"], row["acts"]) == key]
        numbers = [f"{interquartile_mean([row['shares'][goal] for row in group]):.2f}" for goal in range(4)]
        numbers.append(f"{interquartile_mean([row['lost'] for row in group]):.2f}")
        if has_returns:
            numbers.append(f"{interquartile_mean([row['mean_return'] for row in group]):.1f}")
        lines.append(f"| `{key[0]}` | {key[1]} | {key[2]} | {' | '.join(numbers)} | {len(group)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("experiment", choices=sorted(EXPERIMENTS))
    parser.add_argument("--seeds", default=None, help="by comma (default: 0,1,2,3,4 of preferred, 0,1,2 of alone)")
    parser.add_argument("--timesteps", type=int, default=64_000, help="of each training")
    parser.add_argument("--episodes", type=int, default=1000, help="that are played in each way")
    parser.add_argument("--policies", choices=sorted(POLICIES), nargs="+", default=None, help="(default: all)")
    parser.add_argument("--output", type=Path, default=Path("results/goal_claims"))
    parser.add_argument("--docs", action="store_true", help="also write the table of docs/claims.md")
    args = parser.parse_args(argv)
    rows: list[Row] = []
    for seed in (args.seeds or ("0,1,2,3,4" if args.experiment == "preferred" else "0,1,2")).split(","):
        path = args.output / f"{args.experiment}_seed{seed}.json"
        if not path.exists():
            write_text(path, json.dumps(EXPERIMENTS[args.experiment](int(seed), args)))
        rows += json.loads(path.read_text())
    table = report(rows)
    write_text(args.output / f"{args.experiment}.md", table)
    if args.docs:
        put_table(Path("docs/claims.md"), args.experiment, table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
