"""`sparselens policies`: which policies there are, with their parameters."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Annotated, Any

import typer


def policies(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of objects.")] = False,
) -> None:
    """List the policies: which keys each lets a query read. `path/file.py:NAME` works too."""
    from sparselens.kernels.policy import policies as found
    from sparselens.workbench.listing import show, written

    rows: list[dict[str, Any]] = []
    for name, kind in found().items():
        defaults = {entry.name: _default(entry) for entry in fields(kind)}
        if as_json:
            off_label = (
                kind.off_label if isinstance(kind.off_label, bool) else None
            )  # that of the policy inside
            about = {"card": kind.card, "source": kind.source, "off_label": off_label}
            rows.append({"name": name, "parameters": defaults, **about})
        else:
            rows.append({"name": name, "parameters": written(defaults), "source": kind.source})
    show(rows, as_json=as_json)


def _default(entry: Any) -> Any:
    """A field's default as it is written in a call; `required` where it has none."""
    if entry.default is not MISSING:
        plain = isinstance(entry.default, bool | int | float | str | tuple | None)
        return entry.default if plain else str(entry.default)
    return str(entry.default_factory()) if entry.default_factory is not MISSING else "required"


COMMAND = policies
