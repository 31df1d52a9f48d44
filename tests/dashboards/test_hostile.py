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
from watched import Watched, wrong

from sparselens.dashboards.page import pages

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
PATHS = [page.path for page in pages()]


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
