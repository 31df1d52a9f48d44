"""How heavy and how quick the pages are, in a browser: on the demo's trace, a long prompt, many runs; beside others.

    python benchmarks/views.py [--trace NAME=FOLDER ...] [--rounds 5] [--cold 2] [--clicks 12] [--peers FOLDER]

Every page of every trace is opened in headless Chromium with an empty cache: by a server that has just started
(*cold*) and by one that has answered the page before (*warm*). From inside: first paint, when the page stands with its
empty panels (`frame`), when nothing changes any more (`drawn`), and for a click the ms until the panel that it is
about was redrawn for the last time, images included. Bytes are those on the wire, headers included. The traces `long`
(one prompt of 8,192 tokens, 2 runs) and `short` (100 prompts, 50 runs) are captured from the default model on first
use; `demo` is the trace that `sparselens demo` leaves. The code of the pages should have been compressed before: open a
page with charts and wait some seconds, once on a machine. With `--peers`, pages of CircuitsVis and BertViz of one
capture beside ours (`_view_peers.py`). Writes `benchmarks/results/views.json`; exits with 2 when a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))
from _view_browser import Visit, chromium, middle, served
from _view_peers import beside
from _view_traces import WANTED, captured

sys.path.pop()  # beside this file lies `kernels.py`, the name of a package that others import

RESULTS = Path(__file__).resolve().parent / "results" / "views.json"
LIMITS = {"first_paint_ms": 2000.0, "updated_ms": 300.0, "wire_mb": 2.0}
OTHER_HEAD = (
    "const cells = [...document.querySelectorAll('#grid [data-cell]:not([aria-current])')];"
    "cells[(window.__at = ((window.__at ?? 0) + 41) % cells.length)].click();"
)
MOVE = (
    "document.dispatchEvent(new KeyboardEvent('keydown', {key: (window.__at = ((window.__at ?? 0) + 1) % 8) < 4 ?"
    " 'ArrowRight' : 'ArrowLeft', bubbles: true}));"
)


def option(name: str) -> str:
    """JavaScript that presses the next button of a switch."""
    return (
        f"const all = [...document.querySelectorAll('[data-option^=\"{name}=\"]')];"
        "all[(all.findIndex((each) => each.ariaPressed === 'true') + 1) % all.length].click();"
    )


def nth(selector: str) -> str:
    """JavaScript that clicks the next of the elements."""
    return (
        f"const all = [...document.querySelectorAll({json.dumps(selector)})];"
        "all[(window.__at = ((window.__at ?? -1) + 1) % all.length)].click();"
    )


RUN_AS_B = ".ag-row [data-go*='\"b\"']:not(.on)"
# page: what is done (nothing to measure where the trace gives it no place), and the panel that it is about
CLICKS = {
    "/": ("another head in the grid", "#grid [data-cell]", OTHER_HEAD, "#keys"),
    "/heads": ("another head in the grid", "#grid [data-cell]", OTHER_HEAD, "#chosen-head"),
    "/head": ("an arrow key to the next head", "#maps .picture", MOVE, "#maps"),
    "/retrieval": (
        "answered or loss",
        "#needles button, #needles td",
        option("needle"),
        "#needles",
    ),
    "/sinks": ("received mass or norm", "#strips .picture", option("strip"), "#strips"),
    "/features": (
        "another feature",
        "[data-go*='feature']",
        nth("[data-go*='feature']"),
        "#feature-card",
    ),
    "/circuits": (
        "another node",
        "#circuit-graph [data-cell]",
        nth("#circuit-graph [data-cell]"),
        "#circuit-edge",
    ),
    "/frontier": ("nothing to click", "#none", "", "#none"),
    "/runs": ("another run as B", RUN_AS_B, nth(RUN_AS_B), "#page"),
    "/sql": ("a sample query", "[data-sql]", nth("[data-sql]"), "#query-result"),
}


def opened(trace: Path, browser: Any, path: str, rounds: int) -> list[dict[str, float]]:
    """Visits of one page by servers that have just started."""
    found = []
    for _ in range(rounds):
        with served(trace) as server:
            visit = Visit.pay(browser, server.url + path)
            found.append(visit.numbers | {"server_cpu_s": server.cpu()})
            visit.leave()
    return found


def clicked(visit: Visit, path: str, clicks: int) -> list[dict[str, float]]:
    """Clicks on a page, one after another; none where there is nothing to click."""
    _, place, how, target = CLICKS[path]
    if not visit.page.query_selector(place):
        return []
    found = [visit.act(how, target) for _ in range(clicks)]
    return [each for each in found if each is not None]


def page_row(
    path: str, cold: list[dict[str, float]], warm: list[dict[str, float]], clicks: list[dict[str, float]]
) -> dict[str, Any]:
    """The medians of a page and whether they are within the limits."""

    def of(rows: list[dict[str, float]], name: str) -> float | None:
        value = middle([row[name] for row in rows if row.get(name) is not None])
        return None if value is None else round(value, 3)

    row = {
        "page": path,
        "wire_mb": of([*cold, *warm], "wire_mb"),
        "plain_mb": of([*cold, *warm], "plain_mb"),
        **{
            f"{kind}_{name}": of(rows, name)
            for kind, rows in (("cold", cold), ("warm", warm))
            for name in ("first_paint_ms", "frame_ms", "drawn_ms", "server_cpu_s")
        },
        "click": CLICKS[path][0],
        "n_clicks": len(clicks),
        "updated_ms": of(clicks, "updated"),
        "updated_worst_ms": max((round(each["updated"], 1) for each in clicks), default=None),
        "heap_mb": of(warm, "heap_mb"),
    }
    paints = [row[f"{kind}_first_paint_ms"] or 0.0 for kind in ("cold", "warm")]
    measured = {
        "first_paint_ms": max(paints),
        "updated_ms": row["updated_ms"] or 0.0,
        "wire_mb": row["wire_mb"] or 0.0,
    }
    return row | {"over": [name for name, limit in LIMITS.items() if measured[name] >= limit]}


def measure(trace: Path, browser: Any, given: argparse.Namespace) -> dict[str, Any]:
    """Every page of one trace."""
    before = os.getloadavg()[0]
    cold = {path: opened(trace, browser, path, given.cold) for path in CLICKS}
    rows = []
    with served(trace) as server:
        for path in CLICKS:
            Visit.pay(browser, server.url + path).leave()  # the server reads the tables once
            warm, clicks = [], []
            for turn in range(given.rounds):
                used = server.cpu()
                visit = Visit.pay(browser, server.url + path)
                visit.numbers["server_cpu_s"] = server.cpu() - used
                warm.append(visit.numbers)
                if turn == given.rounds - 1:
                    clicks = clicked(visit, path, given.clicks)
                    visit.numbers["heap_mb"] = visit.heap()
                visit.leave()
            rows.append(page_row(path, cold[path], warm, clicks))
            show(rows[-1])
        peak = server.peak()
    load = {"load_before": before, "load_after": os.getloadavg()[0]}
    return {"pages": rows, "server_peak_mb": round(peak), **load, **size(trace)}


def size(trace: Path) -> dict[str, Any]:
    """What a trace holds."""
    from sparselens.storage.reader import connect

    asked = (
        "SELECT (SELECT count(*) FROM runs WHERE kind = 'capture'), (SELECT count(*) FROM prompts),"
        " (SELECT max(n_tokens) FROM prompts), (SELECT count(*) FROM edges)"
    )
    with connect(trace) as there:
        runs, prompts, tokens, edges = there.sql(asked).rows[0]
    return {"runs": runs, "prompts": prompts, "longest_prompt": tokens, "edges": edges}


def show(row: dict[str, Any]) -> None:
    """Print one page."""
    cells = [
        f"{row['page']:11}",
        f"{row['wire_mb']:6.2f} MB",
        *[
            f"{kind} {row[f'{kind}_first_paint_ms'] or 0:5.0f} {row[f'{kind}_frame_ms'] or 0:5.0f}"
            f" {row[f'{kind}_drawn_ms'] or 0:6.0f} ms"
            for kind in ("cold", "warm")
        ],
        f"click {row['updated_ms'] or 0:5.0f} ms ({row['n_clicks']})",
        "over: " + ", ".join(row["over"]) if row["over"] else "",
    ]
    print("  ".join(cells), flush=True)


def main() -> int:
    """Measure, print and write; 2 if a limit is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", action="append", default=[], help="NAME=FOLDER: this trace, no others")
    parser.add_argument("--rounds", type=int, default=5, help="visits of a page by a warm server")
    parser.add_argument("--cold", type=int, default=2, help="visits of a page by a server that just started")
    parser.add_argument("--clicks", type=int, default=12)
    parser.add_argument("--peers", type=Path, help="where CircuitsVis and BertViz are installed")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    named = [each.partition("=") for each in given.trace]
    traces = {name: Path(folder) for name, _, folder in named}
    if not traces:
        traces = {name: captured(name) for name in ("long", "short") if name in WANTED}
        traces |= {"demo": Path("demo-trace")} if Path("demo-trace/trace.json").exists() else {}
    found: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    found |= {"limits": LIMITS, "cpus": os.cpu_count(), "python": platform.python_version()}
    found |= {"rounds": given.rounds, "cold_rounds": given.cold}
    with chromium() as browser:
        found["chromium"] = browser.version
        for name, trace in traces.items():
            print(f"== {name}", flush=True)
            found.setdefault("traces", {})[name] = measure(trace, browser, given)
    if given.peers:
        found["peers"] = beside(given.peers)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    over = [row["over"] for each in found["traces"].values() for row in each["pages"]]
    return 2 if any(over) else 0


if __name__ == "__main__":
    sys.exit(main())
