"""A headless Chromium that measures pages from inside: paints, bytes, requests, a click until its panel is redrawn."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

QUIET = 400  # ms without a request, a change of the document or an image: the page is drawn
PATIENCE = 60_000  # ms
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-component-update"),
    *("--disable-background-networking", "--disable-sync", "--js-flags=--expose-gc"),
]
# Runs in every document before its own code: when something last happened, and `act`, which does one thing and says
# after how many ms the target had changed for the first and for the last time (in the frame that shows it).
WATCH = """
(() => {
  const w = (window.__watch = { pending: 0, last: 0, frame: 0, target: null, first: 0, painted: 0 });
  const busy = () => { w.last = performance.now(); };
  const fetched = window.fetch;
  window.fetch = (...given) => {
    w.pending += 1;
    return fetched(...given).finally(() => { w.pending -= 1; busy(); });
  };
  new MutationObserver((found) => {
    busy();
    if (!w.frame && document.querySelector("#page .panel, #page .message, #page .ag-root")) w.frame = performance.now();
    const place = w.target && document.querySelector(w.target);
    if (place && found.some((each) => place.contains(each.target)))
      requestAnimationFrame(() => {
        w.painted = performance.now();
        w.first = w.first || w.painted;
      });
  }).observe(document, { childList: true, characterData: true, subtree: true });
  new PerformanceObserver(busy).observe({ type: "resource", buffered: true });
  new PerformanceObserver((list) => { w.largest = list.getEntries().at(-1).startTime; })
    .observe({ type: "largest-contentful-paint", buffered: true });
  w.quiet = (quiet, patience) => new Promise((done) => {
    const started = performance.now();
    const look = () => {
      const now = performance.now();
      if ((!w.pending && now - w.last > quiet) || now - started > patience) done(w.last);
      else setTimeout(look, 20);
    };
    look();
  });
  w.act = async (how, target, quiet, patience) => {
    performance.clearResourceTimings();
    w.target = target;
    w.first = w.painted = 0;
    const start = performance.now();
    busy();
    how();
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    const shown = performance.now() - start;
    await w.quiet(quiet, patience);
    const place = document.querySelector(target);
    const pictures = place?.querySelector(".picture") ? "/view/" : "none";
    const asked = performance.getEntriesByType("resource").filter((each) => each.name.includes(pictures));
    const ends = asked.map((each) => each.responseEnd);
    w.target = null;
    return w.first || target === "body"
      ? { first: w.first - start, updated: Math.max(w.painted, ...ends) - start, shown } : null;
  };
})();
"""


@dataclass
class Server:
    """The pages of a trace in a process of their own."""

    url: str
    pid: int

    def cpu(self) -> float:
        """CPU seconds that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak(self) -> float:
        """The largest resident size that it had, MB."""
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("this system does not say how large a process was")


@contextmanager
def served(trace: Path) -> Iterator[Server]:
    """`sparselens view` of a trace, ended afterwards."""
    command = [sys.executable, "-P", "-m", "sparselens.workbench.cli", "view"]
    command += ["--trace", str(trace), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        found = re.search(r"http://\S+[^/\s]", line)
        if found is None:
            raise RuntimeError(f"the pages of {trace} did not start: {line!r}")
        yield Server(found[0], process.pid)
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextmanager
def chromium(offline: dict[str, Path] | None = None) -> Iterator[Any]:
    """The browser; what has one of these names is answered from a file, wherever it is asked for."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        raise RuntimeError("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        browser.offline = offline or {}
        yield browser
        browser.close()


def _from_file(file: Path, route: Any) -> None:
    route.fulfill(path=file)


@dataclass
class Visit:
    """One opening of an address with nothing in the browser's cache."""

    page: Any
    session: Any
    numbers: dict[str, float]

    @classmethod
    def pay(cls, browser: Any, url: str) -> Visit:
        """Open an address and wait until it is drawn."""
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        for name, file in browser.offline.items():
            for address in (f"https://**/{name}", f"https://**/{name.removesuffix('.js')}"):
                context.route(address, partial(_from_file, file))
        page = context.new_page()
        page.set_default_timeout(2 * PATIENCE)
        page.add_init_script(WATCH)
        session = context.new_cdp_session(page)
        session.send("Network.enable")
        sizes: dict[str, int] = {}
        plain: dict[str, int] = {}
        session.on(
            "Network.loadingFinished",
            lambda event: sizes.__setitem__(event["requestId"], event["encodedDataLength"]),
        )

        def arrived(event: dict[str, Any]) -> None:
            plain[event["requestId"]] = plain.get(event["requestId"], 0) + event["dataLength"]

        session.on("Network.dataReceived", arrived)
        page.goto(url, wait_until="commit")
        page.wait_for_load_state("load")
        drawn = page.evaluate(f"window.__watch.quiet({QUIET}, {PATIENCE})")
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null")
        frame, largest = page.evaluate("[window.__watch.frame, window.__watch.largest ?? null]")
        numbers = {
            "first_paint_ms": paint,
            "frame_ms": frame,
            "largest_paint_ms": largest,
            "drawn_ms": drawn,
            "wire_mb": sum(sizes.values()) / 1e6,
            "plain_mb": sum(plain.values()) / 1e6,
            "requests": len(sizes),
        }
        return cls(page, session, numbers)

    def heap(self) -> float:
        """JavaScript's heap after collecting garbage, MB."""
        self.session.send("HeapProfiler.collectGarbage")
        return float(self.session.send("Runtime.getHeapUsage")["usedSize"]) / 1e6

    def act(self, how: str, target: str) -> dict[str, float] | None:
        """Run JavaScript that does one thing; ms until the target changed first and last, None if it did not."""
        found: dict[str, float] | None = self.page.evaluate(
            f"window.__watch.act(() => {{ {how} }}, {target!r}, {QUIET}, {PATIENCE})"
        )
        return found

    def leave(self) -> None:
        """Close the tab and everything that it kept."""
        self.page.context.close()


def renderer(browser: Any) -> float:
    """Resident size of the largest process that draws a tab, MB."""
    found = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    pages = os.sysconf("SC_PAGE_SIZE")
    sizes = [
        int(Path(f"/proc/{each['id']}/statm").read_text(encoding="ascii").split()[1]) * pages
        for each in found
        if each["type"] == "renderer"
    ]
    return max(sizes) / 1e6


def middle(values: list[float]) -> float | None:
    """Their median; None of none."""
    return statistics.median(values) if values else None
