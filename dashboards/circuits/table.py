"""Tables of two circuits: what each node does, what the policy cut of their reads, what circuits share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dash import html

from sparselens.dashboards.circuits.circuit import Circuits, label, whole
from sparselens.dashboards.query import Source
from sparselens.dashboards.verdict import number, percent
from sparselens.storage import schema

_MEASURED = ("direct", "ablated", "minimality")
_NUMBERS = ("score", *(f"{name}{end}" for name in _MEASURED for end in ("", "_low", "_high")))
NODES = f"""
SELECT node, any_value(layer) AS layer, any_value(head) AS head,
       {", ".join(f"max({name}) FILTER (circuit = ${side}) AS {name}_{side}" for side in "ab" for name in _NUMBERS)},
       bool_or(in_circuit) FILTER (circuit = $a) AS in_a, bool_or(in_circuit) FILTER (circuit = $b) AS in_b
FROM circuit_nodes WHERE circuit IN ($a, $b) AND node IS NOT NULL GROUP BY node
ORDER BY greatest(abs(score_a), abs(score_b)) DESC NULLS LAST, node
"""
READS = """
SELECT read, layer, head, 'L' || layer || 'H' || head AS head_name, mass_base, kept, mass,
       mass_base * (1 - kept) AS cut, n
FROM circuit_reads WHERE circuit = $circuit AND policy = $policy
ORDER BY cut DESC NULLS LAST, mass_base DESC NULLS LAST, read, layer, head
"""
BY_READ = """
SELECT read, count(*)::BIGINT AS heads, sum(mass_base) AS mass_base, sum(mass) AS mass,
       sum(mass_base * kept) / nullif(sum(mass_base), 0) AS kept,
       arg_max('L' || layer || 'H' || head, mass_base) AS best, max(mass_base) AS best_mass
FROM circuit_reads WHERE circuit = $circuit AND policy = $policy
GROUP BY read ORDER BY sum(mass_base * (1 - kept)) DESC NULLS LAST, mass_base DESC NULLS LAST, read
"""
OVERLAPS = """
SELECT circuit_a, circuit_b, level, size, among, shared, jaccard, expected, expected_jaccard, p, spearman
FROM circuit_overlaps WHERE circuit_a IN ($a, $b) OR circuit_b IN ($a, $b)
ORDER BY circuit_a = circuit_b, circuit_a, circuit_b, level, size
"""
CUT = 0.5
"""A read counts as cut where less than this share of the base's mass on it is on kept keys."""


def defined(table: str, column: str) -> str:
    """What a column means, in the schema's words, without its unit."""
    return schema.TABLES[table][column].meaning


NUMERIC = {"type": "rightAligned", "cellRenderer": "Number"}
_HEAD = {
    "field": "head_name",
    "headerName": "Head",
    "cellRenderer": "HeadLink",
    "width": 80,
    "pinned": "left",
}
_TITLES = {"score": "score", "direct": "writes itself", "ablated": "ablated", "minimality": "minimality"}
READ_COLUMNS: list[dict[str, Any]] = [
    {"field": "read", "headerName": "row → key", "minWidth": 110, "flex": 1, "cellClass": "mono"},
    _HEAD,
    {"field": "mass_base", "headerName": "base mass", "width": 100, **NUMERIC,
     "headerTooltip": defined("circuit_reads", "mass_base")},
    {"field": "kept", "headerName": "kept", "width": 76, **NUMERIC,
     "headerTooltip": defined("circuit_reads", "kept")},
    {"field": "cut", "headerName": "cut", "width": 76, **NUMERIC,
     "headerTooltip": "base mass × the share of prompts in which the key is not kept"},
    {"field": "mass", "headerName": "under policy", "width": 120, **NUMERIC,
     "headerTooltip": defined("circuit_reads", "mass")},
]  # fmt: skip


def nodes(source: Source, circuits: dict[str, Any]) -> list[dict[str, Any]]:
    """The senders of one or two circuits with what is known of each, by |score|; `circuits` are `a` and `b`."""
    return whole(source.records(NODES, **circuits), "layer", "head")


def edge_columns(*, pair: bool) -> list[dict[str, Any]]:
    """Columns of the table of edges: score and place in A and, where there is one, in B."""
    first = {
        "field": "edge",
        "headerName": "Edge",
        "cellRenderer": "EdgeLink",
        "width": 164,
        "pinned": "left",
    }
    made: list[dict[str, Any]] = [first]
    for side in "ab" if pair else "a":
        name = f" {side.upper()}" if pair else ""
        tip = {"headerTooltip": defined("circuit_edges", "score")}
        made.append({"field": f"score_{side}", "headerName": f"score{name}", "width": 80, **NUMERIC, **tip})
        tip = {"headerTooltip": "place by |score| among the edges that are stored"}
        place = {"field": f"rank_{side}", "headerName": f"place{name}", "width": 78}
        made.append({**place, "type": "rightAligned", **tip})
    last = {"field": "kind", "headerName": "in", "minWidth": 74, "flex": 1}
    return [*made, last]


