"""What the pages fetch beside Dash's callbacks: map images and cells, reads of a token, SQL results as files.

Every address is a view of the URL's own selection, so it can be opened on its own. Also here: what a browser
may load, compression. Who is answered at all: `access.py`.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from flask import Flask, Response, request
from pyarrow import parquet

from sparselens.dashboards.asset import Packer, brotli, encoding
from sparselens.dashboards.export import figure_route
from sparselens.dashboards.export.table import csv_text
from sparselens.dashboards.head.heatmap import side_cells
from sparselens.dashboards.head.reads import reads
from sparselens.dashboards.heads.multiple import layer_png
from sparselens.dashboards.picture import png
from sparselens.dashboards.query import FILE_ROWS, SECONDS, Source, SourceError, one_line
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.sinks.strip import strip_cells, strip_png
from sparselens.storage.reader import Result

POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
)
KEEP = {"Cache-Control": "private, max-age=600"}  # their addresses change with the trace
FOREVER = "public, max-age=31536000, immutable"  # the address of an asset changes with it
CODE = ("/_dash-component-suites/", "/assets/")
SWIFT = 4  # quality of brotli for what is answered once
WORTH = ("application/json", "text/", "application/javascript", "image/svg")


def register(server: Flask, source: Source) -> None:
    """Add the routes to the application's server; every answer but code is of the trace as it is then."""

    def look() -> None:
        if not request.path.startswith(CODE):
            source.look()

    server.before_request(look)

    def view_reads() -> Response:
        return _answer(lambda selection: server.json.response(reads(source, selection)))

    server.get("/view/reads")(view_reads)

    def view_map() -> Response:
        def draw(selection: Selection) -> Response:
            drawn = side_cells(source, selection, selection.side)
            theme = "dark" if request.args.get("theme") == "dark" else "light"
            return Response(png(drawn.values, drawn.scale, theme), mimetype="image/png", headers=KEEP)

        return _answer(draw, "theme", "seen")

    server.get("/view/map.png")(view_map)

    def view_layer() -> Response:
        def draw(selection: Selection) -> Response:
            theme = "dark" if request.args.get("theme") == "dark" else "light"
            return Response(layer_png(source, selection, theme), mimetype="image/png", headers=KEEP)

        return _answer(draw, "theme", "seen")

    server.get("/view/layer.png")(view_layer)

    def view_tokens() -> Response:
        def pack(selection: Selection) -> Response:
            cells, _ = strip_cells(source, selection)
            return Response(cells.astype("<f4").tobytes(), mimetype="application/octet-stream", headers=KEEP)

        return _answer(pack, "seen")

    server.get("/view/tokens")(view_tokens)

    def view_strip() -> Response:
        def draw(selection: Selection) -> Response:
            theme = "dark" if request.args.get("theme") == "dark" else "light"
            return Response(strip_png(source, selection, theme), mimetype="image/png", headers=KEEP)

        return _answer(draw, "theme", "seen")

    server.get("/view/tokens.png")(view_strip)

    def view_cells() -> Response:
        def pack(selection: Selection) -> Response:
            drawn = side_cells(source, selection, selection.side)
            return Response(
                drawn.values.astype("<f4").tobytes(), mimetype="application/octet-stream", headers=KEEP
            )

        return _answer(pack, "seen")

    server.get("/view/cells")(view_cells)

    def view_csv() -> Response:
        return _answer(lambda selection: _csv(source, selection.sql))

    server.get("/view/sql.csv")(view_csv)

    def view_parquet() -> Response:
        return _answer(lambda selection: _parquet(source, selection.sql))

    server.get("/view/sql.parquet")(view_parquet)
    figure_route.register(server, source, _answer)

    packer = Packer()
    server.after_request(lambda response: _finish(response, packer))


def _answer(make: Callable[[Selection], Response], *beside: str) -> Response:
    """The response for the request's selection; a trace's problem is one line of text and status 400."""
    search = "&".join(
        part for part in request.query_string.decode().split("&") if part.split("=")[0] not in beside
    )
    selection, complaints = Selection.parse(search)
    if complaints:
        return Response(complaints[0], 400, mimetype="text/plain")
    try:
        return make(selection)
    except SourceError as problem:
        return Response(str(problem), 400, mimetype="text/plain")


def _file(result: Result, body: str | bytes, ending: str, mimetype: str) -> Response:
    """A result as a file to keep; a header says whether rows were cut off."""
    headers = {
        "Content-Disposition": f"attachment; filename=sparselens.{ending}",
        "X-Truncated": str(result.truncated).lower(),
    }
    return Response(body, mimetype=mimetype, headers=headers)


def _csv(source: Source, sql: str) -> Response:
    result = source.ask(sql, max_rows=FILE_ROWS, timeout=SECONDS)
    return _file(result, csv_text(result.columns, result.rows), "csv", "text/csv")


def _parquet(source: Source, sql: str) -> Response:
    result = source.ask(sql, max_rows=FILE_ROWS, timeout=SECONDS)
    out = io.BytesIO()
    try:
        parquet.write_table(result.arrow(), out, compression="zstd")
    except pa.ArrowException as problem:
        raise SourceError(f"this result cannot be written as Parquet: {one_line(problem)}") from problem
    return _file(result, out.getvalue(), "parquet", "application/vnd.apache.parquet")


def _finish(response: Response, packer: Packer) -> Response:
    response.headers.setdefault("Content-Security-Policy", POLICY)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "no-referrer")
    if request.path.startswith("/assets/") and "m" in request.args and response.status_code == 200:
        response.headers["Cache-Control"] = FOREVER
    if (
        not (response.mimetype or "").startswith(WORTH)
        or response.status_code != 200
        or "Content-Encoding" in response.headers
    ):
        return response
    response.headers["Vary"] = "Accept-Encoding"
    how = encoding(request.headers.get("Accept-Encoding", ""))
    if not how:
        return response
    response.direct_passthrough = False
    body = response.get_data()
    if len(body) < 1000:
        return response
    if request.path.startswith(CODE):
        response.set_data(packer.packed(body, how))
    else:
        response.set_data(brotli(body, SWIFT) if how == "br" else gzip.compress(body, 4))
    response.headers["Content-Encoding"] = how
    return response


def as_floats(body: bytes) -> Any:
    """The cells of `/view/cells` as numbers, row by row (for tests and notebooks)."""
    return np.frombuffer(body, dtype="<f4")
