"""The numbers of a comparison as lines of text."""

from __future__ import annotations

from textwrap import TextWrapper

from attnlens.render.diff.diff import DiffReport
from attnlens.schemas.plain_text import one_line

WIDTH = 80
"""Columns of a terminal."""
_NONE = "-"


def table(report: DiffReport) -> list[str]:
    """What A and B are if that differs, and a line a depth: lens at depth, and attention of the layer that reads it."""
    layers = {row.a: row for row in report.layers}
    depths = {row.a: row for row in report.depths}
    partners = {row.a: row.b for row in report.layers} | {row.a: row.b for row in report.depths}
    paired = any(ours != theirs for ours, theirs in partners.items())
    lines = sides(report)
    lines += [f"{'depth':>9}  {'top-1 agreement':>15}  {'JS, nats':>17}  {'|attention B - A|':>24}"]
    for number, partner in sorted(partners.items()):
        lens, layer = depths.get(number), layers.get(number)
        name = f"{number} / {partner}" if paired else str(number)
        agreement = _NONE if lens is None else f"{lens.agreement:.3f}"
        js = _NONE
        if lens is not None and lens.js_low is not None and lens.js_high is not None:
            js = f"{lens.js_low:.4f} … {lens.js_high:.4f}"
        weights = _NONE
        if layer is not None and layer.mean is not None and layer.largest is not None:
            weights = f"mean {layer.mean:.4f} max {layer.largest:.4f}"
        lines.append(f"{name:>9}  {agreement:>15}  {js:>17}  {weights:>24}")
    return lines


def sides(report: DiffReport) -> list[str]:
    """What A and B are, where their models have different names: store, capture, model."""
    if report.model_a == report.model_b:
        return []
    found = (("A", report.a, report.model_a), ("B", report.b, report.model_b))
    fold = TextWrapper(WIDTH, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False)
    return [line for side, place, model in found for line in fold.wrap(f"{side}: {one_line(place)}, {one_line(model)}")]


def summary(report: DiffReport) -> str:
    """What was compared and where the pictures are, in one line."""
    kind = "the same tokens" if report.exact else f"{report.aligned} pieces aligned by {report.align}"
    return (
        f"{report.a} and {report.b}: {kind} ({report.n_token_a} and {report.n_token_b} tokens). "
        f"{report.folder}: {report.count} pictures on -{report.limit:g} … {report.limit:g} in {report.seconds:.1f} s"
        + (f", {report.kept} were there" if report.kept else "")
    )
