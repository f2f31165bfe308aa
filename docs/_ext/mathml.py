"""Equations as MathML, which browsers draw by themselves: no script, no font and no network."""

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert


def visit_inline(writer: Any, node: nodes.math) -> None:
    """Write an equation within a line."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def visit_block(writer: Any, node: nodes.math_block) -> None:
    """Write an equation of its own, as ``aligned`` where it has several lines."""
    latex = node.astext()
    if r"\\" in latex and r"\begin" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    writer.body.append(convert(latex, display="block"))
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls it; ``html_math_renderer = "mathml"`` chooses the renderer."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
