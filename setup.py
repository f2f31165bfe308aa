"""The packages of the distribution and its description; everything else about it is in setup.cfg and pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup


def for_an_index(readme: str) -> str:
    """
    :param readme: README.md, whose links and pictures are relative to the repository
    :return: the same for a page where those would be broken: pictures left out, files named in place of links to them
    """
    text = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n\n", "", readme)
    text = re.sub(r"\[([^]]*)\]\((?!https?:)([^)]*)\)", lambda m: f"`{m[2]}`" if m[1] == m[2] else f"{m[1]} (`{m[2]}`)", text)
    return re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)


setup(
    packages=[*find_packages(include=["sb3_energy", "sb3_energy.*"]), "sb3_energy.hyperparams"],
    # The YAML files live at the top of the repository, where RL Zoo users look for them, and in the package once installed.
    package_dir={"sb3_energy.hyperparams": "hyperparams"},
    long_description=for_an_index(Path(__file__).with_name("README.md").read_text(encoding="utf-8")),
)
