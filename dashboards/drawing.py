"""Places that the browser fills itself: text, tables and buttons as plain data, without a Dash component for each cell.

A panel of some hundred cells takes Dash tenths of a second to take in; `assets/drawing.js` builds it at once.
Components are written as everywhere; `tree` turns them into data. Only HTML can be drawn so: what has callbacks of its
own, a graph or a table of AG Grid, cannot.
"""

from __future__ import annotations

from typing import Any

from dash import Output, dcc, html
from dash.development.base_component import Component

RENAMED = {
    "className": "class",
    "htmlFor": "for",
    "tabIndex": "tabindex",
    "colSpan": "colspan",
    "rowSpan": "rowspan",
}
HTML = "dash_html_components"


def place(name: str, **properties: Any) -> Any:
    """An element of that id and the store that `drawn` fills for it."""
    return html.Div([dcc.Store(id={"tree": name}), html.Div(id=name, **{"data-tree": name}, **properties)])


def drawn(name: str) -> Output:
    """The output of a callback that fills the place; the callback returns a `tree`."""
    return Output({"tree": name}, "data")


def tree(part: Any) -> Any:
    """Components as data: a text, a list, or `[tag, attributes, children]`; None draws nothing.

    Raises TypeError for a component that is no HTML.
    """
    if part is None or isinstance(part, str):
        return part
    if isinstance(part, list | tuple):
        return {"list": [tree(each) for each in part if each is not None]}
    if not isinstance(part, Component):
        return str(part)
    made = part.to_plotly_json()
    if made["namespace"] != HTML:
        raise TypeError(
            f"{made['namespace']}.{made['type']} is no HTML: give it an id and an output of its own"
        )
    attributes = {
        RENAMED.get(name, name): value if name == "style" else "" if value is True else str(value)
        for name, value in made["props"].items()
        if name != "children" and value is not None and value is not False
    }
    return [made["type"].lower(), attributes, tree(made["props"].get("children"))]
