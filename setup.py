"""The packages of the distribution; everything else about it is in setup.cfg and pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sb3_energy", "sb3_energy.*"]), "sb3_energy.hyperparams"],
    # The YAML files live at the top of the repository, where RL Zoo users look for them, and in the package once installed.
    package_dir={"sb3_energy.hyperparams": "hyperparams"},
)
