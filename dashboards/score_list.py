"""The lists that choose scores: one for the grid and the finder, one for each axis of the scatter plot."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output, State, html

from sparselens.dashboards.choice import over
from sparselens.dashboards.finder import NAMES
from sparselens.dashboards.page import chosen, part, problem, switch
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.score import Score, options, rows_there, scores
from sparselens.dashboards.score_value import Values, values
from sparselens.dashboards.selection import SIDES, Selection
from sparselens.dashboards.shell import picker

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


def filled(made: Any, data: list[Any], value: str) -> Any:
    """A picker with its list and what is chosen in it."""
    select = made.children[1]
    select.data, select.value = data, value
    return made


def register_lists(app: Dash, source: Source) -> None:
    """Fill the lists when the pair changes."""

    def fill(data: dict[str, Any] | None, settled: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or settled is None or not selection.a:
            return None, None
        try:
            found = scores(source, selection.a, selection.b)
            kinds = over(source, selection.a, selection.b)
            rows = kinds.get(selection.scope) or rows_there(source, selection)
        except SourceError as trouble:
            return problem(trouble), None
        now = Selection.of(settled["values"])
        grouped = options(found)
        lists = [
            filled(
                picker("score", "Score", "What the grid and the finder show", wide=True), grouped, now.score
            ),
            html.Div(id="score-sides"),
            filled(picker("rows", "Rows", "Over which query rows"), rows, now.rows),
            filled(picker("scope", "Scope", "What is compared with what, in diffs"), list(kinds), now.scope)
            if kinds
            else None,
            switch("Over", "over", [("prompt", "This prompt"), ("all", "All prompts")]),
        ]
        axes = [
            html.Div(
                [
                    filled(
                        picker(axis, axis, f"The score along {axis}", wide=True), grouped, getattr(now, axis)
                    ),
                    html.Div(id=f"{axis}-sides"),
                ],
                className="axis-list",
            )
            for axis in ("x", "y")
        ]
        return lists, axes

    app.callback(
        Output("heads-lists", "children"),
        Output("axis-lists", "children"),
        Input(LIST_FIELDS, "data"),
        State("selection", "data"),
    )(fill)
