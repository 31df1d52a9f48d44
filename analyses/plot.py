"""How figures look: grey lines and words on nothing, so that one figure stands on light and on dark paper. No torch."""

from __future__ import annotations

import plotly.graph_objects as go

GREY = "#8a8f98"
GRID = "rgba(138,143,152,0.25)"
DOT = "#4b8bd0"
CHOSEN = "#dd7a2a"
_AXIS = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID}
LOOK = go.layout.Template(
    layout={
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": GREY, "size": 12},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)
"""The template of every figure; a figure adds its titles, margins and height."""
