"""What a page weighs over the wire with nothing in the browser's cache; sizes, no times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browsing import PATIENCE

from sparselens.dashboards.asset import Packer

LIMIT = 2_000_000  # bytes over the wire
CHARTS = "plotly.min.js"
PAGES = ("/", "/head", "/runs", "/sql", "/frontier", "/heads")

pytestmark = pytest.mark.browser


def weighed(browser: Any, url: str) -> dict[str, int]:
    """Bytes on the wire of everything that a page asks for, headers included, by address."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    asked: dict[str, str] = {}
    sizes: dict[str, int] = {}
    session.on(
        "Network.requestWillBeSent", lambda sent: asked.update({sent["requestId"]: sent["request"]["url"]})
    )
    session.on(
        "Network.loadingFinished",
        lambda done: sizes.update({asked.get(done["requestId"], ""): done["encodedDataLength"]}),
    )
    page.goto(url)
    page.wait_for_selector("#page .panel, #page .message, #page .ag-root")
    page.wait_for_load_state("networkidle")
    context.close()
    return sizes


def test_pages_are_light_and_charts_are_loaded_where_there_are_some(browser: Any, served: str) -> None:
    for path in PAGES:
        sizes = weighed(browser, served.rstrip("/") + path)
        charts = [url for url in sizes if CHARTS in url]
        rest = sum(size for url, size in sizes.items() if CHARTS not in url)
        assert len(charts) == (path == "/heads"), path
        assert len(sizes) > 15, path
        assert rest < LIMIT * 0.6, (path, rest)  # with 1.11 MB of charts, at their best, still near the limit


def test_the_charts_are_compressed_as_far_as_they_go(tmp_path: Path) -> None:
    import plotly

    body = (Path(plotly.__file__).parent / "package_data" / CHARTS).read_bytes()[:400_000]
    packer = Packer(lambda: tmp_path)
    assert len(packer.best(body)) < 0.93 * len(packer.packed(body, "gzip"))
