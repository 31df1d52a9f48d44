"""The named spans of a prompt, as links into its text."""

from __future__ import annotations

from typing import Any

from dash import html

SPANS = "SELECT name, start, stop FROM spans WHERE prompt_id = $prompt ORDER BY start, name"


def span_links(spans: list[dict[str, Any]]) -> list[Any]:
    """The prompt's spans as buttons that scroll the text to them."""
    return [
        html.Button(
            [span["name"], html.Small(f" {span['start']}–{span['stop'] - 1}")],
            type="button",
            className="span",
            title=f"Scroll to the span {span['name']}",
            **{"data-scroll": str(span["start"])},
        )
        for span in spans
    ]
