"""Pages of CircuitsVis and BertViz of one layer of a capture, opened in the same browser as our Head page of all of it.

They are no dependencies: FOLDER/site holds their packages (`pip install --no-deps --target FOLDER/site circuitsvis
bertviz boto3 botocore s3transfer jmespath importlib-metadata zipp`), FOLDER/js what BertViz loads from a CDN, from npm
(`require.js` 2.3.6, `d3.min.js` 5.7.0, `jquery.min.js` 2.1.0: npm has no 2.0.0). CircuitsVis brings its own code and
writes it into the page when it is offline, as here.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

from _view_browser import Visit, chromium, middle, renderer, served
from _view_traces import MODEL, captured

LENGTHS = (128, 256, 512)
LAYER = 18
SWITCHES = 5
LIBRARIES = {"require.min.js": "require.js", "d3.min.js": "d3.min.js", "jquery.min.js": "jquery.min.js"}
PAGE = '<!DOCTYPE html><html><head><meta charset="utf-8"></head><body>{}</body></html>'
NAMED = (
    "const names = [...document.querySelectorAll('*')].filter((each) => !each.children.length &&"
    " /^L\\d+H\\d+/.test(each.textContent.trim()));"
    "names[(window.__at = ((window.__at ?? 0) + 1) % names.length)].click();"
)
BOX = (
    "const boxes = [...document.querySelectorAll('#vis > svg rect, svg rect')].filter((each) => each.__on?.some((on) =>"
    " on.type === 'dblclick'));"
    "boxes[(window.__at = ((window.__at ?? 0) + 1) % boxes.length)].dispatchEvent(new MouseEvent('dblclick'));"
)
ARROW = (
    "document.dispatchEvent(new KeyboardEvent('keydown', {key: (window.__at = ((window.__at ?? 0) + 1) % 8) < 4 ?"
    " 'ArrowRight' : 'ArrowLeft', bubbles: true}));"
)
SWITCH = {"circuitsvis": (NAMED, "body"), "bertviz": (BOX, "body"), "sparselens": (ARROW, "#maps")}


def written(peers: Path, folder: Path) -> None:
    """The pages of both, `NAME-LENGTH.html`, of the dense patterns of one layer of the prompt that is captured."""
    import torch

    from sparselens.workbench.models import load
    from sparselens.workbench.session import implementation

    sys.path.append(str(peers / "site"))
    from bertviz import head_view
    from circuitsvis.attention import attention_heads

    session = load(MODEL, progress=False, device="cpu")
    for length in LENGTHS:
        ids = session.prompts(f"prose(length={length},n=1)")[0].token_ids
        words = [session.tokenizer.decode([token]) for token in ids]
        with torch.no_grad(), implementation(session.model, "eager"):
            found = session.model.base_model(input_ids=torch.tensor([ids]), output_attentions=True)
        pattern = found.attentions[LAYER]
        names = [f"L{LAYER}H{head}" for head in range(pattern.shape[1])]
        shown = attention_heads(pattern[0], words, names, mask_upper_tri=True)
        (folder / f"circuitsvis-{length}.html").write_text(PAGE.format(shown.local_src), encoding="utf-8")
        view = head_view([pattern], words, html_action="return")
        (folder / f"bertviz-{length}.html").write_text(PAGE.format(view.data), encoding="utf-8")


@contextmanager
def folder_served(folder: Path) -> Iterator[str]:
    """The files of a folder at this URL, as they are."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def measured(browser: Any, url: str, name: str) -> dict[str, Any]:
    """Opening a page, switching heads, what the tab holds then."""
    visit = Visit.pay(browser, url)
    how, target = SWITCH[name]
    switches = [visit.act(how, target) for _ in range(SWITCHES)]
    times = [max(each["updated"], each["shown"]) for each in switches if each]
    heap, resident = visit.heap(), renderer(browser)
    visit.leave()
    kept = ("first_paint_ms", "largest_paint_ms", "drawn_ms", "wire_mb", "plain_mb")
    numbers = {key: visit.numbers[key] for key in kept}
    return numbers | {"switch_ms": middle(times), "n": len(times), "heap_mb": heap, "tab_mb": resident}


def peer(peers: Path, folder: Path, url: str, name: str, length: int) -> dict[str, Any]:
    """A page of another project; `why` instead of numbers where the browser gives up."""
    from playwright.sync_api import Error

    file = folder / f"{name}-{length}.html"
    code = [peers / "js" / each for each in LIBRARIES.values()] if name == "bertviz" else []
    sizes = {
        "html_mb": file.stat().st_size / 1e6,
        "html_gzip_mb": len(gzip.compress(file.read_bytes(), 6)) / 1e6,
        "libraries_mb": sum(each.stat().st_size for each in code) / 1e6,
    }
    with chromium(offline={name: peers / "js" / kept for name, kept in LIBRARIES.items()}) as browser:
        try:
            return sizes | measured(browser, url + file.name, name)
        except Error as problem:
            return sizes | {"why": str(problem).splitlines()[0]}


def beside(peers: Path, traces: dict[int, Path] | None = None) -> list[dict[str, Any]]:
    """A row for each length and project, ours first."""
    rows = []
    with TemporaryDirectory() as made:
        folder = Path(made)
        written(peers, folder)
        with folder_served(folder) as url:
            for length in LENGTHS:
                trace = (traces or {}).get(length) or captured(f"prose-{length}")
                with served(trace) as server, chromium() as browser:
                    Visit.pay(browser, server.url + "/head").leave()
                    ours = measured(browser, server.url + "/head", "sparselens")
                found = {"sparselens": ours}
                for name in ("circuitsvis", "bertviz"):
                    found[name] = peer(peers, folder, url, name, length)
                for name, row in found.items():
                    rows.append({"tokens": length, "page": name, **row, "ratios": ratios(row, ours)})
                    print(rows[-1], flush=True)
    return rows


def ratios(row: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """Theirs ÷ ours of everything that both have."""
    names = ("plain_mb", "first_paint_ms", "drawn_ms", "switch_ms", "heap_mb", "tab_mb")
    return {name: round(row[name] / ours[name], 2) for name in names if row.get(name) and ours.get(name)}
