"""The panel that gives heads back: which ones, the command, the job that runs it, and what restores have found."""

from __future__ import annotations

import sys
from typing import Any

from dash import Dash, Input, Output, State, ctx, dcc, html, no_update

from sparselens.dashboards.access import from_own_page
from sparselens.dashboards.choice import SHAPE
from sparselens.dashboards.compare.repair import highest, repair_figure, repairs
from sparselens.dashboards.compare.repair_wish import TOPS, refusal, top_heads, wish
from sparselens.dashboards.job import Job
from sparselens.dashboards.page import PAIR, chosen, message, panel, part, parts, problem
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection

PICK_FIELDS = part("a", "b", "prompt", "over", "scope", "rows", "brush", "picked")
SEEN = "These heads were ranked on the very prompts that they are tried on, so they do better here than on others."
CLI = (sys.executable, "-P", "-m", "sparselens.workbench.cli")
SELECTED = "the selection is empty: choose two runs"


def repair_panel() -> Any:
    """The panel before anything is drawn in it."""
    buttons = [
        html.Button("Run it", id="job-run", type="button", className="primary", disabled=True),
        html.Button("Stop", id="job-stop", type="button", className="action", hidden=True),
    ]
    choice = html.Div(
        [
            html.Div(id="pick-heads"),
            html.Div(id="pick-command"),
            html.Div(
                [*buttons, html.Span(id="pick-cost", className="note")], className="controls job-controls"
            ),
            html.Div(id="job", **{"aria-live": "polite"}),
        ]
    )
    return panel(
        "Give heads back",
        *parts(PICK_FIELDS),
        dcc.Store(id="job-done", data=0),
        dcc.Interval(id="job-tick", interval=1000),
        html.Div([choice, html.Div(id="repairs")], className="columns repair-columns"),
        note="does the answer come back, and with random heads of the same layers?",
    )


def _picked(selection: Selection, ranked: list[str]) -> Any:
    """Buttons for the first heads of the ranking, and the picked heads, each to be put back by a click."""
    names = selection.picked.names if selection.picked else []
    tops = [
        html.Button(
            f"Top {count}",
            type="button",
            className="action",
            disabled=len(ranked) < count,
            title=f"The {count} heads of largest write error over the rows above",
            **{"data-pick-only": ",".join(ranked[:count])},
        )
        for count in TOPS
    ]
    clear = html.Button("None", type="button", className="action", **{"data-pick-only": ""})
    chips = [
        html.Button(
            name,
            type="button",
            className="sample",
            title=f"Leave {name} out",
            **{"data-pick": name, "aria-label": f"Leave {name} out"},
        )
        for name in names
    ]
    some = chips or [
        html.Span("No heads are picked: tick them in the ranked table, or take the first.", className="note")
    ]
    return [html.Div([*tops, clear], className="controls"), html.Div(some, className="picked")]


def _command(line: str, why: str) -> list[Any]:
    """The command to copy, and why the server does not start it, where it does not."""
    copy = html.Button("Copy the command", type="button", className="action", **{"data-copy": "pick-line"})
    lines = [html.Pre(line, className="command", id="pick-line"), copy]
    if why:
        words = f"This server does not start it: {why}. If you trust this trace, run the command yourself."
        lines.append(html.P(words, className="note said"))
    return [*lines, html.P(SEEN, className="note")]


def _choice(source: Source, selection: Selection) -> tuple[Any, Any, Any, bool]:
    """The picked heads, the command, what it costs, and whether the button is off."""
    asked, price = wish(source, selection)
    why = refusal(asked, _shape(source, selection))
    picked = _picked(selection, top_heads(source, selection))
    if not asked.heads:
        return picked, None, None, True
    try:
        line = asked.line(source.path)
    except ValueError as odd:
        return picked, message(f"{str(odd).capitalize()}."), None, True
    return picked, _command(line, why), "" if why else f"{price}.", bool(why)


def register_repair(app: Dash, source: Source) -> None:
    """Wire the panel to the selection and to the one job of this server."""

    def draw_choice(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.b:
            return None, None, None, True
        try:
            return _choice(source, selection)
        except SourceError as trouble:
            return problem(trouble), None, None, True

    app.callback(
        Output("pick-heads", "children"),
        Output("pick-command", "children"),
        Output("pick-cost", "children"),
        Output("job-run", "disabled"),
        Input(PICK_FIELDS, "data"),
    )(draw_choice)
    _register_job(app, source, Job())

    def draw_repairs(data: dict[str, Any] | None, done: int | None) -> Any:
        del done
        selection = chosen(data)
        if selection is None:
            return None
        try:
            found = repairs(source, selection)
        except SourceError as trouble:
            return problem(trouble)
        if not found:
            return message("No restore of this pair is in the trace yet. Pick heads, and run the command.")
        high = highest(found)
        return [repair_figure(each, high) for each in found]

    app.callback(Output("repairs", "children"), Input(PAIR, "data"), Input("job-done", "data"))(draw_repairs)


def _shape(source: Source, selection: Selection) -> tuple[int, int]:
    found = source.first(SHAPE, a=selection.a)
    return found["layers"], found["heads"]


def started(source: Source, job: Job, selection: Selection | None) -> str:
    """Start the restore that the selection asks for; returns why not, empty where it runs."""
    if not from_own_page():
        return "only a page of this server may start it"
    if selection is None or not selection.b:
        return SELECTED
    try:
        asked, _ = wish(source, selection)
        why = refusal(asked, _shape(source, selection))
        if not why:
            job.start(
                f"Restore of {len(asked.heads)} heads under {asked.policy}",
                [*CLI, *asked.arguments(source.path)],
            )
    except ValueError as problem_found:  # SourceError is one
        return str(problem_found)
    return why


def _register_job(app: Dash, source: Source, job: Job) -> None:
    def turn(
        run: int | None, stop: int | None, ticks: int | None, data: dict[str, Any] | None, done: int | None
    ) -> Any:
        del run, stop, ticks
        why = ""
        if ctx.triggered_id == "job-run":
            why = started(source, job, chosen(data))
        elif ctx.triggered_id == "job-stop" and from_own_page():
            job.stop()
        state = job.state()
        still = not state.running
        ended = ctx.triggered_id == "job-tick" and state.name and still
        return job_figure(state, why), still, still, (done or 0) + 1 if ended else no_update

    app.callback(
        Output("job", "children"),
        Output("job-tick", "disabled"),
        Output("job-stop", "hidden"),
        Output("job-done", "data"),
        Input("job-run", "n_clicks"),
        Input("job-stop", "n_clicks"),
        Input("job-tick", "n_intervals"),
        State(PICK_FIELDS, "data"),
        State("job-done", "data"),
    )(turn)


def job_figure(state: Any, why: str = "") -> Any:
    """The job in a line or two: what runs and how far it is, or how it ended; `why` it was not started."""
    lines = [html.P(f"Not started: {why}.", className="note said")] if why else []
    if not state.name:
        return lines
    took = f"{state.seconds:.0f} s"
    if state.running:
        lines.append(
            html.P([html.B(f"{state.name} runs, {took}"), f" · {state.last or 'loading the model'}"])
        )
    elif state.stopped:
        lines.append(html.P(f"{state.name} was stopped after {took}; run it again and it goes on."))
    elif state.code == 0:
        lines.append(html.P(f"{state.name} is done after {took}: its bars are beside."))
    else:
        lines.append(html.P(f"{state.name} failed after {took}: {state.last}", className="note said"))
    return lines
