"""How the shell commands of README and docs are run in tests: with a few steps in place of many, and nothing else changed."""

import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

ZOO = r"(python -m (rl_zoo3\.|sb3_energy\.zoo )|rl_zoo3 )"
ABBREVIATED = "python -m rl_zoo3.train --algo energy_sac --env Pendulum-v1"
"""What ``...`` stands for in the zoo's table."""
INLINE = re.compile(r"`((?:\.\.\. -|(?:python|pip|make|pytest|rl_zoo3) )[^`]*)`")


class Rule(NamedTuple):
    """
    :param command: a regular expression that its beginning matches; the first rule that does is taken
    :param options: added at its end, where they win over those before
    :param changes: ``(regular expression, replacement)``
    :param slow: whether it takes more than some seconds
    """

    command: str
    options: str = ""
    changes: tuple[tuple[str, str], ...] = ()
    slow: bool = True


RULES = [
    # it would change the environment of the tests: tests/install runs it, here its extras must exist
    Rule("pip install", "--dry-run", slow=False),
    # tests/install runs `make train`; here make must know the target
    Rule("make help", slow=False),
    Rule("make ", "--dry-run", slow=False),
    Rule("pytest ", "--collect-only -q"),
    Rule("python .* --help", slow=False),
    Rule(rf"{ZOO}(train|enjoy)( \.\.\.)?$", "--help", ((r" \.\.\.$", ""),)),
    Rule(
        rf"{ZOO}train .*-optimize", "-n 150 --n-trials 2 --n-evaluations 1 --eval-episodes 1 --n-eval-envs 1 --num-threads 1"
    ),
    # trials and checkpoints that the short commands before it have made
    Rule(rf"{ZOO}train .*--trial-id", "-n 150 --num-threads 1", (("--trial-id [0-9]+", "--trial-id 1"),)),
    Rule(rf"{ZOO}train .*--save-freq", "-n 250 --num-threads 1", (("save-freq 1000", "save-freq 100"), ("_6000_", "_200_"))),
    Rule(rf"{ZOO}train", "-n 150 --num-threads 1"),
    Rule(rf"{ZOO}enjoy", "-n 30 --num-threads 1"),
    Rule(rf"{ZOO}record_video", "-n 20"),
    Rule("python examples/resume.py", "--total-timesteps 300 --save-freq 100"),
    Rule("python examples/multi_goal.py", "--timesteps 800 --net-arch 16 --episodes 8"),
    Rule("python examples/landscape.py", "--grid 9"),
    Rule("python examples/clone_four_goals.py", "--expert-episodes 8 --gradient-steps 5 --episodes 8"),
    Rule("python -m benchmarks.returns --report-only"),
    # episodes of dm_control have a thousand steps: Pendulum stands for all tasks there (tests/install trains on dm_control)
    Rule("python -m benchmarks.returns", "--envs Pendulum-v1 --steps 120 --eval-freq 60 --eval-episodes 1 --seeds 0 --jobs 1"),
    Rule("python -m benchmarks.modes --report-only"),
    Rule(
        "python -m benchmarks.modes",
        "--worlds 1 --algos sac,energy_sac --steps 120 --eval-freq 60 --eval-episodes 4 --seeds 0 --jobs 1",
    ),
    Rule("python -m benchmarks.acting", "--envs Pendulum-v1 --episodes 1"),
    Rule("python -m benchmarks.densities", "--densities two_moons --gradient-steps 5 --seconds 1"),
    Rule("python -m benchmarks.samplers", "--draws 200 --more 1 --updates 2 --repetitions 2 --rounds 1"),
    Rule("python -m benchmarks.sampler_critic", "--updates 20"),
    Rule(
        "python -m benchmarks.wide_samplers",
        "--seeds 0 --dimensions 2 --draws 5 --observations 2 --rounds 1",
    ),
    # MuJoCo is another extra
    Rule("python -m benchmarks.wide_critics --train", "--tasks Pendulum-v1 --steps 1005"),
    Rule("python -m benchmarks.wide_critics", "--draws 5 --chain-steps 2"),
    Rule("python -m benchmarks.annealing", "--draws 5"),
    Rule("python -m benchmarks.sequences", "--draws 50 --updates 2 --rounds 1"),
    Rule("python -m benchmarks.speed --report-only", "--output results/speed_quick"),
    Rule("python -m benchmarks.speed", "--quick --rounds 2 --sections critics"),
    Rule("python -m benchmarks.gpu", "--quick --device cpu --minutes 1"),
    Rule("python -m benchmarks.good_starts", "--draws 5 --seeds 0"),
    Rule("python -m benchmarks.goal_claims preferred", "--timesteps 400 --episodes 4 --seeds 0 --policies sac energy_sac"),
    Rule("python -m benchmarks.goal_claims", "--timesteps 400 --episodes 4 --seeds 0"),
    Rule("python -m benchmarks.structure"),
    Rule(
        "python -m benchmarks.particle",
        "--dims 1 --steps 4 --demonstrations 5 --eval-episodes 2 --net-arch 8 --algos ibc,mse --seeds 0 --output results/few",
    ),
    Rule("python -m benchmarks.mode_shares", "--gradient-steps 2"),
    Rule("python -m benchmarks.mutants", "--n 1 --only losses/prefix.py"),
    Rule("python -m tests.entropy.biases", "--help"),
]


def commands_of(block: str) -> Iterator[str]:
    """
    :param block: lines of a shell, with comments and with lines that go on after a backslash
    :return: its commands, each on one line
    """
    joined = re.sub(r"\\\n\s*", "", re.sub(r" \\\n\s*", " ", block))
    for line in joined.splitlines():
        command = re.sub(r"(^|\s)#.*", "", line).strip()
        if command:
            yield command


def inline_commands(text: str) -> Iterator[tuple[int, str]]:
    """
    :param text: of a page
    :return: where a command stands in a sentence or a table, and the command
    """
    for found in INLINE.finditer(text):
        command = found[1].replace("\\|", "|")
        yield found.start(), command.replace("...", ABBREVIATED, 1) if command.startswith("... ") else command


def rule_of(command: str) -> Rule:
    """
    :param command: as the page has it
    :return: how it is made short
    :raises AssertionError: if nobody has said so
    """
    for rule in RULES:
        if re.match(rule.command, command):
            return rule
    raise AssertionError(f"{command!r} is in no rule of tests/docs/short_commands.py: say there how it is made short")


def short(command: str) -> str:
    """
    :param command: as the page has it
    :return: as it is run
    """
    rule = rule_of(command)
    for old, new in rule.changes:
        command = re.sub(old, new, command)
    return f"{command} {rule.options}".strip()


def extras_of(command: str) -> set[str]:
    """
    :param command: of pip
    :return: the extras of this package that it asks for
    """
    asked = [re.fullmatch(r"(?:sb3-energy|\.)(?:\[(.*)\])?", word) for word in shlex.split(command)]
    return {extra for found in asked if found and found[1] for extra in found[1].split(",")}
