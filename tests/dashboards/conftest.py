"""Traces for the pages, and a browser to look at them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsing
import pytest
from circuit_trace import write_circuits
from feature_trace import write_features
from head_trace import write_captured, write_hand
from needle_trace import write_needles
from small_trace import Floats, Sample, Shape, band, write_long_trace, write_trace
from sweep_trace import write_sweep

from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser."""
    yield from browsing.opened()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Opens a URL in a context of its own; at the end no page may have logged an error or asked elsewhere."""
    yield from browsing.visits(browser)


@pytest.fixture(scope="session")
def needles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Needles of two families with everything that the pages about heads read."""
    path = tmp_path_factory.mktemp("traces") / "needles"
    write_needles(path)
    return path


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 layers × 4 heads × 60 tokens, three runs, q and k kept."""
    path = tmp_path_factory.mktemp("traces") / "small"
    write_trace(path, Shape())
    return path


@pytest.fixture(scope="session")
def served(trace: Path) -> Iterator[str]:
    """The pages over the small trace, at this URL."""
    yield from browsing.served(trace)


@pytest.fixture(scope="session")
def long_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The pages over one prompt of 8,192 tokens and 30 × 9 heads."""
    path = tmp_path_factory.mktemp("traces") / "long"
    write_long_trace(path, Shape(layers=30, heads=9, kv_heads=3, length=8192))
    yield from browsing.served(path)


@pytest.fixture(scope="session")
def empty_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The pages over a folder that does not exist yet."""
    yield from browsing.served(tmp_path_factory.mktemp("traces") / "nothing")


@pytest.fixture(scope="session")
def patterns() -> dict[str, Floats]:
    """What the heads of the small trace did on its first prompt: `[layers, heads, q, k]` by run id."""
    shape = Shape()
    sample = Sample.draw(shape, 0)
    cuts = {"run-0-dense": (None, None), "run-1-window": (0, 16), "run-2-sink-window": (4, 16)}
    return {run: sample.pattern(band(shape.length, *cut))[0] for run, cut in cuts.items()}


@pytest.fixture(scope="session")
def pooled_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small trace without q and k."""
    path = tmp_path_factory.mktemp("traces") / "pooled"
    write_trace(path, Shape(), prompts=1, keep=False)
    return path


@pytest.fixture(scope="session")
def odd_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace whose kept keys do not belong to its log-sum-exps, as if scores were scaled some other way."""
    path = tmp_path_factory.mktemp("traces") / "odd"
    write_trace(path, Shape(), prompts=1, stretch=1.3)
    return path


@pytest.fixture(scope="session")
def feature_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of a base and a window, and a run without any."""
    path = tmp_path_factory.mktemp("traces") / "features"
    write_features(path)
    return path


@pytest.fixture(scope="session")
def circuit_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted circuit, dense and under a window, without any captured run."""
    path = tmp_path_factory.mktemp("traces") / "circuits"
    write_circuits(path)
    return path


@pytest.fixture(scope="session")
def sweep_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods at two densities."""
    path = tmp_path_factory.mktemp("traces") / "sweep"
    write_sweep(path)
    return path


@pytest.fixture(scope="session")
def hand_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One head on prompts of six tokens, written by hand."""
    path = tmp_path_factory.mktemp("traces") / "hand"
    write_hand(path)
    return path


@pytest.fixture(scope="session")
def captured_head(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Selection]:
    """A capture of a small model, q and k kept, and a head of it on the prompt with the longest answer."""
    path = tmp_path_factory.mktemp("traces") / "captured"
    a, b = write_captured(path)
    found = Source(path).first(
        "SELECT prompt_id FROM spans WHERE name = 'answer' ORDER BY stop - start DESC, prompt_id"
    )
    return path, Selection(a=a, b=b, prompt=found["prompt_id"], layer=1, head=2)
