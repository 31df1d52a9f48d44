"""Every page on an empty, a small, a full and a long trace, light and dark: no error, names, contrast, a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsing
import pytest
from axe_playwright_python.sync_playwright import Axe
from needle_trace import BASE, RUN, write_needles
from watched import Watched, wrong

from sparselens.dashboards.page import pages
from sparselens.storage.merge import merge
from sparselens.storage.trace import Trace

pytestmark = [pytest.mark.browser, pytest.mark.timeout(480)]
PATHS = [page.path for page in pages()]
WIDTHS = (1440, 900, 480)
NEEDLES = f"?a={BASE}&b={RUN}"
FULL = {
    "/": (NEEDLES, "#text .token"),
    "/heads": (NEEDLES, ".finder .link"),
    "/head": (NEEDLES + "&layer=1&head=0", ".map-frame"),
    "/retrieval": (NEEDLES, "#carriers .link"),
    "/sinks": (NEEDLES, ".strip-frame"),
    "/features": ("", "#feature-table .link"),
    "/circuits": ("", "#circuit-edges .ag-row"),
    "/frontier": ("", "#frontier tbody tr"),
    "/runs": ("", "#runs .badge"),
    "/sql": ("?sql=SELECT%20layer%2C%20head%20FROM%20edges%20LIMIT%209", "#result .link"),
}
"""What is asked of the full trace, and what is there only when the page found its numbers."""
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21aa"]}}


@pytest.fixture(scope="module")
def full(
    tmp_path_factory: pytest.TempPathFactory, feature_trace: Path, circuit_trace: Path, sweep_trace: Path
) -> Path:
    """A trace in which every page finds its numbers: needles with findings, features, circuits and a sweep."""
    path = tmp_path_factory.mktemp("full") / "trace"
    write_needles(path)
    for other in (feature_trace, circuit_trace, sweep_trace):
        merge(other, path)
    return path


@pytest.fixture(scope="module")
def full_served(full: Path) -> Iterator[str]:
    yield from browsing.served(full)


def broken_rules(page: Any) -> list[str]:
    """What axe-core has to say: names, roles, contrast (WCAG 2.1 A and AA)."""
    found = Axe().run(page, options=RULES).response["violations"]
    return [f"{each['id']}: {each['help']} at {each['nodes'][0]['target']}" for each in found]


def walk(browser: Any, url: str, name: str, asked: dict[str, tuple[str, str]], dark: bool) -> list[str]:
    """What is wrong, with its page before it; a picture of each page is left."""
    tab, found = Watched(browser, width=WIDTHS[0], dark=dark), []
    tab.page.goto(url)
    tab.page.wait_for_selector("#page > *", state="attached")
    for path in PATHS:
        search, there = asked.get(path, ("", ""))
        tab.trouble.clear()
        tab.show(path, search)
        if there:
            tab.page.wait_for_selector(there)
        problems = wrong(tab) + broken_rules(tab.page)
        browsing.shot(tab.page, f"{name}{'-dark' if dark else ''}-{path.strip('/') or 'compare'}")
        for width in WIDTHS:
            tab.page.set_viewport_size({"width": width, "height": 800})
            tab.settle()
            if (wide := tab.page.evaluate("document.documentElement.scrollWidth")) > width:
                problems.append(f"{wide} pixels wide on a screen of {width}")
        tab.page.set_viewport_size({"width": WIDTHS[0], "height": 800})
        found += [f"{path} {problem}" for problem in problems]
    tab.context.close()
    return found


@pytest.mark.parametrize("dark", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["light", "dark"])
@pytest.mark.parametrize("kind", ["empty", "small", "long"])
def test_every_page_of_a_trace_that_lacks_much(
    browser: Any, empty_served: str, served: str, long_served: str, kind: str, dark: bool
) -> None:
    url = {"empty": empty_served, "small": served, "long": long_served}[kind]
    assert walk(browser, url, kind, {}, dark) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_page_of_a_full_trace_shows_its_numbers(
    browser: Any, feature_trace: Path, full_served: str, dark: bool
) -> None:
    captured = [run.run_id for run in Trace.open(feature_trace).runs() if run.record.kind == "capture"]
    pair = f"?a={captured[0]}&b={captured[1]}"
    asked = FULL | {"/features": (pair, FULL["/features"][1])}
    assert walk(browser, full_served, "full", asked, dark) == []
