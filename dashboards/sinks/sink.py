"""The sink tokens of a prompt: which tokens receive much, in which layers, in A and in B; and the text with them."""

from __future__ import annotations

from typing import Any

from sparselens.analyses.sinks.profile import ranges
from sparselens.dashboards.colour import level
from sparselens.dashboards.verdict import number

RECEIVED = 0.1
"""A token is a sink of a layer where its heads give it more than this: the default of `analyse sinks`."""
EDGE = 8
"""The last eighth of a prompt, and at least so many tokens, is never judged: what is local looks like a sink there."""
STATS = """
WITH written AS (
  SELECT run_id, layer, pos, avg(value_write_norm) AS written FROM value_norms
  WHERE run_id IN ($a, $b) AND prompt_id = $prompt GROUP BY ALL
), stats AS (
  SELECT t.run_id, t.layer, t.pos, t.received_mass, t.resid_norm, w.written,
         t.pos < p.n_tokens - greatest($edge, p.n_tokens // $edge) AND t.received_mass > $received AS sinks
  FROM token_stats t JOIN prompts p USING (prompt_id) LEFT JOIN written w USING (run_id, layer, pos)
  WHERE t.run_id IN ($a, $b) AND t.prompt_id = $prompt
), usual AS (
  SELECT run_id, layer, median(resid_norm) FILTER (WHERE pos > 0 AND NOT sinks) AS norm,
         median(written) FILTER (WHERE pos > 0 AND NOT sinks) AS written
  FROM stats GROUP BY ALL
)
"""
SINK_TOKENS = (
    STATS
    + """
SELECT s.pos, k.text,
       list(s.layer ORDER BY s.layer) FILTER (s.sinks AND s.run_id = $a) AS layers_a,
       list(s.layer ORDER BY s.layer) FILTER (s.sinks AND s.run_id = $b) AS layers_b,
       max(s.received_mass) FILTER (s.run_id = $a) AS received_a,
       max(s.received_mass) FILTER (s.run_id = $b) AS received_b,
       max(s.resid_norm / nullif(u.norm, 0)) FILTER (s.run_id = $a) AS norm_a,
       max(s.resid_norm / nullif(u.norm, 0)) FILTER (s.run_id = $b) AS norm_b,
       avg(s.written / nullif(u.written, 0)) FILTER (s.sinks AND s.run_id = $a) AS write_a,
       avg(s.written / nullif(u.written, 0)) FILTER (s.sinks AND s.run_id = $b) AS write_b
FROM stats s JOIN usual u USING (run_id, layer) LEFT JOIN tokens k ON k.prompt_id = $prompt AND k.pos = s.pos
GROUP BY s.pos, k.text HAVING bool_or(s.sinks) ORDER BY greatest(received_a, received_b) DESC, s.pos
"""
)
TEXT = """
WITH received AS (
  SELECT pos, max(received_mass) FILTER (run_id = $a) AS a, max(received_mass) FILTER (run_id = $b) AS b
  FROM token_stats WHERE run_id IN ($a, $b) AND prompt_id = $prompt AND ($among = 'any' OR layer = $layer)
  GROUP BY pos
)
SELECT t.pos, t.text, t.is_special, round(r.a::DOUBLE, 4) AS a, round(r.b::DOUBLE, 4) AS b,
       round((r.b - r.a)::DOUBLE, 4) AS diff
FROM tokens t LEFT JOIN received r USING (pos) WHERE t.prompt_id = $prompt ORDER BY t.pos
"""
FATES = {
    "both": "a sink in A and in B",
    "lost": "a sink in A only",
    "new": "a sink in B only",
    "a": "a sink in A",
}


def fate(row: dict[str, Any], *, pair: bool, layer: int | None = None) -> str:
    """What became of a sink token from A to B: `both`, `lost`, `new`; `a` without a B, empty where it is none.

    With a layer, in that layer alone.
    """
    before, after = (
        bool(row[name]) and (layer is None or layer in row[name]) for name in ("layers_a", "layers_b")
    )
    if not pair:
        return "a" if before else ""
    return "both" if before and after else "lost" if before else "new" if after else ""


def token_rows(rows: list[dict[str, Any]], *, pair: bool) -> list[dict[str, Any]]:
    """Rows of the table of sink tokens: layers as ranges, what became of them."""
    return [
        {
            **{name: value for name, value in row.items() if not name.startswith("layers")},
            "text": "▯" if row["text"] is None else row["text"],
            "layers_a": ranges(_list(row["layers_a"])),
            "layers_b": ranges(_list(row["layers_b"])),
            "fate": FATES.get(fate(row, pair=pair), ""),
        }
        for row in rows
    ]


def _list(value: Any) -> list[int]:
    return [] if value is None else [int(each) for each in value]


def plain_lists(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose layers are plain lists."""
    return [{**row, "layers_a": _list(row["layers_a"]), "layers_b": _list(row["layers_b"])} for row in rows]


def text_figure(
    rows: list[dict[str, Any]], sinks: list[dict[str, Any]], *, pair: bool, layer: int | None
) -> dict[str, Any]:
    """The prompt's tokens as plain data: shaded by the mass they receive, sink tokens marked.

    `layer`: the layer that is looked at, None for the largest of all layers.
    """
    values = {name: [row[name] for row in rows] for name in ("a", "b", "diff")}
    high = max((value for side in ("a", "b") for value in values[side] if value is not None), default=1.0)
    change = max((abs(value) for value in values["diff"] if value is not None), default=1.0)
    bends = {"a": (0.0, high), "b": (0.0, high), "diff": (-change, change)}
    marks = {str(row["pos"]): fate(row, pair=pair, layer=layer) for row in sinks}
    where = "largest over layers" if layer is None else f"layer {layer}"
    return {
        "kind": "sinks",
        "only": "" if pair else "a",
        "texts": [row["text"] if row["text"] is not None else "▯" for row in rows],
        "special": [bool(row["is_special"]) for row in rows],
        "spans": [],
        "marks": {pos: mark for pos, mark in marks.items() if mark},
        "notes": {pos: FATES[mark] for pos, mark in marks.items() if mark},
        "values": values,
        "labels": {"a": "received in A", "b": "received in B", "diff": "B − A"},
        "levels": {
            name: [_bent(value, *bends[name]) for value in values[name]] for name in ("a", "b", "diff")
        },
        "legends": {
            "a": f"A: mass received, {where}, 0 to {number(high)} (√ scale)",
            "b": f"B: mass received, {where}, 0 to {number(high)} (√ scale)",
            "diff": f"B − A of the mass received, {where}: −{number(change)} (blue) to +{number(change)} (orange), √",
        },
    }


def _bent(value: float | None, low: float, high: float) -> int | None:
    """The colour step on a square-root scale, from its centre where it has two sides."""
    if value is None or high <= 0:
        return None if value is None else level(0.0, low, high)
    size = (abs(value) / high) ** 0.5 * high
    return level(-size if value < 0 else size, low, high)
