"""A headless browser for tests of pages: every page visited must log no error and ask nobody else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SHOTS = Path(__file__).parents[2] / "artifacts" / "screenshots"
PATIENCE = 90_000
"""Milliseconds that a page may take on a machine that does other things as well."""


def opened() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def visits(browser: Any) -> Iterator[Any]:
    """A function that opens a URL in a context of its own; at the end nothing may have gone wrong."""
    contexts: list[Any] = []
    trouble: list[str] = []

    def visit(url: str, *, width: int = 1440, height: int = 900, dark: bool = False) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda line: trouble.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda asked: None if _ours(asked.url) else trouble.append(asked.url))
        page.goto(url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert trouble == []


def _ours(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))


def served(path: Path) -> Iterator[str]:
    """The pages over a trace, at this URL."""
    from sparselens.dashboards.app import open_server

    server, url = open_server(path, 0)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield url
    server.shutdown()
    thread.join(timeout=5)
    server.server_close()


def shot(page: Any, name: str) -> None:
    """Leave a picture of the page for whoever looks at the artifacts."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(250)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def chosen(page: Any) -> dict[str, str]:
    """What the page's URL says."""
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}
