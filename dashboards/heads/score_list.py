"""The lists that choose scores: one for the grid and the finder, one for each axis of the scatter plot."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, State, html

from sparselens.dashboards.choice import over
from sparselens.dashboards.drawing import drawn, place, tree
from sparselens.dashboards.heads.finder import NAMES
from sparselens.dashboards.heads.score import Score, options, rows_there, scores
from sparselens.dashboards.heads.score_value import Values, values
from sparselens.dashboards.page import chosen, part, problem, switch
from sparselens.dashboards.picker import filled
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import SIDES, Selection

SHOWN = ("a", "b", "prompt", "over", "scope", "rows", "score", "whose")
AXES = ("x", "x_whose", "y", "y_whose")
LIST_FIELDS = part("scope", "a", "b")


def shown(source: Source, selection: Selection, name: str) -> Values:
    """The values of the score that `score`, `x` or `y` of the selection names; SourceError when there is none."""
    found = scores(source, selection.a, selection.b)
    asked = getattr(selection, name)
    if asked not in found:
        raise SourceError(
            "No numbers about heads are stored for these runs.",
            f"sparselens analyse roles --model MODEL --trace {source.path}",
        )
    return values(source, found[asked], selection)


def side_switch(name: str, score: Score | None, now: str) -> Any:
    """Buttons for whose numbers are shown: those sides that the trace has of the score."""
    there = score.sides if score else SIDES
    made = switch("Whose", name, [("", ""), *[(side, NAMES[side]) for side in SIDES if side in there]])
    made.children = made.children[1:]
    for button in made.children:
        setattr(button, "aria-pressed", str(getattr(button, "data-option") == f"{name}={now}").lower())
    return made


def list_places() -> Any:
    """Where the lists of the grid and the finder go."""
    return html.Div(
        [
            place("score-list", className="place"),
            html.Div(id="score-sides"),
            place("over-lists", className="place"),
            switch("Over", "over", [("prompt", "This prompt"), ("all", "All prompts")]),
        ],
        className="controls",
    )


def axis_places() -> Any:
    """Where the lists of the axes go."""
    return html.Div(
        [
            html.Div(
                [place(f"{axis}-list", className="place"), html.Div(id=f"{axis}-sides")],
                className="axis-list",
            )
            for axis in ("x", "y")
        ],
        className="controls",
    )


def register_lists(app: Dash, source: Source) -> None:
    """Fill the lists when the pair changes."""

    def fill(data: dict[str, Any] | None, settled: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or settled is None or not selection.a:
            return None, None, None, None
        try:
            found = scores(source, selection.a, selection.b)
            kinds = over(source, selection.a, selection.b)
            rows = kinds.get(selection.scope) or rows_there(source, selection)
        except SourceError as trouble:
            return tree(problem(trouble)), None, None, None
        now = Selection.of(settled["values"])
        grouped = options(found)
        others = [filled("rows", "Rows", "Over which query rows", rows, now.rows)]
        if kinds:
            meant = "What is compared with what, in diffs"
            others.append(filled("scope", "Scope", meant, list(kinds), now.scope))
        axes = [
            filled(axis, axis, f"The score along {axis}", grouped, getattr(now, axis), wide=True)
            for axis in "xy"
        ]
        score = filled("score", "Score", "What the grid and the finder show", grouped, now.score, wide=True)
        return tuple(tree(each) for each in (score, others, *axes))

    app.callback(
        *[drawn(name) for name in ("score-list", "over-lists", "x-list", "y-list")],
        Input(LIST_FIELDS, "data"),
        State("selection", "data"),
    )(fill)
