"""Buttons in the head of a panel that keep its figure as a file, with title, scale and caption."""

from __future__ import annotations

from typing import Any

from dash import html

from sparselens.dashboards.export.figure import FORMS


def save_buttons(kind: str = "") -> Any:
    """`SVG` and `PNG` of a figure (`grid`, `heads`, `map`, `layer`, `text`, `reads`, `strip`) of what is selected.

    Without a kind, of the Plotly figure that lies in the same panel: the browser draws it anew with the panel's title
    and notes around it.
    """
    return html.Span(
        [
            html.Button(
                form.upper(),
                type="button",
                className="action save",
                title=f"Save this figure with title, scale and caption as {form.upper()}",
                **{"data-save": f"{kind or 'graph'}.{form}", "aria-label": f"Save as {form.upper()}"},
            )
            for form in FORMS
        ],
        className="saves",
        role="group",
        **{"aria-label": "Save the figure"},
    )