def node_columns(*, pair: bool) -> list[dict[str, Any]]:
    """Columns of the table of heads: each measure of A beside B's."""
    sides = "ab" if pair else "a"
    made = [
        {
            "field": f"{name}_{side}",
            "headerName": f"{title} {side.upper()}" if pair else title,
            "headerTooltip": defined("circuit_nodes", name),
            "type": "rightAligned",
            "cellRenderer": "Number" if name == "score" else "Measured",
            "width": 88 if name == "score" else 172,
        }
        for name, title in _TITLES.items()
        for side in sides
    ]
    inside = {"field": "inside", "headerName": "in", "minWidth": 70, "flex": 1}
    return [_HEAD, *made, inside]


def node_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The heads among the nodes that are in a circuit or were ablated."""
    return [
        {
            **row,
            "head_name": f"L{row['layer']}H{row['head']}",
            "inside": " ".join(side for side, name in (("A", "in_a"), ("B", "in_b")) if row[name]),
        }
        for row in rows
        if row["layer"] is not None
        and row["head"] is not None
        and (row["in_a"] or row["in_b"] or row["ablated_a"] is not None or row["ablated_b"] is not None)
    ]


def reads_figure(rows: Sequence[dict[str, Any]], *, sparse: bool) -> Any:
    """The task's reads, summed over the circuit's heads."""
    names = [
        "row → key",
        "heads",
        "Σ base mass",
        "most in",
        *(["kept", "Σ under policy", ""] if sparse else []),
    ]
    body = []
    for row in rows:
        cells = [row["heads"], number(row["mass_base"], 2), f"{row['best']} ({number(row['best_mass'], 2)})"]
        if sparse:
            cut = row["kept"] is not None and row["kept"] < CUT
            cells += [percent(row["kept"]), number(row["mass"], 2), html.B("cut") if cut else ""]
        body.append(
            html.Tr([html.Th(row["read"], scope="row", className="mono"), *[html.Td(cell) for cell in cells]])
        )
    top = html.Tr([html.Th(name, scope="col") for name in names])
    return html.Table([html.Thead(top), html.Tbody(body)], className="numbers wide")


def overlap_table(rows: Sequence[dict[str, Any]], found: Circuits, a: str, b: str) -> Any:
    """A row two circuits and level: what they share, and what as many drawn at random would."""
    about = {
        "shared": defined("circuit_overlaps", "shared"),
        "at random": defined("circuit_overlaps", "expected"),
        "Jaccard": defined("circuit_overlaps", "jaccard"),
        "p": defined("circuit_overlaps", "p"),
        "ρ": defined("circuit_overlaps", "spearman"),
    }
    names = ("circuit", "with", "best", "shared", "at random", "Jaccard", "p", "ρ")
    top = [
        html.Th(html.Abbr(name, title=about[name]) if name in about else name, scope="col") for name in names
    ]
    body = [
        html.Tr(
            [
                html.Th(_named(row["circuit_a"], found, a, b), scope="row"),
                html.Td(
                    "itself, on two halves of its prompts"
                    if row["circuit_a"] == row["circuit_b"]
                    else _named(row["circuit_b"], found, a, b)
                ),
                html.Td(f"{_count(row['size'])} {row['level']} of {_count(row['among'])}"),
                html.Td(_count(row["shared"])),
                html.Td(number(row["expected"], 1)),
                html.Td(f"{number(row['jaccard'], 2)} ({number(row['expected_jaccard'])} at random)"),
                html.Td("< 1e-300" if row["p"] == 0 else number(row["p"])),
                html.Td("" if row["spearman"] is None else number(row["spearman"], 2)),
            ]
        )
        for row in rows
    ]
    return html.Table([html.Thead(html.Tr(top)), html.Tbody(body)], className="numbers wide")


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _named(circuit: str, found: Circuits, a: str, b: str) -> Any:
    """A circuit by its badge, or by its name."""
    side = {a: "A", b: "B"}.get(circuit)
    if side:
        return html.Span(side, className="badge on")
    known = found.get(circuit)
    return html.Span(label(known) if known else circuit, className="mono")
