"""Configuration of the documentation: Markdown pages by MyST, an API reference by autodoc, equations as MathML."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

project = "sb3-energy"
author = "The sb3-energy authors"
copyright = f"2026, {author}"
release = (ROOT / "sb3_energy" / "version.txt").read_text(encoding="utf-8").strip()
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "mathml", "reference"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
myst_update_mathjax = False
html_math_renderer = "mathml"
exclude_patterns = ["_build", "_ext"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
add_module_names = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"sb3-energy {release}"
