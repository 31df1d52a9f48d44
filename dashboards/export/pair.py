"""What the command asks for: a settled pair, its prompts, a figure by its kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparselens.dashboards.choice import PROMPTS, Settled
from sparselens.dashboards.export import draw
from sparselens.dashboards.export.asked import asked, member, prompt_named, score_named
from sparselens.dashboards.export.figure import Figure
from sparselens.dashboards.export.sheet import PAPER
from sparselens.dashboards.heads.score import preferred, scores
from sparselens.dashboards.query import Source

EVERY = "all"
OVER_HEADS = ("grid", "heads")
WITH_METRIC = (*OVER_HEADS, "strip")
KINDS = (*draw.FIGURES, "heads")


def settled_pair(source: Source, a: str, b: str, **fields: Any) -> Settled:
    """The settled selection of two runs, over all prompts. ValueError says what there is."""
    return asked(source, a, b, over="all", **fields)


def prompts_of(source: Source, settled: Settled, named: Sequence[str]) -> list[str]:
    """The ids of named prompts that both runs have; `all` names them all, none is an empty list."""
    selection = settled.selection
    if EVERY in named:
        rows = source.records(PROMPTS, a=selection.a, b=selection.b or None)
        return [str(row["prompt_id"]) for row in rows]
    return [prompt_named(source, selection.a, selection.b, name) for name in named]


def figure_of(
    source: Source, kind: str, a: str, b: str = "", *, theme: str = "light", **fields: Any
) -> Figure:
    """The figure of that kind; grid and heads are over all prompts unless one is named.

    Raises ValueError that says what there is.
    """
    member("kind of figure", kind, KINDS)
    member("theme", theme, tuple(PAPER))
    if kind == "grid" and not b:
        raise ValueError("a grid of differences needs two runs: give --b; 'heads' shows a score of one run")
    if fields.get("metric") and kind not in WITH_METRIC:
        raise ValueError(f"a figure of {kind} has no metric: {', '.join(WITH_METRIC)} have one")
    name = str(fields.pop("metric", "") or "").removeprefix("diffs.") if kind == "grid" else ""
    score = str(fields.pop("metric", "") or "")
    over = "all" if kind in OVER_HEADS and not fields.get("prompt") else "prompt"
    if kind == "strip":
        fields["strip"] = score or "received"
    settled = asked(source, a, b, over=over, metric=name, **fields)
    if kind != "heads":
        return draw.FIGURES[kind](source, settled, theme)
    there = scores(source, settled.selection.a, settled.selection.b)
    found, side = score_named(source, settled, score or preferred(there, "", ()))
    return draw.heads(source, settled, found, side, theme)
