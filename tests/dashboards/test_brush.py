"""Brushed tokens: heads over exactly the rows that predict them, from numbers that are written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparselens.dashboards.compare.brush import brushed, brushed_loss, rows_of, words
from sparselens.dashboards.compare.change import change, offered
from sparselens.dashboards.compare.key import BRUSH_ROWS
from sparselens.dashboards.compare.loss import brushed_words
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection, Window
from sparselens.storage.writer import RunWriter

LENGTH = 12
POS = np.arange(LENGTH)
ERROR = {0: POS / 10, 1: np.full(LENGTH, 0.5)}  # head: write error of row q
ENTROPY = {"base": 2.0, "run": 0.5, "apart": 1.0}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """One layer of two heads: a base, its run, and a run that was captured against nothing."""
    path: Path = tmp_path_factory.mktemp("brush") / "trace"
    for name, parents in (("base", []), ("run", ["base"]), ("apart", [])):
        meta = {"name": f"the {name}", "policy": "dense" if name == "base" else "quest", "parents": parents}
        with RunWriter.start(path, name, meta) as run:
            with run.part(["p"]) as part:
                write_prompt(part, name)
            run.finish({})
    return Source(path)


def write_prompt(part: Any, name: str) -> None:
    part.add("prompts", {"name": "p", "n_tokens": LENGTH})
    part.add(
        "tokens", {"pos": POS, "token_id": POS, "text": [f" w{pos}" for pos in POS], "is_special": False}
    )
    part.add("predictions", {"pos": POS[1:], "nll": POS[1:] * (2.0 if name == "run" else 1.0)})
    heads = {"layer": 0, "head": np.repeat([0, 1], LENGTH), "q_pos": np.tile(POS, 2)}
    part.add(
        "row_stats",
        {
            "pattern": "executed",
            **heads,
            "entropy": ENTROPY[name],
            "sink_mass": np.where(heads["q_pos"] >= 8, 0.25 if name == "base" else 0.75, 0.0),
            "kept_mass": np.where(heads["head"] == 0, 0.9, 0.4),
            **({"write_error": np.concatenate([ERROR[0], ERROR[1]])} if name == "run" else {}),
        },
    )
    part.add("edges", {**heads, "k_pos": 0, "p": 1.0, "kept": True})


def asked(brush: Window, **other: Any) -> Selection:
    return Selection(**{"a": "base", "b": "run", "prompt": "p", "brush": brush, **other})


def test_the_row_that_predicts_a_token_is_the_one_before_it(source: Source) -> None:
    """Tokens 3, 4 and 5 are predicted by rows 2, 3 and 4; of head 0 their errors are 0.2, 0.3 and 0.4."""
    found = brushed(source, asked(Window(3, 6)))
    assert found.n_rows == 3
    assert found.frame["n_rows"].tolist() == [3, 3]
    assert found.frame["write_error"].tolist() == pytest.approx([0.3, 0.5], abs=1e-6)
    assert found.frame["kept_mass"].tolist() == pytest.approx([0.9, 0.4], abs=1e-6)
    assert found.frame["entropy_change"].tolist() == pytest.approx([-1.5, -1.5])
    assert found.lines[0] == "3 rows, those that predict tokens 3–5 of this prompt; end to end."


def test_the_sink_counts_from_row_8_on_as_everywhere(source: Source) -> None:
    found = brushed(source, asked(Window(8, 11)))  # rows 7, 8, 9
    assert found.frame["sink_change"].tolist() == pytest.approx([0.5, 0.5])
    early = brushed(source, asked(Window(2, 5)))
    assert early.metrics == ("write_error", "kept_mass", "entropy_change")


def test_no_row_predicts_the_first_token_and_none_lies_behind_the_last(source: Source) -> None:
    assert rows_of(Window(0, 1)) is None
    assert rows_of(Window(0, 3)) == Window(0, 2)
    assert words(Window(0, 3)) == "tokens 1–2"
    assert words(Window(4, 5)) == "token 4"
    with pytest.raises(SourceError, match="0 rows"):
        change(source, asked(Window(0, 1))).metric("write_error")
    beyond = brushed(source, asked(Window(10, 20)))
    assert beyond.n_rows == 3  # rows 9, 10, 11
    assert "7 of the 10 are not stored" in beyond.lines[1]


def test_what_is_not_stored_row_by_row_is_not_offered(source: Source) -> None:
    selection = asked(Window(3, 6), metric="js")
    found = change(source, selection)
    assert found.metric("js") == "write_error"
    assert {each["value"] for each in offered(source, selection) if each["disabled"]} == {
        "kept_mass_nosink", "js", "top8_overlap", "out_cosine", "sink_change",
    }  # fmt: skip
    assert "kept_mass_nosink, js, top8_overlap, out_cosine" in " ".join(found.lines)


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ({"a": "apart"}, "stored against B's own base (the base); choose it as A"),
        ({"b": "apart"}, "B was captured without a base"),
        ({"a": "run", "b": "base"}, "B was captured without a base"),
    ],
)
def test_write_error_of_rows_is_refused_against_any_other_base(
    source: Source, pair: dict[str, str], said: str
) -> None:
    found = brushed(source, asked(Window(3, 6), **pair))
    assert found.frame["write_error"].isna().all()
    assert found.metrics[0] == "kept_mass"
    assert said in found.lines[-1]


def test_the_loss_is_of_the_brushed_tokens(source: Source) -> None:
    loss = brushed_loss(source, asked(Window(3, 6)))
    assert (loss["n"], loss["a"], loss["b"]) == (3, 4.0, 8.0)
    assert "3 rows predict them; NLL 4.000 → 8.000" in brushed_words(loss, "tokens 3–5")
    assert "no row of this prompt" in brushed_words(brushed_loss(source, asked(Window(0, 1))), "token 0")


def test_keys_are_of_the_brushed_rows_the_worst_first(source: Source) -> None:
    at = {"b": "run", "prompt": "p", "layer": 0, "head": 0, "first": 2, "stop": 8}
    rows = source.records(BRUSH_ROWS, most=4, **at)
    assert [(row["q_pos"], row["n_rows"]) for row in rows] == [(7, 6), (6, 6), (5, 6), (4, 6)]
    assert rows[0]["write_error"] == pytest.approx(0.7)


def test_a_brush_is_one_prompts_and_not_used_over_all(source: Source) -> None:
    with pytest.raises(
        SourceError, match="No differences"
    ):  # the tables of `diffs` are asked, which are empty here
        change(source, asked(Window(3, 6), over="all"))
