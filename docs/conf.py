"""Configuration of the documentation: Markdown pages by MyST, docstrings by autodoc."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

project = "sb3-energy"
author = "The sb3-energy authors"
copyright = f"2026, {author}"
release = (ROOT / "sb3_energy" / "version.txt").read_text(encoding="utf-8").strip()
version = release

extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
# Pages link to files of the repository (examples, tests, YAML), which are no pages.
suppress_warnings = ["myst.xref_missing"]

html_theme = "furo"
html_title = f"sb3-energy {release}"
