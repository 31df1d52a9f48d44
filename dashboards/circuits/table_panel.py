"""The panels of what circuits carry, of their heads, reads and overlaps."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output, dcc, html

from sparselens.dashboards.circuits.circuit import circuits, compared
from sparselens.dashboards.circuits.curve import (
    CURVES,
    MEANING,
    carried,
    figure,
    nothing_to_carry,
    own,
    under,
)
from sparselens.dashboards.circuits.table import (
    BY_READ,
    CUT,
    OVERLAPS,
    READ_COLUMNS,
    READS,
    defined,
    node_columns,
    node_rows,
    nodes,
    overlap_table,
    reads_figure,
)
from sparselens.dashboards.export.link import save_buttons
from sparselens.dashboards.page import HIDDEN, chosen, message, panel, part, problem, table, table_height
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.verdict import number

TABLE_FIELDS = part("circuit_a", "circuit_b")


def curve_panel() -> Any:
    """The curves before they are there."""
    return panel(
        "How much the edges carry", html.Div(id="circuit-curves"), note="on prompts that found none of them"
    )


def table_panels() -> list[Any]:
    """The tables before anything is in them."""
    return [
        panel(
            "Heads",
            html.P(id="circuit-heads-note", className="note"),
            table("circuit-heads", []),
            note="those in a circuit, and those that were ablated",
            name="panel-circuit-heads",
        ),
        panel(
            "Reads that the policy cut",
            html.Div(id="circuit-reads-note"),
            table("circuit-reads", READ_COLUMNS),
            note="from the task's rows to its keys",
            name="panel-reads",
        ),
        panel("Overlap", html.Div(id="circuit-overlaps", className="scroll"), note="what two circuits share"),
    ]


def register_tables(app: Dash, source: Source) -> None:
    """Wire curves, heads, reads and overlaps to the circuits."""
    nothing: tuple[Any, ...] = (None, [], [], HIDDEN, None, None, [], HIDDEN)

    def draw(data: dict[str, Any] | None) -> tuple[Any, ...]:
        selection = chosen(data)
        if selection is None or not selection.circuit_a:
            return nothing
        try:
            a, b = compared(source, selection)
            if not a:
                return nothing
            return curves_figure(source, a, b), *_heads(source, a, b), *_reads(source, a, b)
        except SourceError as trouble:
            return (problem(trouble), *nothing[1:])

    app.callback(
        Output("circuit-curves", "children"),
        Output("circuit-heads", "columnDefs"),
        Output("circuit-heads", "rowData"),
        Output("circuit-heads", "style"),
        Output("circuit-heads-note", "children"),
        Output("circuit-reads-note", "children"),
        Output("circuit-reads", "rowData"),
        Output("circuit-reads", "style"),
        Input(TABLE_FIELDS, "data"),
    )(draw)

    def draw_overlaps(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.circuit_a:
            return None
        try:
            a, b = compared(source, selection)
            return _overlaps(source, a, b) if a else None
        except SourceError as trouble:
            return problem(trouble)

    app.callback(Output("circuit-overlaps", "children"), Input(TABLE_FIELDS, "data"))(draw_overlaps)


def _asked(a: dict[str, Any], b: dict[str, Any] | None) -> dict[str, Any]:
    return {"a": a["circuit"], "b": b["circuit"] if b else None}


def curves_figure(source: Source, a: dict[str, Any], b: dict[str, Any] | None) -> Any:
    """The curves: each circuit under its own policy and, where B's policy is another, both under B's."""
    rows = source.records(CURVES, **_asked(a, b))
    sides = [("A", a), *([("B", b)] if b else [])]
    first = [(side, circuit, own(rows, circuit)) for side, circuit in sides]
    figures = [_curve("Each under its own policy", figure(first))]
    missing = None
    if b and b["policy"] != a["policy"]:
        second = [(side, circuit, under(rows, circuit, b["policy"])) for side, circuit in sides]
        if second[0][2]:
            figures.append(_curve(f"Both under B's policy, {b['policy']}", figure(second)))
        else:
            missing = html.P(
                "A's circuit was not run under B's policy: it is not the base that B was asked with.",
                className="note",
            )
    notes = [carried(side, circuit) for side, circuit in sides]
    grown = (
        "Edges taken by |score|; larger points: the circuit's own size. random: as many edges grown at random from "
        "the logits."
    )
    notes += [f"{MEANING}. {grown} Bars: 95 % bootstraps over clusters of test prompts."]
    warned = [side for side, circuit in sides if nothing_to_carry(circuit)]
    return [
        *[
            message(
                f"{side}: the whole model does no better than the ablated one, shares of that gap mean nothing."
            )
            for side in warned
        ],
        html.Div(figures, className="circuit-curves"),
        missing,
        html.Div([html.P(line, className="note") for line in notes], className="notes"),
    ]


def _curve(title: str, drawn: Any) -> Any:
    return html.Figure(
        [
            html.Figcaption([title, save_buttons()]),
            dcc.Graph(figure=drawn, config={"displayModeBar": False}, className="circuit-curve"),
        ]
    )


def _heads(source: Source, a: dict[str, Any], b: dict[str, Any] | None) -> tuple[Any, ...]:
    rows = node_rows(nodes(source, _asked(a, b)))
    tried = sum(row["ablated_a"] is not None or row["ablated_b"] is not None for row in rows)
    removed = sum(row["minimality_a"] is not None or row["minimality_b"] is not None for row in rows)
    note = (
        f"{len(rows)} heads, by |score|; {tried} were ablated alone, {removed} taken out of a circuit (minimality); "
        "empty: not tried. Brackets: 95 % bootstraps over clusters of test prompts. Hover a column for its definition."
    )
    return node_columns(pair=b is not None), rows, table_height(min(len(rows), 14), 26), note


def _reads(source: Source, a: dict[str, Any], b: dict[str, Any] | None) -> tuple[Any, ...]:
    """The reads of A's heads under B's policy, else of B's own heads, else of A's under its own."""
    tries = [(a, b["policy"]), (b, b["policy"])] if b else []
    for circuit, policy in [*tries, (a, a["policy"])]:
        asked = {"circuit": circuit["circuit"], "policy": policy}
        rows = source.records(READS, **asked)
        if rows:
            break
    else:
        return html.P("No reads are stored for these circuits.", className="note"), [], HIDDEN
    sparse = any(row["kept"] is not None and row["kept"] < 1 for row in rows)
    side = "A" if circuit is a else "B"
    cut = (
        f" cut: less than {CUT:.0%} of that mass is on kept keys."
        if sparse
        else " Every key is kept: under this policy nothing is cut."
    )
    note = (
        f"Heads of {side}'s circuit under {policy}: attention from the task's row to its key, mean over "
        f"{rows[0]['n']} clean prompts.{cut}"
    )
    summed = html.Div(reads_figure(source.records(BY_READ, **asked), sparse=sparse), className="scroll")
    return [html.P(note, className="note"), summed], rows, table_height(min(len(rows), 12), 26)


def _overlaps(source: Source, a: dict[str, Any], b: dict[str, Any] | None) -> Any:
    rows = source.records(OVERLAPS, **_asked(a, b))
    found = circuits(source)
    made: list[Any] = []
    if rows:
        made += [
            overlap_table(rows, found, a["circuit"], b["circuit"] if b else ""),
            html.P(
                "at random: what as many edges or heads drawn at random would share; p: of sharing at least as many "
                "(hypergeometric). A circuit with itself: its scores on two halves of the prompts it was found on, the "
                f"most that another can be expected to share. ρ: {defined('circuit_overlaps', 'spearman')}.",
                className="note",
            ),
        ]
    if b and not any({row["circuit_a"], row["circuit_b"]} == {a["circuit"], b["circuit"]} for row in rows):
        made.append(
            message(
                "A and B are not compared in this trace.",
                f'sparselens analyse "circuit_reuse(edges=200,heads=20)" --trace {source.path}',
            )
        )
    return made or html.P(
        f"Nothing is stored about overlaps; A's faithfulness is {number(a['faithfulness'], 2)}.",
        className="note",
    )
