"""Execute notebooks from top to bottom and store what comes out: `make notebooks`, or one by its path.

    .venv/bin/python notebooks/execute.py notebooks/sinks.ipynb

Each runs in a kernel of its own, in a folder that is removed afterwards. Beside the outputs, the file gets a picture of
every Plotly figure, for readers without Plotly (GitHub), and the hash of its code, by which a test tells whether the
outputs belong to the code. The pictures need Chromium (`make setup` installs it).
"""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import plotly
from nbclient import NotebookClient
from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).resolve().parent
SECONDS = 3600
"""The longest that one cell may take."""
PLOTLY, PICTURE = "application/vnd.plotly.v1+json", "image/png"
SCALE = 1.5
"""Pixels of a picture to one of the figure."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRAW = """
async (figure) => {
  const node = document.body.appendChild(document.createElement("div"));
  await Plotly.newPlot(node, figure.data, figure.layout, {staticPlot: true});
  const {width, height} = node._fullLayout;
  const drawn = await Plotly.toImage(node, {format: "png", width, height, scale: %s});
  node.remove();
  return drawn;
}
"""


def code_hash(notebook: Any) -> str:
    """Return the hash of a notebook's code cells, in order."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def executed(notebook: Any) -> Any:
    """Return the notebook with the outputs of a fresh kernel; the hash of its code goes into its metadata."""
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    notebook.metadata["sparselens"] = {"code": code_hash(notebook)}
    return notebook


@contextmanager
def browser_page() -> Iterator[Any]:
    """Open an empty page that knows Plotly; `OSError` where there is no browser."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise OSError(f"pictures of figures need a browser: none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.add_script_tag(path=str(Path(plotly.__file__).parent / "package_data" / "plotly.min.js"))
        yield page
        browser.close()


def illustrate(notebook: Any) -> int:
    """Put a picture beside every Plotly figure, and return how many there are."""
    figures = [
        output.data
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if PLOTLY in output.get("data", {})
    ]
    if figures:
        with browser_page() as page:
            for data in figures:
                drawn = page.evaluate(DRAW % SCALE, data[PLOTLY]).partition(",")[2]
                data[PICTURE] = base64.b64encode(_smaller(base64.b64decode(drawn))).decode()
    return len(figures)


def _smaller(picture: bytes) -> bytes:
    """Return a PNG without transparency, packed as tightly as it can be."""
    made = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").save(made, "PNG", optimize=True)
    return made.getvalue()


def main(paths: list[Path]) -> None:
    """Execute notebooks in place; a file is written when all its cells have run."""
    for path in paths:
        started = time.monotonic()
        notebook = executed(nbformat.read(path, as_version=4))
        pictures = illustrate(notebook)
        nbformat.validate(notebook)
        nbformat.write(notebook, path)
        size = path.stat().st_size
        print(
            f"{path.name}: {time.monotonic() - started:.0f} s, {pictures} pictures, {size:,} bytes",
            flush=True,
        )


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")))
