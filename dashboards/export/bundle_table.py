"""The tables of a bundle as CSV: heads, tokens, keys, scores, runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparselens.dashboards.choice import Settled
from sparselens.dashboards.export.bundle_data import Numbers, Text
from sparselens.dashboards.export.bundle_head import Part
from sparselens.dashboards.export.table import csv_text
from sparselens.dashboards.metric import DIFF_METRICS
from sparselens.dashboards.query import Source, records

SCORE = (
    "metric",
    "a",
    "a_low",
    "a_high",
    "a_n",
    "b",
    "b_low",
    "b_high",
    "b_n",
    "rows",
    "prompt_set",
    "definition",
)
KEY = ("q_pos", "k_pos", "text", "p_base", "p", "kept")


def tables(
    source: Source,
    settled: Settled,
    numbers: Sequence[Numbers],
    texts: Sequence[Text],
    told: dict[str, list[Part]],
    scores: dict[str, Any],
) -> dict[str, bytes]:
    """The files of the folder `data`, by path."""
    runs = source.records(
        "SELECT * FROM runs WHERE run_id IN ($a, $b)", a=settled.selection.a, b=settled.selection.b
    )
    found = {
        "heads": (
            ("over", "prompt_id", "scope", "rows", "layer", "head", "n_rows", "n_prompts", *DIFF_METRICS),
            _heads(numbers),
        ),
        "tokens": (("prompt_id", "prompt", "pos", "text", "nll_a", "nll_b", "change"), _tokens(texts)),
        "keys": (("head", "prompt_id", *KEY), _keys(told)),
        "scores": (("head", *SCORE), _scores(scores)),
        "runs": (tuple(runs[0]) if runs else ("run_id",), [list(row.values()) for row in runs]),
    }
    return {f"data/{name}.csv": _bytes(columns, rows) for name, (columns, rows) in found.items()}


def _bytes(columns: Sequence[str], rows: list[list[Any]]) -> bytes:
    return csv_text(columns, rows).encode("utf-8", "replace")


def _heads(numbers: Sequence[Numbers]) -> list[list[Any]]:
    columns = ("layer", "head", "n_rows", "n_prompts", *DIFF_METRICS)
    return [
        [*_over(each), *(row.get(name) for name in columns)]
        for each in numbers
        if each.frame is not None
        for row in records(each.frame)
    ]


def _over(each: Numbers) -> list[str]:
    selection = each.settled.selection
    prompt = selection.prompt if selection.over == "prompt" else ""
    return [selection.over, prompt, selection.scope, selection.rows]


def _tokens(texts: Sequence[Text]) -> list[list[Any]]:
    return [
        [
            text.selection.prompt,
            text.name,
            pos,
            said,
            *(text.drawn["values"][side][pos] for side in ("a", "b", "diff")),
        ]
        for text in texts
        for pos, said in enumerate(text.drawn["texts"])
    ]


def _keys(told: dict[str, list[Part]]) -> list[list[Any]]:
    return [
        [name, part.text.selection.prompt, *(key[column] for column in KEY)]
        for name, parts in told.items()
        for part in parts
        for key in part.keys
    ]


def _scores(scores: dict[str, Any]) -> list[list[Any]]:
    return [[name, *(row[column] for column in SCORE)] for name, (rows, _) in scores.items() for row in rows]
