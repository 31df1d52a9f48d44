"""HTML documents that stand alone: autoescaped templates, one style and one script, pinned by their hashes.

The Content-Security-Policy of each document allows exactly that style, that script, and pictures inside the document.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sparselens.dashboards.colour import LEVELS, variables
from sparselens.dashboards.export.svg import clean
from sparselens.dashboards.export.token import broken, token_class, token_levels, token_said
from sparselens.dashboards.verdict import number, percent

FOLDER = Path(__file__).parent / "templates"
STYLE = Path(__file__).parents[1] / "assets" / "sparselens.css"
BLOCK = re.compile(r'^(:root|\[data-theme="dark"\]) \{(.*?)\}', re.MULTILINE | re.DOTALL)


@cache
def templates() -> Environment:
    """The templates; whatever is put into them is escaped, and stripped of control characters."""
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    made.filters.update(number=number, percent=percent, script_data=script_data, broken=broken)
    made.filters.update(token_class=token_class, token_levels=token_levels, token_said=token_said)
    return made


def page(template: str, script: str, style: str, **values: Any) -> str:
    """One document of a template, with the text of a script and a style in it."""
    code = (FOLDER / script).read_text(encoding="utf-8")
    return (
        templates()
        .get_template(template)
        .render(
            policy=policy(style, code),
            style=Markup(style),  # noqa: S704 - our own files and colours
            script=Markup(code),  # noqa: S704 - our own file
            **values,
        )
    )


def policy(style: str, script: str) -> str:
    """The Content-Security-Policy of a document with this style and this script."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def style(theme: str = "system", sheet: str = "export.css", heads: int = 1) -> str:
    """The style of a document: the pages' variables and colours, one class a colour step, and a file of ours.

    `theme` is light, dark, or what the reader's system prefers.
    """
    ours = {kind: f"{_variables(kind)}{variables(kind)}" for kind in ("light", "dark")}
    if theme == "system":
        root = f":root{{{ours['light']}}}@media (prefers-color-scheme: dark){{:root{{{ours['dark']}}}}}"
    elif theme in ours:
        root = f":root{{{ours[theme]}}}"
    else:
        raise ValueError(f"no theme {theme!r}; themes are system, {', '.join(ours)}")
    steps = "".join(
        f".{kind[0]}{step}{{background:var(--{kind}-{step});color:var(--on-{kind}-{step})}}"
        for kind in ("seq", "div")
        for step in range(LEVELS + 1)
    )
    return f"{root}:root{{--heads:{heads}}}{steps}\n{(FOLDER / sheet).read_text(encoding='utf-8')}"


@cache
def _variables(theme: str) -> str:
    """The pages' own variables of a theme, from their style sheet."""
    blocks = dict(BLOCK.findall(STYLE.read_text(encoding="utf-8")))
    return " ".join(blocks[":root" if theme == "light" else '[data-theme="dark"]'].split()) + ";"


def script_data(value: Any) -> Markup:
    """Plain data as JSON for a `script` element of type application/json: no `<`, `>` or `&` is left in it."""
    said = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        said = said.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(said)  # noqa: S704 - escaped above


def _hash(content: str) -> str:
    return "sha256-" + b64encode(hashlib.sha256(content.encode()).digest()).decode()
