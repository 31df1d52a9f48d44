"""Components as plain data: what the browser draws is what Dash would have drawn, and nothing that could run."""

from __future__ import annotations

import pytest
from dash import dcc, html

from sparselens.dashboards.drawing import tree


def test_components_become_tags_attributes_and_children() -> None:
    part = html.Td(
        ["a ", html.B(3, className="x"), None, html.Details(html.Summary("s"), open=True)],
        colSpan=2,
        style={"width": "3%"},
        **{"aria-label": "l", "data-go": "{}"},
    )
    assert tree(part) == [
        "td",
        {"colspan": "2", "style": {"width": "3%"}, "aria-label": "l", "data-go": "{}"},
        {
            "list": [
                "a ",
                ["b", {"class": "x"}, "3"],
                ["details", {"open": ""}, ["summary", {}, "s"]],
            ]
        },
    ]
    assert tree(None) is None
    assert tree(html.Details(open=False)) == ["details", {}, None]


def test_what_has_callbacks_of_its_own_is_refused() -> None:
    with pytest.raises(TypeError, match=r"dash_core_components.Graph is no HTML"):
        tree([html.P("x"), html.Div(dcc.Graph())])
