"""The panels of a head's numbers, its scores, and the roles and rows at the top of its page."""

from __future__ import annotations

import shlex
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, html

from sparselens.dashboards.choice import over
from sparselens.dashboards.drawing import drawn, place, tree
from sparselens.dashboards.head.number import (
    DAMAGE,
    SCORES,
    damage_figure,
    head_roles,
    role_chips,
    scores_figure,
    statistics,
    statistics_figure,
)
from sparselens.dashboards.heads.score import rows_there
from sparselens.dashboards.page import chosen, message, panel, part, problem
from sparselens.dashboards.picker import filled
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection

MODEL = "SELECT model FROM runs WHERE run_id = $a"
HEAD_FIELDS = part("a", "b", "prompt", "layer", "head", "rows")
SCORE_FIELDS = part("a", "b", "layer", "head")
ROW_FIELDS = part("scope", "b", "a")


def numbers_panel() -> Any:
    """The statistics and differences before anything is drawn in them."""
    return panel(
        "Numbers",
        place("statistics"),
        place("damage"),
        note="executed pattern; a name opens to its definition",
    )


def scores_panel() -> Any:
    """The scores before anything is drawn in them; they are filled when they come into view."""
    return panel(
        "Scores",
        place("head-scores", **{"data-seen": "seen-scores"}),
        note="what analyses measured of this head, over their own prompts; a name opens to its definition",
        name="panel-scores",
    )


def register_numbers(app: Dash, source: Source) -> None:
    """Wire the title, the roles and the numbers to the selection."""
    app.clientside_callback(
        ClientsideFunction("sparselens", "headTitle"),
        Output("head-title", "children"),
        Input(SCORE_FIELDS, "data"),
    )

    def draw_numbers(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or selection.layer is None or not selection.prompt:
            return None, tree(message("No head is chosen: this trace has no captured run.")), None
        try:
            roles = _roles(source, selection)
            table, damage = _numbers(source, selection)
        except SourceError as found:
            return None, tree(problem(found)), None
        return roles, tree(table), tree(damage)

    app.callback(
        Output("head-roles", "children"),
        drawn("statistics"),
        drawn("damage"),
        Input(HEAD_FIELDS, "data"),
    )(draw_numbers)

    def draw_rows(data: dict[str, Any] | None, settled: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or settled is None or not selection.a:
            return None
        try:
            rows = over(source, selection.a, selection.b).get(selection.scope) or rows_there(
                source, selection
            )
        except SourceError as found:
            return problem(found)
        now = Selection.of(settled["values"])
        return filled("rows", "Rows", "Over which query rows", rows, now.rows)

    app.callback(Output("head-rows", "children"), Input(ROW_FIELDS, "data"), State("selection", "data"))(
        draw_rows
    )


def _roles(source: Source, selection: Selection) -> list[Any]:
    at = (int(selection.layer or 0), int(selection.head or 0))
    return [
        chip
        for side in ("a", "b")
        if (run := getattr(selection, side))
        for chip in role_chips(side.upper(), head_roles(source, run, *at))
    ]


def _numbers(source: Source, selection: Selection) -> tuple[list[Any], list[Any] | None]:
    at = {name: getattr(selection, name) for name in ("a", "b", "prompt", "layer", "head")}
    rows, found = statistics(source, selection.rows, at)
    damage = source.records(DAMAGE, **at)
    n = next((f", {row['n_rows']:.0f} queries" for row in found if row["n_rows"] is not None), "")
    caption = html.P(f"Means over the rows {rows} of this prompt{n}.", className="note")
    table = statistics_figure(found)
    below = [html.H3("Difference B against A"), damage_figure(damage)] if damage else None
    return [caption, table], below


def register_scores(app: Dash, source: Source) -> None:
    """Wire the scores to the selection."""

    def draw(data: dict[str, Any] | None, seen: bool | None) -> Any:
        selection = chosen(data)
        if selection is None or not seen or selection.layer is None:
            return None
        asked: dict[str, Any] = {name: getattr(selection, name) for name in ("a", "layer", "head")}
        try:
            rows = source.records(SCORES, b=selection.b or None, **asked)
        except SourceError as found:
            return tree(problem(found))
        if not rows:
            model = source.first(MODEL, a=selection.a).get("model") or "MODEL"
            line = ["sparselens", "analyse", "roles", "--model", model, "--trace", str(source.path)]
            return tree(message("No analysis of these runs is in the trace.", shlex.join(line)))
        return tree(scores_figure(rows))

    app.callback(drawn("head-scores"), Input(SCORE_FIELDS, "data"), Input("seen-scores", "data"))(draw)
