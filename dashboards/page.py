"""What a page is, and which there are: every module of `dashboards/pages` that exposes `PAGE`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import dash_ag_grid as dag
from dash import Dash, dcc, html

from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection

Part = dict[str, Any]


@dataclass(frozen=True)
class Page:
    """One page: `layout()` is its empty panels, `register(app, source)` its callbacks.

    `settle(source, selection, notices)` fills the fields that only this page reads from what the trace has, and adds
    a line to the notices for each that it replaced.
    """

    name: str
    path: str
    order: int
    layout: Callable[[], Any]
    register: Callable[[Dash, Source], None]
    settle: Callable[[Source, Selection, list[str]], Selection] | None = None


def pages() -> list[Page]:
    """All pages in the order of the navigation; two with one name or path raise ValueError."""
    package = import_module("sparselens.dashboards.pages")
    found: list[Page] = []
    for module in iter_modules(package.__path__):
        page = getattr(import_module(f"{package.__name__}.{module.name}"), "PAGE", None)
        if page is None:
            continue
        if any(page.name == other.name or page.path == other.path for other in found):
            raise ValueError(f"two pages are called {page.name!r} or lie at {page.path!r}")
        found.append(page)
    return sorted(found, key=lambda page: page.order)


def part(*fields: str) -> dict[str, str]:
    """Id of the store that follows these fields of the selection and nothing else."""
    return {"type": "part", "fields": ",".join(fields)}


HIDDEN = {"display": "none"}
PAIR = part("a", "b")  # the shell's own store: every page may listen to it


def parts(*ids: dict[str, str]) -> list[Any]:
    """The stores of a page, one for each distinct id."""
    return [dcc.Store(id=dict(each)) for each in {each["fields"]: each for each in ids}.values()]


def chosen(data: dict[str, Any] | None) -> Selection | None:
    """The selection a panel draws, from its part store; None before there is one."""
    return Selection.of(data["part"]) if data else None


def panel(title: str, *children: Any, tools: Sequence[Any] = (), note: str = "", name: str = "") -> Any:
    """A titled section of a page."""
    return html.Section(
        [
            html.Header(
                [
                    html.H2(title),
                    html.Span(note, className="note") if note else None,
                    html.Div(list(tools), className="tools"),
                ],
            ),
            *children,
        ],
        className="panel",
        id=name or f"panel-{title.lower().replace(' ', '-')}",
        **{"aria-label": title},
    )


def switch(label: str, name: str, options: Sequence[tuple[str, str]]) -> Any:
    """A group of buttons that set one field of the selection; the first option is the default."""
    initial = options[0][0]
    return html.Div(
        [
            html.Button(
                text,
                type="button",
                className="option",
                **{
                    "data-option": f"{name}={value}",
                    "data-initial": initial,
                    "aria-pressed": str(value == initial).lower(),
                },
            )
            for value, text in options
        ],
        className="switch",
        role="group",
        **{"aria-label": label},
    )


def message(text: str, command: str = "") -> Any:
    """An empty state: why there is nothing, and what to run."""
    return html.Div(
        [html.P(text), html.Pre(command, className="command") if command else None],
        className="message",
        role="status",
    )


def problem(found: SourceError) -> Any:
    """A problem of the trace as an empty state."""
    return message(str(found), found.advice)


def text_place(label: str, *, tall: bool = True) -> Any:
    """Where the browser puts a prompt's tokens; it scrolls, so that keys reach it."""
    return html.Div(
        id="text",
        className="text tall" if tall else "text",
        tabIndex="0",
        role="group",
        **{"aria-label": label},
    )


def table(name: str, columns: list[dict[str, Any]], classes: str = "table", *, row_height: int = 26) -> Any:
    """A table that is hidden until a callback gives it rows and a height; its columns are sortable and resizable."""
    return dag.AgGrid(
        id=name,
        columnDefs=columns,
        rowData=[],
        defaultColDef={"sortable": True, "resizable": True, "suppressMovable": True},
        dashGridOptions={
            "rowHeight": row_height,
            "headerHeight": row_height + 4,
            "tooltipShowDelay": 300,
            "animateRows": False,
        },
        className=classes,
        style=HIDDEN,
    )


def table_height(rows: int, row_height: int) -> dict[str, str]:
    """Style of a table that is as high as its rows, up to two thirds of the window."""
    return {"height": f"min(66vh, {52 + max(rows, 1) * row_height}px)"}
