"""Where the tuned hyperparameters are: standard library only, so that looking them up imports neither torch nor rl_zoo3."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def hyperparams_dir() -> Path:
    """
    The folder with one ``<algo>.yml`` for each algorithm, in the RL Zoo's format.

    A wheel carries it inside the package; in a source tree and in an editable install it is beside the package.

    :return: the folder
    :raises FileNotFoundError: if neither exists
    """
    for folder in (_PACKAGE / "hyperparams", _PACKAGE.parent / "hyperparams"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"hyperparams of sb3_energy must be in or beside {_PACKAGE}, found neither: reinstall the package")
