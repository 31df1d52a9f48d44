"""Masses and values: parts of a row add up, whole rows are what ran, and what is not stored is a part of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_trace import LENGTH
from small_trace import Shape, write_trace

from sparselens.dashboards.head import mass as mass_module
from sparselens.dashboards.head.heatmap import maps
from sparselens.dashboards.head.key_class import Classes, classes, row_positions
from sparselens.dashboards.head.mass import Mass, mass
from sparselens.dashboards.head.mass_panel import key_lists, mass_figure
from sparselens.dashboards.head.pattern import exact_rows
from sparselens.dashboards.head.reads import reads
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection, Window

HAND = Selection(a="run-0-dense", b="run-1-band", prompt="prompt-00", layer=0, head=0)
SMALL = Selection(a="run-0-dense", b="run-2-sink-window", prompt="prompt-0", layer=1, head=2)


@pytest.fixture(scope="module")
def hand(hand_head: Path) -> Source:
    return Source(hand_head)


@pytest.fixture(scope="module")
def captured(captured_head: tuple[Path, Selection]) -> tuple[Source, Selection]:
    return Source(captured_head[0]), captured_head[1]


def plain(component: Any) -> str:
    return json.dumps(component, default=lambda part: part.to_plotly_json(), ensure_ascii=False)


def by_name(found: Mass) -> dict[str, tuple[Any, ...]]:
    return {part.name: (part.a, part.kept, part.dropped, part.gained, part.b) for part in found.parts}


def sums(found: Mass) -> tuple[float, float]:
    return sum(part.a for part in found.parts), sum(part.b for part in found.parts)


def test_the_parts_of_a_row_written_by_hand(hand: Source) -> None:
    kinds = classes(hand, HAND, LENGTH)
    near = Classes(kinds.names, kinds.of, newest=2)
    found = mass(hand, HAND, row_positions(hand, HAND, "span:last", LENGTH), near, "span:last")
    expected = {
        "first token (sink)": (0.5, 0.5, 0.0, 0.1, 0.6),
        "span needle": (0.3, 0.0, 0.3, 0.0, 0.0),
        "span last": (0.1, 0.1, 0.0, 0.2, 0.3),
        "64 newest keys": (0.0, 0.0, 0.0, 0.0, 0.0),
        "other keys": (0.0, 0.0, 0.0, 0.0, 0.0),
        "not stored": (0.1, 0.06, 0.04, 0.04, 0.1),
    }
    assert list(by_name(found)) == list(expected)
    for name, values in expected.items():
        assert by_name(found)[name] == pytest.approx(values, abs=1e-6), name
    assert found.dropped == pytest.approx(0.34)
    assert sums(found) == pytest.approx((1.0, 1.0))
    assert not found.exact
    assert key_lists(found) == {"dropped": [2], "gained": [5, 0], "kept": [0, 5]}


def test_of_one_row_what_is_dropped_of_the_unstored_mass_is_not_claimed(hand: Source) -> None:
    found = mass(hand, HAND, np.array([5]), classes(hand, HAND, LENGTH))
    assert by_name(found)["not stored"][1:4] == (None, None, None)
    assert found.dropped is None
    said = plain(mass_figure(found, "query 5"))
    assert "B drops at least 0.300" in said
    assert (
        said.count('"unknown"') == 6
    )  # kept, dropped and gained: of this part, and of the sums that need it
    with pytest.raises(SourceError, match="no such row"):
        mass(hand, HAND, np.array([], np.int64), classes(hand, HAND, LENGTH))


def test_edges_of_one_run_alone_are_counted_and_said(tmp_path: Path) -> None:
    path = tmp_path / "pooled"
    write_trace(path, Shape(), prompts=1, keep=False)
    source = Source(path)
    at = Selection(
        a="run-1-window", b="run-2-sink-window", prompt="prompt-0", layer=1, head=2
    )  # neither is a base
    found = mass(source, at, np.array([45]), classes(source, at, 60))
    sides = source.frame(
        "SELECT run_id, k_pos FROM edges WHERE layer = 1 AND head = 2 AND q_pos = 45 AND run_id IN ($a, $b)",
        a=at.a, b=at.b,
    ).groupby("run_id")["k_pos"].agg(set)  # fmt: skip
    assert found.one_sided == len(sides[at.a] ^ sides[at.b]) > 0
    assert sums(found) == pytest.approx((1.0, 1.0))
    assert f"{found.one_sided} of the edges are stored in one run alone" in plain(
        mass_figure(found, "query 45")
    )


def test_masses_above_one_are_refused(hand: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    real = mass_module.edges
    monkeypatch.setattr(mass_module, "edges", lambda *at: (frame := real(*at)).assign(b=frame["b"] * 3))
    with pytest.raises(SourceError, match=r"sum to 1\.5"):
        mass(hand, HAND, np.array([5]), classes(hand, HAND, LENGTH))


@pytest.mark.parametrize("over", ["all", "affected", "span:needle", "span:answer"])
def test_whole_rows_give_every_class_its_mass(trace: Path, patterns: dict[str, Any], over: str) -> None:
    source = Source(trace)
    kinds = classes(source, SMALL, 60)
    rows = row_positions(source, SMALL, over, 60)
    assert rows.tolist() == {
        "all": list(range(60)), "affected": list(range(20, 60)), "span:needle": list(range(6, 13)),
        "span:answer": [56, 57, 58],
    }[over]  # fmt: skip
    found = mass(source, SMALL, rows, kinds, over)
    a, b = (patterns[run][1, 2][rows] for run in (SMALL.a, SMALL.b))
    key = np.arange(60)
    kept = (key[None, :] < 4) | (rows[:, None] - key[None, :] < 16)
    groups = {
        "first token (sink)": key == 0,
        "span needle": (key >= 6) & (key < 13),
        "span answer": key >= 57,
        "64 newest keys": (key > 0) & ~((key >= 6) & (key < 13)) & (key < 57),
    }
    for name, group in groups.items():
        before, after = a[:, group].sum() / len(rows), b[:, group].sum() / len(rows)
        dropped = (a * ~kept)[:, group].sum() / len(rows)
        expected = (before, before - dropped, dropped, after - before + dropped, after)
        assert by_name(found)[name] == pytest.approx(expected, abs=1e-6), name
    assert found.exact
    assert sums(found) == pytest.approx((1.0, 1.0))


def test_stored_edges_leave_a_part_for_the_rest_and_hide_none(
    pooled_trace: Path, patterns: dict[str, Any]
) -> None:
    source = Source(pooled_trace)
    rows = row_positions(source, SMALL, "affected", 60)
    found = mass(source, SMALL, rows, classes(source, SMALL, 60), "affected")
    assert sums(found) == pytest.approx((1.0, 1.0))
    parts = by_name(found)
    first = patterns[SMALL.a][1, 2][rows, 0].mean(), patterns[SMALL.b][1, 2][rows, 0].mean()
    assert (parts["first token (sink)"][0], parts["first token (sink)"][4]) == pytest.approx(first, abs=1e-6)
    needle = patterns[SMALL.a][1, 2][rows][:, 6:13].sum() / len(rows)
    assert parts["span needle"][0] <= needle + 1e-6
    assert needle - parts["span needle"][0] <= parts["not stored"][0] + 1e-6
    assert parts["not stored"][0] > 0
    assert parts["not stored"][2] is None  # no differences over these rows are in this trace


def test_swapped_runs_exchange_their_masses(pooled_trace: Path) -> None:
    source = Source(pooled_trace)
    back = Selection(a=SMALL.b, b=SMALL.a, prompt=SMALL.prompt, layer=1, head=2)
    rows = np.array([45])
    one, other = (mass(source, each, rows, classes(source, each, 60)) for each in (SMALL, back))
    for here, there in zip(one.parts, other.parts, strict=True):
        assert (here.a, here.b) == pytest.approx((there.b, there.a))
    assert sum(part.dropped or 0.0 for part in other.parts) == 0.0  # the base keeps all


def test_a_real_capture_gives_the_same_from_rows_and_from_edges(captured: tuple[Source, Selection]) -> None:
    source, at = captured
    kinds = classes(source, at, 140)
    for over in ("all", "affected", "span:answer"):
        rows = row_positions(source, at, over, 140)
        stored = source.first(
            mass_module.KEPT_OF_A, a=at.a, b=at.b, prompt=at.prompt, layer=1, head=2, rows=over
        )
        assert len(rows) == stored["n_rows"]
        whole = mass(source, at, rows, kinds, over)
        edges = mass_module._stored(source, at, rows, kinds, over)
        assert whole.exact
        assert whole.dropped == pytest.approx(1 - stored["kept_mass"], abs=5e-3)  # q and k are float16
        assert edges.dropped == pytest.approx(1 - stored["kept_mass"], abs=1e-6)
        assert sums(whole) == pytest.approx((1.0, 1.0))
        assert sums(edges) == pytest.approx((1.0, 1.0))
        left = by_name(edges)["not stored"]
        for name, values in by_name(whole).items():
            some = by_name(edges)[name]
            assert -5e-3 < values[0] - some[0] < left[0] + 5e-3
            assert -5e-3 < values[4] - some[4] < left[4] + 5e-3


def test_reads_by_value_are_shares_of_the_norms(captured: tuple[Source, Selection]) -> None:
    source, at = captured
    norm = source.frame(
        "SELECT value_write_norm AS norm FROM value_norms WHERE run_id = $b AND prompt_id = $prompt AND layer = 1 "
        "AND head = 2 ORDER BY pos", b=at.b, prompt=at.prompt,
    )["norm"].to_numpy()  # fmt: skip
    chosen = Selection(**{**at.__dict__, "q": 100, "weigh": "value"})
    found = reads(source, chosen)
    row = exact_rows(source, at.b, at, Window(100, 101))[0]
    sizes = row * norm[:101]
    np.testing.assert_allclose(found["b"], (sizes / sizes.sum())[found["keys"]], atol=1e-6)
    assert "shares of p · ‖W_O v‖" in found["sentence"]
    drawn = maps(source, Selection(**{**chosen.__dict__, "qs": Window(90, 110), "ks": Window(0, 110)}))
    np.testing.assert_allclose(drawn["b"].values[10, :101], sizes / sizes.sum(), atol=1e-9)
    whole = maps(source, chosen)["b"].values
    np.testing.assert_allclose(np.nansum(whole, axis=1), 1.0)


def test_by_value_of_stored_edges_counts_what_is_stored(hand: Source) -> None:
    found = reads(hand, Selection(**{**HAND.__dict__, "q": 5, "weigh": "value"}))
    total = 0.6 * 0.1 + 0.3 * 5
    assert found["keys"] == [0, 2, 5]
    assert found["b"] == pytest.approx([0.06 / total, 0, 1.5 / total], abs=1e-6)
    readers = reads(hand, Selection(**{**HAND.__dict__, "q": 2, "way": "readers", "weigh": "value"}))
    assert readers["a"] == pytest.approx([0.3 * 2 / (0.5 * 0.1 + 0.3 * 2 + 0.1 * 5)], abs=1e-6)
    drawn = maps(hand, Selection(**{**HAND.__dict__, "weigh": "value"}))
    assert drawn["b"].values[5, 5] == pytest.approx(1.5 / total)
    assert "Of the stored keys alone: A leaves out 0.100 of its mass" in drawn["b"].cells.note


def test_by_value_without_norms_says_what_stores_them(trace: Path) -> None:
    source = Source(trace)
    with pytest.raises(SourceError, match=r"table value_norms.*--heads L1H2"):
        maps(source, Selection(**{**SMALL.__dict__, "weigh": "value"}))
    found = reads(source, Selection(**{**SMALL.__dict__, "q": 45, "weigh": "value"}))
    assert "value_norms" in found["problem"]
    assert found["keys"] == []
