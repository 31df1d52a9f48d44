"""Heads by a score: the layer × head grid and the ranked table of it, with intervals and roles."""

from __future__ import annotations

from typing import Any

from dash import html

from sparselens.analyses.roles.labels import labels
from sparselens.dashboards.colour import level
from sparselens.dashboards.heads.score import DIFFS
from sparselens.dashboards.heads.score_value import Values
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Box
from sparselens.dashboards.verdict import number

ROLE_SCORES = """
SELECT layer, head, metric, value FROM head_scores
WHERE run_id = $run AND head IS NOT NULL AND value IS NOT NULL AND json_extract_string(params, '$.fold') IS NULL
QUALIFY row_number() OVER (PARTITION BY layer, head, metric ORDER BY analysis_id DESC) = 1
"""
NAMES = {"a": "A", "b": "B", "diff": "B − A"}
TOPS = (("20", "20"), ("10", "10"), ("50", "50"), ("0", "all"))
ORDERS = (("high", "Highest"), ("low", "Lowest"))


def roles(source: Source, run: str) -> dict[tuple[int, int], str]:
    """The labels that `analyse roles` prints for the heads of a run, by layer and head; none where it was not run."""
    return source.kept(f"roles of {run}", lambda: _roles(source, run))


def labelled(source: Source, a: str, b: str) -> tuple[str, dict[tuple[int, int], str]]:
    """Whose roles are shown, and the roles: A's, else B's; an empty name where neither was measured."""
    for name, run in (("A", a), ("B", b)):
        found = roles(source, run) if run else {}
        if any(found.values()):
            return name, found
    return "", {}


def _roles(source: Source, run: str) -> dict[tuple[int, int], str]:
    by_head: dict[tuple[int, int], dict[str, float]] = {}
    for row in source.records(ROLE_SCORES, run=run):
        by_head.setdefault((row["layer"], row["head"]), {})[row["metric"]] = row["value"]
    return {head: ", ".join(labels(found)) for head, found in by_head.items()}


def side_name(values: Values, side: str) -> str:
    """Whose numbers these are, as the page says it."""
    return "B against A" if values.score.table == DIFFS else NAMES.get(side, "")


def score_range(values: Values, side: str) -> tuple[float, float]:
    """The ends of the colour scale: one for A and B, centred at zero for differences and signed scores."""
    if side == "diff" and values.score.table != DIFFS:
        numbers = values.of("diff")
    else:
        numbers = [value for each in values.score.sides if each != "diff" for value in values.of(each)]
        numbers = numbers or values.of("diff")
    high = max((abs(value) for value in numbers), default=0.0)
    if values.score.share and values.score.table == DIFFS:
        high = 1.0
    centred = values.score.signed or min(numbers, default=0.0) < 0
    centred = centred or (side == "diff" and values.score.table != DIFFS)
    return (-high if centred else 0.0), high


def grid_figure(values: Values, side: str, shape: tuple[int, int], group: int) -> dict[str, Any]:
    """The layer × head grid of one side as plain data for the browser, row by row, layer 0 first."""
    layers, heads = shape
    low, high = score_range(values, side)
    cells: list[float | None] = [None] * (layers * heads)
    for row in values.rows:
        if row["layer"] < layers and row["head"] < heads:
            cells[row["layer"] * heads + row["head"]] = row.get(side)
    said = f"{values.score.label} of {side_name(values, side)}"
    return {
        "label": f"{said}, every head, layers down, heads across",
        "metric": said,
        "layers": layers,
        "heads": heads,
        "group": group,
        "scale": "div" if low < 0 else "seq",
        "low": low,
        "high": high,
        "values": cells,
        "texts": [number(value) if value is not None else "not in the trace" for value in cells],
        "levels": [level(value, low, high) for value in cells],
    }


def grid_legend(figure: dict[str, Any], values: Values, side: str) -> Any:
    """The colour bar with its ends, the score's definition, and what it was computed over."""
    return html.Div(
        [
            html.Span(number(figure["low"])),
            html.Span(className=f"bar {figure['scale']}"),
            html.Span(number(figure["high"])),
            html.Span(f"{values.score.label}: {values.score.meaning}", className="note"),
            html.Span(f"{side_name(values, side)} · {values.over.get(side, '')}", className="note over"),
        ],
        className="colour-bar",
    )


def columns(values: Values, side: str, named: str) -> list[dict[str, Any]]:
    """Columns of the finder: head, the score with its interval, the other runs' where there are, roles."""
    bounded = any(row.get(f"{side}_low") is not None for row in values.rows)
    others = [each for each in ("a", "b", "diff") if each in values.score.sides and each != side]
    numeric = {"type": "rightAligned", "cellRenderer": "Number"}
    interval = {
        "field": "interval", "headerName": "95 %", "width": 128, "sortable": False, "type": "rightAligned",
        "headerTooltip": "bootstrap over groups (needle family, template), paired by prompt; none of one prompt",
    }  # fmt: skip
    return [
        {"field": "head_name", "headerName": "Head", "cellRenderer": "HeadLink", "width": 80, "pinned": "left"},
        {"field": side, "headerName": side_name(values, side), "width": 104, **numeric,
         "headerTooltip": f"{values.score.label}: {values.score.meaning}"},
        *([interval] if bounded else []),
        *[{"field": each, "headerName": NAMES[each], "width": 80, **numeric} for each in others],
        {"field": "roles", "headerName": "Roles", "minWidth": 150, "flex": 1, "tooltipField": "roles",
         "headerTooltip": f"labels by stated rules on the scores of {named} (docs/roles.md); not stored"},
    ]  # fmt: skip


def ranked(
    values: Values,
    side: str,
    named: dict[tuple[int, int], str],
    *,
    top: int,
    order: str,
    among: set[str] | None,
) -> list[dict[str, Any]]:
    """The first `top` heads (0: all) by a side's number, signed ones by size; `among` are the brushed ones."""
    there = [
        row
        for row in values.rows
        if row.get(side) is not None and (among is None or row["head_name"] in among)
    ]
    sized = score_range(values, side)[0] < 0
    there.sort(key=lambda row: abs(row[side]) if sized else row[side], reverse=order == "high")
    return [
        {
            **{name: row.get(name) for name in ("layer", "head", "head_name", "a", "b", "diff")},
            "interval": _interval(row.get(f"{side}_low"), row.get(f"{side}_high")),
            "roles": named.get((row["layer"], row["head"]), ""),
        }
        for row in there[: top or None]
    ]


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{number(low)}, {number(high)}]"


def inside(box: Box | None, points: list[dict[str, Any]]) -> set[str] | None:
    """Names of the heads in a rectangle of the scatter plot; None without one."""
    if box is None:
        return None
    return {
        point["head_name"]
        for point in points
        if box.x_low <= point["x"] <= box.x_high and box.y_low <= point["y"] <= box.y_high
    }


def both(one: set[str] | None, other: set[str] | None) -> set[str] | None:
    """Heads that two choices leave; None is a choice that leaves all."""
    return one & other if one is not None and other is not None else other if one is None else one
