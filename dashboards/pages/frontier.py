"""Frontier: what sweeps found. Quality against measured density, one phase and prompt set at a time."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output, dcc, html
from pandas import isna

from sparselens.analyses.sweep.dots import dots
from sparselens.analyses.sweep.frontier import POINTS, figure, headline, marks, ranked, wide
from sparselens.analyses.sweep.metric import METRICS
from sparselens.dashboards.choice import NO_RUN
from sparselens.dashboards.export.link import save_buttons
from sparselens.dashboards.page import PAIR, Page, message, panel, problem
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import number

MANY = 6
"""Points of one density from which on they are also drawn one below the other."""
KEY = (
    "Lines join a method's points; bars are 95 % intervals. Grey: the oracle (–) and random selections (×) of each "
    "point's own shape. Hollow: off-label, not ranked. Square: some calls ran dense. Triangle: nearest density that "
    "the method has."
)


def table_figure(frame: Any, metric: str) -> Any:
    """The points of one phase and prompt set, ranked by a metric, as a table."""
    names = headline(frame)
    shown = [*names, *[f"{name}_over_random" for name in names]]
    titles = {name: METRICS[name] for name in names}
    titles |= {f"{name}_over_random": f"{METRICS[name]}; minus that of random selections" for name in names}
    head = ["rank", "policy", "density"]
    cells = [html.Th(name, scope="col") for name in head]
    cells += [html.Th(html.Abbr(_spoken(name), title=titles[name]), scope="col") for name in shown]
    rows = [
        html.Tr(
            [
                html.Td(_rank(row["rank"])),
                html.Th(_called(row), scope="row", className="mono"),
                html.Td(number(row["density"])),
                *[html.Td(_cell(row, name)) for name in shown],
                html.Td(marks(row)),
            ]
        )
        for _, row in ranked(frame, metric).iterrows()
    ]
    return html.Table(
        [html.Thead(html.Tr([*cells, html.Th("", scope="col")])), html.Tbody(rows)], className="numbers"
    )


def _spoken(name: str) -> str:
    return name.replace("_over_random", " − random").replace("_", " ")


def _called(row: Any) -> Any:
    """The method; the whole call, which may be long, behind it."""
    return html.Details([html.Summary(row["method"].partition("(")[0]), row["policy"]])


def _rank(value: Any) -> str:
    return "–" if isna(value) else str(value)


def _cell(row: Any, name: str) -> str:
    """A number and its interval."""
    if name not in row or isna(row[name]):
        return ""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    interval = "" if isna(low) else f" [{number(low)}, {number(high)}]"
    return f"{number(row[name])}{interval}"


def sections(frame: Any) -> list[Any]:
    """A panel for each prompt set and phase: a figure a metric, and the table."""
    made = []
    for place, ((prompts, phase), points) in enumerate(frame.groupby(["prompts", "phase"])):
        graphs = [
            html.Figure(
                [
                    html.Figcaption([_spoken(metric), save_buttons()], title=METRICS[metric]),
                    dcc.Graph(figure=figure(points, metric), config={"displaylogo": False}),
                ],
                className="frontier-figure",
            )
            for metric in headline(points)
        ]
        made.append(
            panel(
                f"{phase}",
                html.P(KEY, className="note"),
                html.Div(graphs, className="columns frontier-columns"),
                *_dots(points),
                html.Div(table_figure(points, "recalled_mass"), className="frontier-table"),
                note=str(prompts),
                name=f"panel-frontier-{place}",
            )
        )
    return made


def _dots(points: Any) -> list[Any]:
    """A figure for each density that many points share."""
    counts = points.groupby("target").size()
    return [
        html.Figure(
            [
                html.Figcaption(
                    [
                        f"{count} methods asked for a density of {number(target)}, by recalled mass",
                        save_buttons(),
                    ]
                ),
                dcc.Graph(figure=dots(points, headline(points), target), config={"displaylogo": False}),
            ],
            className="frontier-figure frontier-dots",
        )
        for target, count in counts.items()
        if count >= MANY
    ]


def settle(source: Source, selection: Selection, notices: list[str]) -> Selection:
    """The selection as it is; sweeps need no captured run, so that none is there is not said."""
    if NO_RUN in notices and not source.frame(POINTS, analysis=None).empty:
        notices.remove(NO_RUN)
    return selection


def layout() -> Any:
    """The page before anything is drawn in it."""
    return html.Div(html.Div(id="frontier"), className="frontier-page")


def register(app: Dash, source: Source) -> None:
    """Wire the page to the trace."""

    def draw(_: dict[str, Any] | None) -> Any:
        try:
            frame = wide(source.frame(POINTS, analysis=None))
        except SourceError as found:
            return problem(found)
        if frame.empty:
            return message("No sweep is in this trace.", sweep_command(source))
        return sections(frame)

    app.callback(Output("frontier", "children"), Input(PAIR, "data"))(draw)


def sweep_command(source: Source) -> str:
    """The command that fills this page."""
    return (
        'sparselens sweep smollm2-135m --prompts "needles(length=512,n=16)" --policy "a_shape(sink=4,window=64)" '
        f'--policy "vertical_slash(vertical=60,slash=100)" --density 0.1,0.25 --trace {source.path}'
    )


PAGE = Page("Frontier", "/frontier", 7, layout, register, settle)
