"""Classes of keys, and sets of query rows, of one prompt and head: what masses are summed over.

A key is of the first class that fits: the first token; another sink token of this layer; a named span; the 64 newest
keys of the query; the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparselens.dashboards.head.pattern import allowed_counts, kept_rows
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection, Window
from sparselens.dashboards.sinks.sink import EDGE, RECEIVED
from sparselens.dashboards.span import SPANS

Ints: TypeAlias = NDArray[np.int64]

FIRST = "first token (sink)"
SINKS = "other sink tokens"
LOCAL = "64 newest keys"
REST = "other keys"
NOT_STORED = "not stored"
NEWEST = 64
MOST_SPANS = 6
BLOCK = 512
LATER_SINKS = """
SELECT DISTINCT t.pos FROM token_stats t JOIN prompts p USING (prompt_id)
WHERE t.run_id IN ($a, $b) AND t.prompt_id = $prompt AND t.layer = $layer AND t.pos > 0
  AND t.pos < p.n_tokens - greatest($edge, p.n_tokens // $edge) AND t.received_mass > $received
"""
DECODED = """
SELECT n_rows FROM head_stats
WHERE run_id = $b AND prompt_id = $prompt AND pattern = 'executed' AND rows = 'decoded'
  AND layer = $layer AND head = $head
"""


@dataclass(frozen=True)
class Classes:
    """The classes' names and, of every key, the number of its class; −1: it depends on how far the query is."""

    names: list[str]
    of: Ints
    newest: int = NEWEST

    @property
    def first(self) -> int:
        """The number of the first token's class."""
        return 0

    def kinds(self, query: Ints, key: Ints) -> Ints:
        """The class of each (query, key)."""
        near = np.where(query - key < self.newest, len(self.names) - 2, len(self.names) - 1)
        return np.where(self.of[key] < 0, near, self.of[key])


def classes(source: Source, selection: Selection, length: int) -> Classes:
    """The classes of the keys of the selected prompt, for the selected layer."""
    sinks = source.records(
        LATER_SINKS,
        a=selection.a,
        b=selection.b or None,
        prompt=selection.prompt,
        layer=selection.layer,
        edge=EDGE,
        received=RECEIVED,
    )
    spans = source.records(SPANS, prompt=selection.prompt)[:MOST_SPANS]
    names = [FIRST, SINKS, *(f"span {span['name']}" for span in spans), LOCAL, REST]
    of: Ints = np.full(length, -1, np.int64)
    for number, span in reversed(list(enumerate(spans, 2))):
        of[span["start"] : span["stop"]] = number
    of[[row["pos"] for row in sinks if row["pos"] < length]] = 1
    of[:1] = 0
    return Classes(names, of)


def row_positions(source: Source, selection: Selection, over: str, length: int) -> Ints:
    """The query rows that a name stands for in this prompt and, for `affected`, under this head of run B.

    Names are those of `rows` in the tables, and `query N`.

    Raises:
        SourceError: the prompt has no span of that name, or the name is none.

    """
    kind, _, query = over.partition(" ")
    if kind == "query":
        return np.array([int(query)][: int(query) < length], np.int64)
    if over == "all":
        return np.arange(length)
    if over == "affected":
        return source.kept(_name("affected", selection), lambda: _affected(source, selection, length))
    if over == "decoded":
        at = {name: getattr(selection, name) for name in ("b", "prompt", "layer", "head")}
        return np.arange(length - int(source.first(DECODED, **at).get("n_rows") or 0), length)
    name = over.removeprefix("span:")
    span = next(
        (each for each in source.records(SPANS, prompt=selection.prompt) if each["name"] == name), None
    )
    if span is None or name == over:
        raise SourceError(f"This prompt has no rows {over}.")
    if name == "answer":
        return np.arange(max(span["start"] - 1, 0), min(span["stop"] - 1, length))
    return np.arange(span["start"], min(span["stop"], length))


def _affected(source: Source, selection: Selection, length: int) -> Ints:
    found: list[Ints] = []
    for start in range(0, length, BLOCK):
        window = Window(start, min(start + BLOCK, length))
        kept = kept_rows(source, selection.b, selection, window, window.stop).sum(axis=1)
        fewer = kept < allowed_counts(source, selection.b, selection, window)
        found.append(np.flatnonzero(fewer) + start)
    return np.concatenate(found)


def _name(what: str, selection: Selection) -> str:
    return f"{what} {selection.b} {selection.prompt} {selection.layer} {selection.head}"
