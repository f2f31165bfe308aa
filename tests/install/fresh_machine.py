"""
What each extra promises, alone, on a machine that has nothing. Standard library only:

    python tests/install/fresh_machine.py                   # this checkout, the pinned versions
    python tests/install/fresh_machine.py --newest          # the newest versions of everything but torch
    python tests/install/fresh_machine.py --only zoo dmc    # some of the environments

From a clone of what is committed it builds the wheel, makes one clean virtual environment for each extra, installs the wheel
with that extra and nothing else, and runs there, outside the checkout, what README and docs promise, with short settings. Last
it runs `make train` in the clone. torch takes longest to install, so that it is installed once, into an environment that has
nothing but torch and what torch itself requires; the others start with hard links to those files.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve()
CHECKOUT = HERE.parents[2]
SHORT_RUNS = HERE.parents[1] / "docs" / "short_runs.py"
COMMAND_TIMEOUT = 600.0
MANY_SECONDS = 1800.0


class Environment(NamedTuple):
    """
    :param extras: of the wheel, by comma
    :param absent: modules that must not be there: who has them by chance notices nothing missing
    """

    extras: str
    absent: str


ENVIRONMENTS = {
    "plain": Environment("", "pytest matplotlib tensorboard rl_zoo3 optuna requests pygame mujoco shimmy sklearn yaml"),
    "zoo": Environment("zoo", "pytest mypy mujoco dm_control sklearn torchebm"),
    "dmc": Environment("dmc", "pytest mypy matplotlib tensorboard rl_zoo3 optuna pygame"),
    "zoo,dmc": Environment("zoo,dmc", "pytest mypy sklearn torchebm"),
    "plots": Environment("plots", "pytest mypy rl_zoo3 optuna mujoco pygame"),
    "offline": Environment("offline", "pytest mypy matplotlib rl_zoo3 optuna mujoco sklearn"),
    "docs": Environment("docs", "pytest mypy rl_zoo3 matplotlib"),
}


class Promise(NamedTuple):
    """
    :param where: names of :data:`ENVIRONMENTS`, by space
    :param what: it proves
    :param command: shortened; {pages} is the folder of README.md and docs/
    :param expected: must be in the output
    :param settings: environment variables of the command, NAME=VALUE by space
    """

    where: str
    what: str
    command: str
    expected: str = ""
    settings: str = ""


PENDULUM = "--algo energy_sac --env Pendulum-v1"
CHEETAH = "--algo energy_sac --env dm_control/cheetah-run-v0 --gym-packages shimmy"
CHEETAH_IN_PYTHON = (
    "import gymnasium as gym, shimmy; from gymnasium.wrappers import FlattenObservation as F;"
    " from sb3_energy import EnergySAC; gym.register_envs(shimmy); env = F(gym.make('dm_control/cheetah-run-v0'));"
    " print(EnergySAC('MlpPolicy', env).learn(110).num_timesteps)"
)
HALF_CHEETAH = "from sb3_energy import EnergySAC; print(EnergySAC('MlpPolicy', 'HalfCheetah-v5').learn(110).num_timesteps)"
RECORD_AND_CLONE = (
    "from stable_baselines3 import SAC; from sb3_energy import BC, record_dataset;"
    " print(BC('MlpPolicy', record_dataset(SAC('MlpPolicy', 'Pendulum-v1'), 'Pendulum-v1', 3)).learn(2).dataset)"
)
WINDOW = "SDL_VIDEODRIVER=dummy"
SEARCH = "-optimize --n-trials 2 --n-evaluations 1 --eval-episodes 1 --n-eval-envs 1"
HOOK_OFF = "SB3_ENERGY_AUTOLOAD=0"
ONE_RUN = "--seeds 0 --eval-freq 100 --eval-episodes 1"
FOUR_GOALS = "--timesteps 800 --net-arch 16"

PROMISES = [
    Promise("plain zoo dmc plots offline", "imports without a warning", 'python -W error -c "import sb3_energy"'),
    *(
        Promise("plain", f"{page}: every Python block", f"python {SHORT_RUNS} {{pages}}/{page}")
        for page in (
            "README.md",
            "docs/index.md",
            "docs/coming_from_sac.md",
            "docs/which.md",
            "docs/energy_sac.md",
            "docs/pgac.md",
            "docs/entropy.md",
            "docs/energy_matching.md",
            "docs/multi_goal.md",
            "docs/random_goals.md",
            "docs/particle.md",
            "docs/gpu.md",
        )
    ),
    Promise("plain", "resumes", "python examples/resume.py --total-timesteps 200 --save-freq 100 --save-path logs/r"),
    Promise("plain", "says what the zoo needs", "python -m sb3_energy.zoo train || true", "pip install 'sb3-energy[zoo]'"),
    Promise("zoo", "trains", f"python -m rl_zoo3.train {PENDULUM} --num-threads 1 -n 200", "Saving to logs"),
    Promise("zoo", "shows it in a window", f"python -m rl_zoo3.enjoy {PENDULUM} -f logs -n 30", "Loading", WINDOW),
    Promise("zoo", "evaluates it", f"python -m rl_zoo3.enjoy {PENDULUM} -f logs -n 200 --no-render", "Mean reward"),
    Promise("zoo", "records a video", f"python -m rl_zoo3.record_video {PENDULUM} -f logs -n 20 -o v", "Saving video", WINDOW),
    Promise("zoo", "searches", f"python -m rl_zoo3.train {PENDULUM} -n 150 {SEARCH}", "Best trial"),
    Promise("zoo", "TensorBoard", f"python -m rl_zoo3.train {PENDULUM} -n 150 --tensorboard-log tb", "Saving to logs"),
    Promise("zoo", "progress bar", f"python -m rl_zoo3.train {PENDULUM} -n 150 -P", "Saving to logs"),
    Promise("zoo", "console script", f"rl_zoo3 train {PENDULUM} -n 150", "Saving to logs"),
    Promise("zoo", "PGAC", "rl_zoo3 train --algo pgac --env Pendulum-v1 -n 150", "Saving to logs"),
    Promise("zoo", "without the hook", f"python -m sb3_energy.zoo train {PENDULUM} -n 150", "Saving to logs", HOOK_OFF),
    *(
        Promise("zoo", f"{script} starts", f"python -m sb3_energy.zoo {script} --help", "usage")
        for script in (
            "record_training",
            "load_from_hub",
            "push_to_hub",
            "benchmark",
            "plot_train",
            "plot_from_file",
            "all_plots",
        )
    ),
    Promise("dmc zoo,dmc", "MuJoCo", f'python -c "{HALF_CHEETAH}"', "110"),
    Promise("dmc zoo,dmc", "dm_control", f'python -c "{CHEETAH_IN_PYTHON}"', "110"),
    Promise("zoo,dmc", "trains on dm_control", f"python -m rl_zoo3.train {CHEETAH} -n 200", "Saving to logs"),
    Promise("zoo,dmc", "evaluates it", f"python -m rl_zoo3.enjoy {CHEETAH} -f logs -n 200 --no-render", "Loading"),
    Promise("plots", "four goals", f"python examples/multi_goal.py {FOUR_GOALS} --episodes 8 --models m", "EnergySAC"),
    Promise("plots", "landscape", "python examples/landscape.py --model m/PGAC_seed0.zip --observation 0 0 --grid 9"),
    Promise("plots", "docs/landscape.md: every Python block", f"python {SHORT_RUNS} {{pages}}/docs/landscape.md"),
    Promise("plots", "a clone", "python examples/clone_four_goals.py --expert-episodes 8 --gradient-steps 5 --episodes 8"),
    Promise(
        "plots",
        "returns",
        f"python -m benchmarks.returns --algos sac,energy_sac --envs Pendulum-v1 --steps 200 {ONE_RUN}",
    ),
    Promise("plots", "modes", "python -m benchmarks.modes --worlds 1 --algos sac,energy_sac --steps 120 --eval-episodes 4"),
    Promise("plots", "speed", "python -m benchmarks.speed --quick --rounds 2 --sections update"),
    Promise("offline", "docs/offline.md: every Python block", f"python {SHORT_RUNS} {{pages}}/docs/offline.md"),
    Promise("plain", "records and clones", f'python -c "{RECORD_AND_CLONE}"', "3 transitions"),
    Promise("docs", "builds the pages", "python -m sphinx -q -W --keep-going -b html {pages}/docs html"),
    Promise("plots", "densities", "python -m benchmarks.densities --densities two_moons --gradient-steps 5 --seconds 1"),
]


def main() -> None:
    """Install, run, say what failed; the exit status is 1 where anything did."""
    args = parse()
    place = Path(args.folder or tempfile.mkdtemp(prefix="fresh_machine_"))
    place.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    try:
        machine = Machine(place, args)
        names = [name for name in (*ENVIRONMENTS, "make") if not args.only or name in args.only]
        machine.prepare()
        with ThreadPoolExecutor(args.jobs) as pool:
            results = [line for lines in pool.map(machine.check, names) for line in lines]
    finally:
        if not args.folder:
            shutil.rmtree(place, ignore_errors=True)
    failed = [line for line in results if line.startswith("FAIL")]
    print(f"\nfresh machine: {time.monotonic() - start:.0f} s", *failed, sep="\n")
    print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    sys.exit(bool(failed))


def parse() -> argparse.Namespace:
    """
    :return: the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="?", type=Path, default=CHECKOUT, help="what is committed there is tested")
    parser.add_argument("--only", nargs="+", choices=[*ENVIRONMENTS, "make"], help="these environments")
    parser.add_argument("--newest", action="store_true", help="without constraints.txt, except for torch")
    parser.add_argument("--torch", help="what pip is asked for in place of the pinned torch")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="environments at a time")
    parser.add_argument("--folder", help="work here and leave it (default: a temporary folder)")
    return parser.parse_args()


