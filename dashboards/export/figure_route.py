"""`/view/figure/grid.svg` and the like: the figures of the pages as files, each of the URL's own selection."""

from __future__ import annotations

import re
from collections.abc import Callable

from flask import Flask, Response, request

from sparselens.dashboards.choice import Settled, settle
from sparselens.dashboards.export import draw
from sparselens.dashboards.export.figure import FORMS, Figure
from sparselens.dashboards.heads.score import preferred, scores, whose
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection

Answer = Callable[..., Response]
HEADS = "heads"
KINDS = (*draw.FIGURES, HEADS)
MIMETYPES = {"svg": "image/svg+xml", "png": "image/png"}
NO_RUN = "This trace has no captured run."


def register(server: Flask, source: Source, answer: Answer) -> None:
    """Add the address to the server; `answer` turns the request's selection into a response."""

    def view_figure(kind: str, form: str) -> Response:
        if kind not in KINDS or form not in FORMS:
            there = f"{', '.join(KINDS)} as {' and '.join(FORMS)}"
            return Response(
                f"There is no figure {kind[:20]}.{form[:20]}; there are {there}.", 404, mimetype="text/plain"
            )

        def make(selection: Selection) -> Response:
            theme = "dark" if request.args.get("theme") == "dark" else "light"
            drawn = figure_of(source, kind, selection, theme)
            words = re.sub(r"[^A-Za-z0-9]+", "-", drawn.title).strip("-")[:80]
            named = {"Content-Disposition": f"attachment; filename={words or kind}.{form}"}
            return Response(drawn.written(form), mimetype=MIMETYPES[form], headers=named)

        return answer(make, "theme", "seen")

    server.get("/view/figure/<kind>.<form>")(view_figure)


def figure_of(source: Source, kind: str, selection: Selection, theme: str) -> Figure:
    """The figure of a selection as the pages show it; what is not chosen is filled as they fill it."""
    settled = settle(source, selection, [])
    if not settled.selection.a:
        raise SourceError(NO_RUN)
    if kind != HEADS and kind in draw.FIGURES:
        return draw.FIGURES[kind](source, settled, theme)
    return _heads(source, settled, theme)


def _heads(source: Source, settled: Settled, theme: str) -> Figure:
    selection = settled.selection
    there = scores(source, selection.a, selection.b)
    name = preferred(there, selection.score)
    if name not in there:
        raise SourceError("No numbers about heads are stored for these runs.")
    return draw.heads(source, settled, there[name], whose(there[name], selection.whose or "b"), theme)
