"""Explicit route into the RL Zoo, for when the hook is off: ``python -m sb3_energy.zoo train --algo energy_sac ...``."""

import importlib.util
import os
import runpy
import sys

from sb3_energy.zoo.plugin import register

SCRIPTS = {
    **{name: f"rl_zoo3.{name}" for name in ("train", "enjoy", "record_video", "record_training", "load_from_hub")},
    **{name: f"rl_zoo3.{name}" for name in ("push_to_hub", "benchmark")},
    **{name: f"rl_zoo3.plots.{name}" for name in ("plot_train", "plot_from_file", "all_plots")},
}


def main() -> None:
    """Register the algorithms, then run a script of the zoo as ``python -m rl_zoo3.<script>`` does."""
    script = sys.argv[1] if len(sys.argv) > 1 else None
    if script not in SCRIPTS:
        raise SystemExit(f"usage: python -m sb3_energy.zoo SCRIPT [ARGS], SCRIPT one of {', '.join(SCRIPTS)}; got {script!r}")
    if importlib.util.find_spec("rl_zoo3") is None:
        raise SystemExit("python -m sb3_energy.zoo needs the RL Zoo: pip install 'sb3-energy[zoo]'")
    # record_training and benchmark start other scripts of the zoo as processes of their own
    os.environ["SB3_ENERGY_AUTOLOAD"] = "1"
    register()
    sys.argv[:2] = [SCRIPTS[script]]  # read by the plugin; the script finds its file there
    runpy.run_module(SCRIPTS[script], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