class Machine:
    """
    A folder with a clone, its wheel and the environments.

    :param place: the folder
    :param args: the command line
    """

    def __init__(self, place: Path, args: argparse.Namespace) -> None:
        self.place, self.args = place, args
        self.clone, self.base = place / "clone", place / "torch"
        pinned = (args.checkout / "constraints.txt").read_text(encoding="utf-8")
        (self.torch,) = [args.torch] if args.torch else re.findall(r"^torch==\S+", pinned, re.MULTILINE)
        self.constraints = [] if args.newest else ["-c", str(self.clone / "constraints.txt")]

    def prepare(self) -> None:
        """Clone, build the wheel, install torch and what it requires; nothing can be said where that fails."""
        subprocess.run(["git", "clone", "--quiet", str(self.args.checkout), str(self.clone)], check=True)
        wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(self.place / "dist"), str(self.clone)]
        subprocess.run(wheel, check=True)
        shutil.rmtree(self.clone / "build", ignore_errors=True)
        make_venv(self.base)
        run([python_of(self.base), "-m", "pip", "install", "--quiet", *self.constraints, self.torch], self.place, check=True)

    def check(self, name: str) -> list[str]:
        """
        :param name: of the environment, or ``make``
        :return: one line for each promise
        """
        if name == "make":
            unpinned = " CONSTRAINTS=" if self.args.newest else ""
            torch = f" TORCH={shlex.quote(self.args.torch)}" if self.args.torch else ""
            train = Promise("make", "trains and evaluates", f"make train STEPS=600{unpinned}{torch}", "Trained agent: logs/")
            return [self.keep(name, train, os.environ["PATH"], self.clone, MANY_SECONDS)]
        venv = self.place / name.replace(",", "_")
        make_venv(venv, "--without-pip")  # the other has it
        shutil.copytree(site_packages(self.base), site_packages(venv), copy_function=os.link, dirs_exist_ok=True)
        work = self.place / f"{venv.name}_work"
        work.mkdir()
        for folder in ("examples", "benchmarks"):  # not in the wheel; the package itself must not be found beside them
            shutil.copytree(self.clone / folder, work / folder)
        (wheel,) = (self.place / "dist").glob("sb3_energy-*.whl")
        wanted = f"{wheel}[{ENVIRONMENTS[name].extras}]".removesuffix("[]")
        # what is imported is compiled then
        install = f"pip install --quiet --no-compile {shlex.join(self.constraints)} {shlex.quote(wanted)}"
        absent = f"python -c {shlex.quote(ABSENT.format(names=ENVIRONMENTS[name].absent, venv=str(venv)))}"
        first = [Promise(name, "installs", f"python -m {install}"), Promise(name, "has no more than it asks for", absent)]
        promises = [promise for promise in PROMISES if name in promise.where.split()]
        path = f"{python_of(venv).parent}{os.pathsep}{os.environ['PATH']}"
        lines = [self.keep(name, first[0], path, work, MANY_SECONDS)]
        return lines + [self.keep(name, promise, path, work) for promise in (first[1], *promises)]

    def keep(self, name: str, promise: Promise, path: str, work: Path, timeout: float = COMMAND_TIMEOUT) -> str:
        """
        :param name: of the environment
        :param promise: to keep
        :param path: where commands are looked for
        :param work: where it runs
        :param timeout: seconds until it is given up
        :return: a line that begins with ``ok`` or ``FAIL``
        """
        settings = dict(setting.split("=", 1) for setting in promise.settings.split())
        command = ["bash", "-c", promise.command.format(pages=self.clone)]
        start = time.monotonic()
        done = run(command, work, {"PATH": path, **settings}, timeout)
        good = done.returncode == 0 and promise.expected in done.stdout
        line = f"{'ok  ' if good else 'FAIL'} {time.monotonic() - start:4.0f} s  {name:8} {promise.what}"
        if good:
            print(line, flush=True)
        else:
            tail = "\n".join(f"      | {text}" for text in done.stdout.splitlines()[-12:])
            print(f"{line}\n      $ {shorter(promise.command)}\n{tail}", flush=True)
            error = [text for text in done.stdout.splitlines() if text.strip()][-1:]
            line += f": {error[0].strip() if error else 'no output'}"
        return line


