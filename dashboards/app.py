"""The Dash application over one trace: `create_app` for tests and other servers, `serve` for the command.

Nothing is fetched from outside, nothing needs torch. State lives in the URL; the callback here settles it
against the trace (defaults, lists), the pages' callbacks draw the parts of it they name.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dash
from dash import ALL, ClientsideFunction, Dash, Input, Output, State
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from sparselens.dashboards import access, route, shell
from sparselens.dashboards.choice import Settled, lists, settle
from sparselens.dashboards.page import PAIR, Page, chosen, message, pages
from sparselens.dashboards.picker import choices
from sparselens.dashboards.query import Source, SourceError, one_line
from sparselens.dashboards.selection import Selection

LOG = logging.getLogger(__name__)
PORTS_TRIED = 50
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - named, not chosen
OPEN = "Whoever has this address can read the trace, and the network can read along: an SSH tunnel is safer."


def create_app(trace_path: Path | str, token: str | None = None) -> Dash:
    """The application over a trace folder; the folder may still be empty or missing, pages then say so.

    Without a token it answers this machine only, with one whoever shows it (`access.py`).
    """
    source = Source(trace_path, follow=False)
    found = pages()
    app = Dash(
        "sparselens.dashboards",
        assets_folder=str(Path(__file__).parent / "assets"),
        pages_folder="",
        use_pages=False,
        serve_locally=True,
        suppress_callback_exceptions=True,
        title="SparseLens",
        update_title="",
        index_string=shell.index(),
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
        on_error=_show_error,
        enable_mcp=False,
        add_log_handler=False,
    )
    app.layout = shell.shell(source.path, found)
    _register(app, source, found)
    for page in found:
        page.register(app, source)
    access.register(app.server, token)
    route.register(app.server, source)
    return app


def _register(app: Dash, source: Source, found: list[Page]) -> None:
    by_path = {page.path: page for page in found}

    def show_page(path: str | None) -> Any:
        page = by_path.get(path or "/")
        return page.layout() if page else message(f"There is no page {path}; there are {', '.join(by_path)}.")

    app.callback(Output("page", "children"), Input("url", "pathname"))(show_page)

    def settle_selection(path: str | None, search: str | None) -> tuple[Any, Any]:
        asked, complaints = Selection.parse(search or "")
        try:
            settled = settle(source, asked, complaints)
            page = by_path.get(path or "/")
            if page is not None and page.settle is not None:
                mine = page.settle(source, settled.selection, settled.notices)
                settled = replace(settled, selection=mine)
        except SourceError as problem:
            return None, shell.notices([*complaints, str(problem)], problem.advice)
        title = by_path[path].name if path in by_path else "no such page"
        seen = shared(settled, path or "/", search or "", title, source.state())
        return seen, shell.notices(settled.notices, settled.advice)

    app.callback(
        Output("selection", "data"),
        Output("notices", "children"),
        Input("url", "pathname"),
        Input("url", "search"),
    )(settle_selection)

    def fill_lists(data: dict[str, Any] | None) -> tuple[Any, ...]:
        selection = chosen(data)
        if selection is None:
            return [], [], []
        try:
            runs, prompts = lists(source, selection)
        except SourceError:
            return [], [], []
        return shell.options(runs, prompts)

    fields = ("a", "b", "prompt")
    app.callback(*[choices(field) for field in fields], Input(PAIR, "data"))(fill_lists)
    app.clientside_callback(ClientsideFunction("sparselens", "shown"), Input("page", "children"))
    app.clientside_callback(
        ClientsideFunction("sparselens", "follow"),
        Input("selection", "data"),
        Input({"list": ALL}, "data"),
        State({"list": ALL}, "id"),
    )
    app.clientside_callback(ClientsideFunction("sparselens", "settle"), Input("selection", "data"))
    app.clientside_callback(
        ClientsideFunction("sparselens", "share"),
        Output({"type": "part", "fields": ALL}, "data"),
        Input("selection", "data"),
        State({"type": "part", "fields": ALL}, "id"),
        State({"type": "part", "fields": ALL}, "data"),
    )
    app.clientside_callback(
        ClientsideFunction("sparselens", "trees"), Input({"tree": ALL}, "data"), State({"tree": ALL}, "id")
    )


def shared(settled: Settled, path: str, asked: str, page: str, state: int) -> dict[str, Any]:
    """The settled selection as the browser gets it; `seen` changes when the trace does."""
    selection = settled.selection
    title = " · ".join(
        word for word in (selection.head_name if page == "Head" else "", page, "SparseLens") if word
    )
    return {
        "path": path,
        "asked": asked,
        "search": selection.search(),
        "values": selection.spelled(),
        "prompts": settled.prompts,
        "shape": list(settled.shape),
        "group": settled.group,
        "title": title,
        "seen": str(state),
    }


def _show_error(error: Exception) -> None:
    """A callback failed: one line on the page, the traceback in the log."""
    LOG.error("a page's callback failed", exc_info=error)
    dash.set_props(
        "notices", {"children": message(f"This panel failed: {type(error).__name__}: {one_line(error)}")}
    )


class _QuietHandler(WSGIRequestHandler):
    """Keeps connections open between requests and does not log each of them."""

    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket at the port or, when it is taken, at the next free one; OSError after fifty."""
    for candidate in range(port, port + PORTS_TRIED):
        opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        if sys.platform != "win32":
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((host, candidate))
            opened.listen(128)
        except OSError:
            opened.close()
            if port == 0:
                raise
            continue
        return opened
    raise OSError(f"no free port between {port} and {port + PORTS_TRIED - 1} on {host}")


def open_server(trace: Path | str, port: int = 8050, host: str = "127.0.0.1") -> tuple[BaseWSGIServer, str]:
    """A server that is ready to `serve_forever()`, and its URL; with a token unless the host is this machine's."""
    token = None if access.is_loopback(host) else access.new_token()
    app = create_app(trace, token)
    opened = listen(host, port)
    bound = opened.getsockname()[1]
    server = make_server(
        host, bound, app.server, threaded=True, request_handler=_QuietHandler, fd=opened.detach()
    )
    name = socket.gethostname() if host in EVERYWHERE else f"[{host}]" if ":" in host else host
    return server, f"http://{name}:{bound}/" + (f"?token={token}" if token else "")


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def serve(
    trace: Path | str, port: int = 8050, host: str = "127.0.0.1", announce: Callable[[str], None] = _write
) -> None:
    """Serve the pages until Ctrl-C; a taken port moves on, `announce` is told the URL."""
    server, url = open_server(trace, port, host)
    announce(f"SparseLens shows {trace} at {url} (Ctrl-C ends it)")
    if not access.is_loopback(host):
        announce(OPEN)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        announce("")
    finally:
        server.server_close()
