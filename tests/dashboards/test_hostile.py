"""Every page over every kind of broken or hostile trace: a message or numbers, never a traceback or a script."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import browsing
import pytest
from hostile_trace import MADE, MARKUP, SPOILED

from sparselens.dashboards.page import pages

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
PATHS = [page.path for page in pages()]
QUIET = 300  # milliseconds without a request
FOREIGN = (
    "img[src='x'], iframe, [onerror], [onload], #page script, a[href^='javascript'], a[href^='http'], "
    "#page style:not([data-mantine-styles])"
)
LINKS = "() => [...document.querySelectorAll('#page a')].map((a) => a.href.baseVal ?? a.href)"
SAID_NO = "status of 400"  # /view/… answers a trace's problem with one line and 400; the browser notes it


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Makes a trace of a kind; each that is spoiled in several ways is written once."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        name, spoil = SPOILED[kind]
        if name not in made:
            made[name] = tmp_path_factory.mktemp("hostile") / "trace"
            MADE[name](made[name])
        if spoil is None:
            return made[name]
        copy = tmp_path_factory.mktemp("spoiled") / "trace"
        shutil.copytree(made[name], copy)
        spoil(copy)
        return copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)  # what is tested is not the disk
        yield make


class Watched:
    """One tab: what it logged, what it asked for, what is still on its way."""

    def __init__(self, browser: Any) -> None:
        self.trouble: list[str] = []
        self.waiting: set[Any] = set()
        self.context = browser.new_context(viewport={"width": 1280, "height": 800})
        self.page = self.context.new_page()
        self.page.set_default_timeout(browsing.PATIENCE)
        self.page.on("console", self._logged)
        self.page.on("pageerror", lambda error: self.trouble.append(f"page error: {error}"))
        self.page.on("dialog", self._opened)
        self.page.on("request", self._asked)
        self.page.on("requestfinished", self._ended)
        self.page.on("requestfailed", self._ended)
        self.page.on("response", self._answered)

    def _logged(self, line: Any) -> None:
        if line.type == "error" and SAID_NO not in line.text:
            self.trouble.append(f"console: {line.text[:400]}")

    def _asked(self, asked: Any) -> None:
        self.waiting.add(asked)
        if not asked.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.trouble.append(f"asked {asked.url}")

    def _opened(self, dialog: Any) -> None:
        self.trouble.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _ended(self, asked: Any) -> None:
        self.waiting.discard(asked)

    def _answered(self, answer: Any) -> None:
        if answer.status >= 500 or (answer.status == 400 and "/view/" not in answer.url):
            self.trouble.append(f"{answer.status} for {answer.url[:200]}")

    def settle(self) -> None:
        """Wait until nothing was asked for a while."""
        quiet = 0
        for _ in range(browsing.PATIENCE // 100):
            quiet = 0 if self.waiting else quiet + 100
            if quiet >= QUIET:
                return
            self.page.wait_for_timeout(100)
        self.trouble.append(f"still waiting for {[asked.url[:120] for asked in self.waiting]}")

    def show(self, path: str, search: str = "") -> None:
        """Go to a page as a click in the navigation does."""
        self.page.evaluate("([path, search]) => { history.pushState({}, '', path + search);"
            " window.dispatchEvent(new CustomEvent('_dashprivate_pushstate')); }", [path, search])  # fmt: skip
        self.settle()


def wrong(tab: Watched) -> list[str]:
    """What must not be on a page and is."""
    found = list(tab.trouble)
    text = tab.page.inner_text("body")
    found += [
        word for word in ("Traceback", "This panel failed", "Error loading", "Callback error") if word in text
    ]
    if tab.page.evaluate("window.injected") is not None:
        found.append("a script of the trace ran")
    if strange := tab.page.locator(FOREIGN).count():
        found.append(
            f"{strange} elements of the trace: {tab.page.locator(FOREIGN).first.evaluate('e => e.outerHTML')[:300]}"
        )
    found += [
        f"a link to {link}" for link in tab.page.evaluate(LINKS) if not link.startswith("http://127.0.0.1")
    ]
    if not tab.page.inner_text("#page").strip() and not tab.page.inner_text("#notices").strip():
        found.append("the page is empty")
    return found


@pytest.mark.parametrize("kind", SPOILED)
def test_a_page_shows_numbers_or_a_message(
    browser: Any, spoiled: Callable[[str], Path], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    for url in browsing.served(spoiled(kind)):
        tab = Watched(browser)
        found: dict[str, list[str]] = {}
        tab.page.goto(url)
        tab.page.wait_for_selector("#page > *", state="attached")
        for place in PATHS:
            tab.trouble.clear()
            caplog.clear()
            tab.show(place)
            if problems := wrong(tab) + [str(line.exc_info) for line in caplog.records if line.exc_info]:
                found[place] = problems
        tab.context.close()
        assert found == {}


def test_a_hostile_link_is_text(browser: Any, spoiled: Callable[[str], Path]) -> None:
    for url in browsing.served(spoiled("markup everywhere")):
        tab = Watched(browser)
        found: dict[str, list[str]] = {}
        tab.page.goto(url)
        for place in PATHS:
            tab.trouble.clear()
            search = "&".join(
                f"{name}={quote(MARKUP[0])}"
                for name in ("a", "b", "prompt", "metric", "sql", "x", "score", "layer", "box", "nothing")
            )
            tab.show(place, "?" + search)
            if problems := wrong(tab):
                found[place] = problems
        tab.context.close()
        assert found == {}