ABSENT = """
import importlib.util as u, sb3_energy, sys
found = [n for n in "{names}".split() if u.find_spec(n)]
assert not found, found
assert sb3_energy.__file__.startswith("{venv}"), sb3_energy.__file__
"""


def shorter(command: str) -> str:
    """
    :param command: of a promise
    :return: its first line, as far as it is worth reading
    """
    return command.strip().replace("\n", " ")[:150]


def make_venv(folder: Path, *options: str) -> None:
    """
    :param folder: of the virtual environment that is made
    :param options: of the module ``venv``
    """
    subprocess.run([sys.executable, "-m", "venv", *options, str(folder)], check=True)


def python_of(venv: Path) -> Path:
    """
    :param venv: a virtual environment
    :return: its interpreter
    """
    return venv / "bin" / "python"


def site_packages(venv: Path) -> Path:
    """
    :param venv: a virtual environment
    :return: where its packages are
    """
    (folder,) = venv.glob("lib/python*/site-packages")
    return folder


def run(
    command: list, work: Path, settings: dict[str, str] | None = None, timeout: float = MANY_SECONDS, check: bool = False
) -> subprocess.CompletedProcess:
    """
    Run a command without what the present environment would lend it.

    :param command: with its arguments
    :param work: the working directory
    :param settings: environment variables beside those that every command has
    :param timeout: seconds until it is given up
    :param check: raise where it fails
    :return: what it printed, both streams together
    """
    lent = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "MPLBACKEND", "SB3_ENERGY_AUTOLOAD")
    env = {key: value for key, value in os.environ.items() if key not in lent}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1", **(settings or {})}
    try:
        done = subprocess.run(
            command, cwd=work, env=env, timeout=timeout, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        done = subprocess.CompletedProcess(command, 124, f"{output}\ngiven up after {timeout:.0f} s")
    if check and done.returncode:
        raise SystemExit(f"{shlex.join(map(str, command))} failed:\n{done.stdout}")
    return done


if __name__ == "__main__":
    main()
