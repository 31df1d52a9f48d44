"""The frame around every page: navigation, the pair and prompt that are looked at, help, notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dash import dcc, html

from sparselens.dashboards.colour import variables
from sparselens.dashboards.page import PAIR, Page, message, parts
from sparselens.dashboards.picker import picker

KEYS = (
    ("← ↑ → ↓", "move to the neighbouring head"),
    ("[  ]", "previous, next prompt"),
    ("s", "swap A and B"),
    ("Shift + ← →", "brush the text token by token (Compare)"),
    ("Esc", "clear the query, the brush, the zoom and the rectangle"),
    ("?", "this list"),
)
INDEX = """<!DOCTYPE html>
<html lang="en" data-theme="light">
<head>{%metas%}<title>{%title%}</title><link rel="icon" href="/assets/favicon.svg?m=1">
{%css%}<style>PALETTE</style></head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>"""


def index() -> str:
    """The HTML document: nothing from elsewhere, colours of both themes as variables."""
    palette = f":root{{{variables('light')}}}[data-theme=dark]{{{variables('dark')}}}"
    return INDEX.replace("PALETTE", palette)


def shell(trace: Path, pages: list[Page]) -> Any:
    """The layout every page lives in."""
    return html.Div(
        [
            dcc.Location(id="url", refresh=False),
            dcc.Store(id="selection"),
            *parts(PAIR),
            html.A("Skip to the page", href="#page", className="skip"),
            _top(trace, pages),
            _context(),
            html.Div(id="notices", **{"aria-live": "polite"}),
            html.Main(id="page", tabIndex="-1"),
            _help(),
            html.Div(id="tip", hidden=True, role="tooltip"),
            html.Div(id="status", role="status"),
        ]
    )


def _top(trace: Path, pages: list[Page]) -> Any:
    links = [html.A(page.name, href=page.path, className="nav", **{"data-page": page.path}) for page in pages]
    return html.Header(
        [
            html.A("SparseLens", href="/", className="brand", **{"data-page": "/"}),
            html.Nav(links, **{"aria-label": "Pages"}),
            html.Span(trace.name or str(trace), className="trace", title=str(trace)),
            _action("copy", "Copy link", "Copy a link to exactly this view"),
            _action("help", "?", "Keyboard shortcuts"),
            _action("theme", "◐", "Switch between light and dark"),
        ],
        className="top",
    )


def _action(name: str, text: str, label: str) -> Any:
    return html.Button(
        text, type="button", className="action", title=label, **{"data-action": name, "aria-label": label}
    )


def _context() -> Any:
    return html.Div(
        [
            picker("a", "A", "BASE: the run compared with", wide=True),
            _action("swap", "⇄", "Swap A and B (s)"),
            picker("b", "B", "RUN: the run that is looked at", wide=True),
            html.Div(
                [
                    picker("prompt", "Prompt", "Prompt", wide=True),
                    _action("previous", "‹", "Previous prompt ([)"),
                    _action("next", "›", "Next prompt (])"),
                ],
                className="with-steps",
            ),
        ],
        className="context",
        role="group",
        **{"aria-label": "What is compared"},
    )


Options = list[dict[str, str]]


def options(runs: list[dict[str, Any]], prompts: list[dict[str, Any]]) -> tuple[Options, Options, Options]:
    """The lists of the pickers A, B and prompt: runs by name and policy, prompts by name and length."""
    named = [{"value": run["run_id"], "label": run_label(run)} for run in runs]
    sized = [
        {"value": row["prompt_id"], "label": f"{row['name'] or row['prompt_id']} · {row['n_tokens']} tokens"}
        for row in prompts
    ]
    return named, named, sized


def run_label(run: dict[str, Any]) -> str:
    """A run in one line: its name, its policy when the name does not say it, its status unless complete."""
    words = [run["name"]]
    if run["policy"] and run["policy"] not in run["name"]:
        words.append(run["policy"])
    if run["status"] != "complete":
        words.append(run["status"])
    return " · ".join(words)


def notices(lines: list[str], advice: str = "") -> Any:
    """What was ignored or is missing, one line each."""
    if not lines:
        return None
    return message(" ".join(lines), advice)


def _help() -> Any:
    rows = [html.Tr([html.Td(html.Kbd(keys)), html.Td(meaning)]) for keys, meaning in KEYS]
    return html.Dialog(
        [html.H2("Keys"), html.Table(html.Tbody(rows)), _action("close", "Close", "Close this list")],
        id="help",
        **{"aria-label": "Keyboard shortcuts"},
    )
