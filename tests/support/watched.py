"""A browser tab that notes what goes wrong in it, and what must not be on any page."""

from __future__ import annotations

from typing import Any

import browsing

QUIET = 300  # milliseconds without a request
FOREIGN = (
    "img[src='x'], iframe, [onerror], [onload], #page script, a[href^='javascript'], a[href^='http'], "
    "#page style"
)
LINKS = "() => [...document.querySelectorAll('#page a')].map((a) => a.href.baseVal ?? a.href)"
SAID_NO = "status of 400"  # /view/… answers a trace's problem with one line and 400; the browser notes it


class Watched:
    """One tab: what it logged, what it asked for, what is still on its way."""

    def __init__(self, browser: Any, *, width: int = 1280, dark: bool = False) -> None:
        self.trouble: list[str] = []
        self.waiting: set[Any] = set()
        self.context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light"
        )
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
