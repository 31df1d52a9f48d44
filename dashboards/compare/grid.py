"""The layer × head grid of one metric of `diffs`, and the rows it is drawn from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dash import html

from sparselens.dashboards.choice import SCOPES
from sparselens.dashboards.colour import level
from sparselens.dashboards.compare.floor import FLOOR_OF_HEADS
from sparselens.dashboards.metric import DIFF_METRICS, metric
from sparselens.dashboards.query import records
from sparselens.dashboards.verdict import number

HEADS = """
WITH floor AS ({floor})
SELECT layer, head, 'L' || layer || 'H' || head AS head_name, count(DISTINCT prompt_id) AS n_prompts,
       sum(n_rows) AS n_rows, {metrics},
       coalesce(avg(write_error) <= any_value(f.value), false) AS under_floor
FROM diffs LEFT JOIN floor f USING (layer, head)
WHERE run_a = $a AND run_b = $b AND scope = $scope AND rows = $rows AND ($over = 'all' OR prompt_id = $prompt)
GROUP BY layer, head ORDER BY layer, head
""".replace("{metrics}", ", ".join(f"avg({name}) AS {name}" for name in DIFF_METRICS)).replace(
    "{floor}", f"SELECT layer, head, value FROM ({FLOOR_OF_HEADS.strip()}) WHERE metric = 'noise_write_error'"
)
"""`under_floor`: another kernel changes as much in what the base's head writes as the run does."""
UNDER = "at or under the noise floor"
HOLDS_ZERO = "the 95 % interval holds 0"
At = tuple[int, int]


def grid_figure(
    frame: Any,
    name: str,
    shape: tuple[int, int],
    group: int = 0,
    roles: Mapping[At, str] | None = None,
    unsure: Collection[At] = (),
    *,
    means: str = "",
) -> dict[str, Any]:
    """A layer × head grid as plain data: `values` row by row, layer 0 first; None where there is no row.

    `shape` is (layers, heads); `group` is the number of query heads that share a key-value head. `roles` are labels by
    layer and head, whose cells are outlined; `unsure` are the heads whose interval holds 0, whose cells are hatched.
    `means` is said in place of the metric's own meaning.
    """
    drawn = metric(name)
    layers, heads = shape
    values: list[float | None] = [None] * (layers * heads)
    for row in records(frame[["layer", "head", name]]):
        values[row["layer"] * heads + row["head"]] = row[name]
    under = [False] * (layers * heads)
    if name == "write_error" and "under_floor" in frame:
        for row in records(frame[["layer", "head", "under_floor"]]):
            under[row["layer"] * heads + row["head"]] = row["under_floor"]
    places = [(layer, head) for layer in range(layers) for head in range(heads)]
    labels = [(roles or {}).get(place, "") for place in places]
    hatched = [place in unsure for place in places]
    known = [value for value in values if value is not None]
    high = 1.0 if drawn.share else max((abs(value) for value in known), default=0.0)
    low = -high if drawn.signed else 0.0
    return {
        "label": f"{name} of every head, layers down, heads across",
        "metric": name,
        "meaning": means or drawn.meaning,
        "layers": layers,
        "heads": heads,
        "group": group,
        "scale": "div" if drawn.signed else "seq",
        "low": low,
        "high": high,
        "values": values,
        "texts": [
            ", ".join([number(value), *([UNDER] if below else []), *([HOLDS_ZERO] if hatch else [])])
            + (f" · {label}" if label else "")
            for value, below, hatch, label in zip(values, under, hatched, labels, strict=True)
        ],
        "under": under,
        "roles": [bool(label) for label in labels],
        "unsure": hatched,
        "levels": [level(value, low, high) for value in values],
    }


def legend(figure: dict[str, Any], scope: str = "", floor: Sequence[str] = ()) -> Any:
    """The colour bar of a grid with its ends, the metric's definition, what the scope compares, the noise floor."""
    return html.Div(
        [
            html.Span(number(figure["low"])),
            html.Span(className=f"bar {figure['scale']}"),
            html.Span(number(figure["high"])),
            html.Span(f"{figure['metric']}: {figure['meaning']}", className="note"),
            html.Span(f"{scope}: {SCOPES[scope]}", className="note") if scope in SCOPES else None,
            *[html.Span(line, className="note floor") for line in [*floor, *_marks(figure)]],
        ],
        className="colour-bar",
    )


def _marks(figure: dict[str, Any]) -> list[str]:
    """What outlines and hatching mean, where there are any, and how many heads have them."""
    lines = []
    if any(figure["roles"]):
        lines.append(
            f"outlined: {sum(figure['roles'])} heads with a role in A (analyse roles); hover names it"
        )
    if any(figure["unsure"]):
        lines.append(
            f"hatched: {sum(figure['unsure'])} heads whose 95 % interval over groups of prompts holds 0"
        )
    return lines
