"""The panel of restores and ablations."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output, dcc, html

from sparselens.dashboards.export.link import save_buttons
from sparselens.dashboards.page import chosen, message, panel, part, problem, switch
from sparselens.dashboards.picker import filled
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.retrieval.study import (
    HEADS,
    TRIALS,
    about,
    figure,
    heads_figure,
    label,
    studies,
    table,
    told,
)
from sparselens.dashboards.selection import Selection

STUDY_FIELDS = part("a", "b", "study", "outcome")


def study_panel() -> Any:
    """The panel before anything is drawn in it."""
    return panel(
        "Give heads back, or cut them",
        html.Div(id="study-lists", className="controls"),
        html.Div(id="study"),
        tools=[
            switch(
                "Outcome",
                "outcome",
                [
                    ("change", "Change"),
                    ("answer_nll", "Answer NLL"),
                    ("whole_answer", "Answered"),
                    ("first_token", "First token"),
                ],
            ),
            save_buttons(),
        ],
        note="does the answer come back, and with random heads?",
        name="panel-study",
    )


def restore_command(source: Source, selection: Selection | None) -> str:
    """The command that fills the panel, for the policy of run B."""
    policy = "a_shape(sink=4,window=64)"
    if selection is not None and selection.b:
        found = source.first("SELECT policy FROM runs WHERE run_id = $b", b=selection.b)
        policy = found.get("policy") or policy
    return f'sparselens analyse restore --model smollm2-135m --policy "{policy}" --trace {source.path}'


def _study(source: Source, selection: Selection) -> Any:
    found = studies(source, selection.b)
    if not found:
        return None, message(
            "No heads were given back or cut in this trace.", restore_command(source, selection)
        )
    study = next((each for each in found if each["analysis_id"] == selection.study), found[0])
    rows = source.records(TRIALS, study=study["analysis_id"])
    metric = told(rows, selection.outcome)
    names = [{"value": each["analysis_id"], "label": label(each)} for each in found]
    lists = filled("study", "Study", "Which restore or ablation", names, study["analysis_id"], wide=True)
    drawn = html.Div(
        [
            html.Div(
                [
                    dcc.Graph(
                        figure=figure(rows, metric), config={"displaylogo": False}, className="study-graph"
                    ),
                    html.Div(
                        [html.P(line, className="note") for line in about(rows, study, metric, selection)],
                        className="notes",
                    ),
                ]
            ),
            html.Div(
                [
                    html.Div(table(rows, metric), className="scroll"),
                    html.H3("The heads of the largest sets"),
                    heads_figure(source.records(HEADS, study=study["analysis_id"])),
                ]
            ),
        ],
        className="columns",
    )
    return lists, drawn


def register_study(app: Dash, source: Source) -> None:
    """Wire the panel to the selection."""

    def draw(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None:
            return None, None
        try:
            return _study(source, selection)
        except SourceError as found:
            return None, problem(found)

    app.callback(Output("study-lists", "children"), Output("study", "children"), Input(STUDY_FIELDS, "data"))(
        draw
    )
