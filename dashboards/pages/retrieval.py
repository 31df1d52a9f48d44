"""Retrieval: which needles are answered in A and B, which heads carried the answer, which bring it back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dash import Dash, Input, Output, html

from sparselens.dashboards.compare.key import shown as visible
from sparselens.dashboards.heads.finder import labelled
from sparselens.dashboards.page import (
    HIDDEN,
    Page,
    chosen,
    message,
    panel,
    part,
    parts,
    problem,
    switch,
    table,
    table_height,
)
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.retrieval.carrier import COLUMNS, RETRIEVAL_ABOUT, carrier_rows, carriers
from sparselens.dashboards.retrieval.needle import ANSWER, NEEDLES, how, needle_table, verdict
from sparselens.dashboards.retrieval.study import studies
from sparselens.dashboards.retrieval.study_panel import STUDY_FIELDS, register_study, study_panel
from sparselens.dashboards.selection import Selection

GRID_FIELDS = part("a", "b", "prompt", "needle")
CARRIER_FIELDS = part("a", "b", "prompt", "over", "scope")


def settle(source: Source, selection: Selection, notices: list[str]) -> Selection:
    """The selection with a study that the trace has: of B, else of its policy, else the newest."""
    found = [each["analysis_id"] for each in studies(source, selection.b)]
    if selection.study in found:
        return selection
    study = found[0] if found else ""
    if selection.study:
        notices.append(
            f"There is no study {selection.study[:60]!r} in this trace"
            + (", another was chosen." if study else ".")
        )
    return replace(selection, study=study)


def layout() -> Any:
    """The page before anything is drawn in it."""
    return html.Div(
        [
            *parts(GRID_FIELDS, CARRIER_FIELDS, STUDY_FIELDS),
            html.Header([html.H1("Retrieval")], className="page-head"),
            html.Div(
                [
                    panel(
                        "Needles",
                        html.Div(id="needle-verdict"),
                        html.Div(id="needles", className="scroll"),
                        tools=[switch("Shown", "needle", [("nll", "Answer NLL"), ("answered", "Answered")])],
                        note="depth down, length across; a click selects the prompt",
                    ),
                    panel(
                        "Heads that carried the answer",
                        html.Div(id="carrier-note"),
                        table("carriers", COLUMNS),
                        tools=[switch("Over", "over", [("prompt", "This prompt"), ("all", "All needles")])],
                        note="on the rows that predict it",
                        name="panel-carriers",
                    ),
                ],
                className="columns retrieval-columns needs-run",
            ),
            study_panel(),
        ],
        className="retrieval-page",
    )


def _register_needles(app: Dash, source: Source) -> None:
    def draw(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.a:
            return None, None
        try:
            rows = source.records(NEEDLES, a=selection.a, b=selection.b or None)
        except SourceError as found:
            return None, problem(found)
        if not rows:
            return None, message(
                "These runs have no prompt with the spans needle and answer.",
                'sparselens capture smollm2-135m --prompts "needles(length=[256,512],n=24)" --generate 8 '
                f'--policy "a_shape(sink=4,window=64)" --trace {source.path}',
            )
        pair = bool(selection.b)
        said = [
            html.P(verdict(rows, pair=pair), className="sentence"),
            html.P(
                f"{how(rows)} ✓ answered, ✗ not. NLL: nats a token of the answer, one scale for A and B; "
                f"{len(rows)} prompts, means where a cell has several.",
                className="note",
            ),
        ]
        return said, needle_table(rows, selection.needle, selection.prompt, pair=pair)

    app.callback(
        Output("needle-verdict", "children"), Output("needles", "children"), Input(GRID_FIELDS, "data")
    )(draw)


def _answer_note(source: Source, selection: Selection) -> list[Any]:
    """What the answer is, and what A and B generated."""
    if selection.over == "all":
        return []
    found = source.first(ANSWER, a=selection.a, b=selection.b or None, prompt=selection.prompt)
    words: list[Any] = ["The answer: ", html.Code(visible(found.get("answer"))), "."]
    for side, name in (("a", "A"), ("b", "B")):
        if found.get(side) is not None:
            words += [f" {name} wrote ", html.Code(visible(found[side])), "."]
    return [html.P(words, className="answer")] if found.get("answer") is not None else []


def _register_carriers(app: Dash, source: Source) -> None:
    def draw(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.a:
            return [], HIDDEN, None
        try:
            rows = carriers(source, selection)
            _, named = labelled(source, selection.a, selection.b)
            about = source.first(RETRIEVAL_ABOUT, a=selection.a, b=selection.b or None)
            answer = _answer_note(source, selection)
        except SourceError as found:
            return [], HIDDEN, problem(found)
        if not rows:
            return (
                [],
                HIDDEN,
                message(
                    "Nothing is stored about an answer: this prompt has no spans needle and answer, or no edges."
                ),
            )
        note = f"Heads that read the answer's place most, in A or in B ({len(rows)} of them)."
        if about.get("definition"):
            over = f"{about['prompt_set']}, {about['n']} runs"
            note += f" Retrieval score of {about['owner']}: {about['definition']}; {over}."
            lacking = None
        else:
            lacking = message(
                "Retrieval scores were measured under neither run's policy.",
                f"sparselens analyse roles --model smollm2-135m --trace {source.path}",
            )
        return (
            carrier_rows(rows, named),
            table_height(len(rows), 26),
            [*answer, html.P(note, className="note"), lacking],
        )

    app.callback(
        Output("carriers", "rowData"),
        Output("carriers", "style"),
        Output("carrier-note", "children"),
        Input(CARRIER_FIELDS, "data"),
    )(draw)


def register(app: Dash, source: Source) -> None:
    """Wire the panels to the selection."""
    _register_needles(app, source)
    _register_carriers(app, source)
    register_study(app, source)


PAGE = Page("Retrieval", "/retrieval", 3, layout, register, settle)
