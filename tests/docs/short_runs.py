"""
Documented trainings, made short. ``python short_runs.py PAGE.md ...`` runs the Python blocks of pages, in order and in one
namespace for each page; it needs nothing but the package, so that it runs in an environment without the tests' extra.
"""

import re
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

STEPS = 150
"""Environment steps of ``learn``: more than the 100 of uniform actions, so that updates are made."""
GRADIENT_STEPS = 10
"""Of ``EnergyMatching.fit``."""
FENCE = re.compile(
    r"^(?P<skip><!--+ skip: next[^\n]*-->\n\s*)?```(?P<language>\S*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


def shorten(steps: int = STEPS, gradient_steps: int = GRADIENT_STEPS) -> Callable[[], None]:
    """
    Make every ``learn`` of Stable-Baselines3's algorithms end after a few steps, that of offline ones and
    ``EnergyMatching.fit`` likewise.

    :param steps: the most environment steps, or gradient steps of an offline algorithm, of one ``learn``
    :param gradient_steps: the most gradient steps of one ``fit``
    :return: undoes it
    """
    from stable_baselines3.common.base_class import BaseAlgorithm

    from sb3_energy import EnergyMatching
    from sb3_energy.offline import OfflineAlgorithm

    setup, fit, offline = BaseAlgorithm._setup_learn, EnergyMatching.fit, OfflineAlgorithm.learn

    @wraps(setup)
    def short_setup(self: BaseAlgorithm, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
        return setup(self, min(total_timesteps, steps), *args, **kwargs)

    @wraps(fit)
    def short_fit(self: EnergyMatching, *args: Any, gradient_steps: int = gradient_steps, **kwargs: Any) -> Any:
        return fit(self, *args, gradient_steps=min(gradient_steps, most), **kwargs)

    @wraps(offline)
    def short_learn(self: OfflineAlgorithm, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
        return offline(self, min(total_timesteps, steps), *args, **kwargs)

    def undo() -> None:
        BaseAlgorithm._setup_learn, EnergyMatching.fit, OfflineAlgorithm.learn = setup, fit, offline

    most = gradient_steps
    BaseAlgorithm._setup_learn, EnergyMatching.fit, OfflineAlgorithm.learn = short_setup, short_fit, short_learn
    return undo


def run_page(path: Path) -> int:
    """
    Run the Python blocks of a page that are not marked ``<!-- skip: next ... -->``.

    :param path: Markdown
    :return: how many were run
    :raises Exception: whatever a block raises
    """
    text, namespace, count = path.read_text(encoding="utf-8"), {"__name__": "__page__"}, 0
    module = type(sys)("__page__")  # dataclasses look their module up
    module.__dict__.update(namespace)
    sys.modules["__page__"] = module
    for block in FENCE.finditer(text):
        if block["language"] != "python" or block["skip"]:
            continue
        line = text.count("\n", 0, block.start("code"))
        exec(compile("\n" * line + block["code"], str(path), "exec"), module.__dict__)
        count += 1
    return count


def main() -> None:
    """Run the pages that are named on the command line; the exit status says how many failed."""
    undo = shorten()
    failed = 0
    for name in sys.argv[1:]:
        try:
            print(f"{name}: {run_page(Path(name))} blocks")
        except Exception:
            traceback.print_exc()
            print(f"{name}: failed")
            failed += 1
    undo()
    sys.exit(failed)


if __name__ == "__main__":
    main()
