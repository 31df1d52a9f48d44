"""The Circuits page says what the tables say, of a model whose circuit is known, dense and under a window."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import browsing
import pytest
from circuit_trace import FOUND

from sparselens.dashboards.choice import NO_RUN
from sparselens.dashboards.circuits.choice import settle
from sparselens.dashboards.circuits.circuit import NONE, WITHOUT, circuits, command, off_pair, table
from sparselens.dashboards.circuits.curve import CURVES, figure, own, under
from sparselens.dashboards.circuits.edge import edges, kind
from sparselens.dashboards.circuits.graph import figure as graph
from sparselens.dashboards.circuits.shape import Shape
from sparselens.dashboards.circuits.table import BY_READ, OVERLAPS, node_rows, nodes, overlap_table
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection


@pytest.fixture(scope="module")
def source(circuit_trace: Path) -> Source:
    return Source(circuit_trace)


@pytest.fixture(scope="module")
def selection(source: Source) -> Selection:
    notices = [NO_RUN]
    settled = settle(source, Selection(), notices)
    assert notices == [], "circuits need no captured run"
    return settled


@pytest.fixture(scope="module")
def pair(selection: Selection) -> dict[str, Any]:
    return {"a": selection.circuit_a, "b": selection.circuit_b}


def plain(component: Any) -> str:
    return json.dumps(component, default=lambda part: part.to_plotly_json(), ensure_ascii=False)


def test_without_runs_the_base_is_a_and_the_policy_b(source: Source, selection: Selection) -> None:
    found = circuits(source)
    assert found[selection.circuit_a]["policy"].startswith("dense")
    assert found[selection.circuit_b]["base_circuit"] == selection.circuit_a
    assert selection.task == found[selection.circuit_a]["prompts"]
    assert selection.head_name in ("L0H0", "L1H0"), "the planted heads have the largest scores"


def test_what_the_link_names_in_vain_is_said_and_replaced(source: Source, selection: Selection) -> None:
    said: list[str] = []
    asked = Selection(circuit_a="gone", task="other", edge="M0~nowhere", node="<b>", size=4000)
    settled = settle(source, asked, said)
    assert (settled.circuit_a, settled.circuit_b) == (selection.circuit_a, selection.circuit_b)
    assert (settled.task, settled.edge, settled.node, settled.size) == (selection.task, "", "", 1000)
    assert len(said) == 5
    swapped = settle(
        source, replace(selection, circuit_a=selection.circuit_b, circuit_b=selection.circuit_a), []
    )
    assert (swapped.circuit_a, swapped.circuit_b) == (selection.circuit_b, selection.circuit_a)
    alone = settle(source, replace(selection, circuit_b=NONE), [])
    assert (alone.circuit_a, alone.circuit_b) == (selection.circuit_a, NONE)


def test_circuits_of_other_policies_than_the_runs_are_named(source: Source, selection: Selection) -> None:
    found = circuits(source)
    model = found[selection.circuit_a]["model"]
    runs = {"one": {"policy": "dense", "model": model}, "two": {"policy": "h2o", "model": model}}
    said = off_pair(found, runs, replace(selection, a="one", b="two"))
    assert said == f"B here is the circuit under {found[selection.circuit_b]['policy']}, run B ran h2o"


def test_tasks_without_a_circuit_say_why(source: Source, selection: Selection) -> None:
    said = plain(table(circuits(source), source.records(WITHOUT), selection))
    assert "not applicable on this model: the base answers 25.0 %, chance 50.0 %, needed 75.0 %" in said
    assert command(source) == (
        f'sparselens analyse "circuit(task=ioi,n=16)" --model smollm2-135m --trace {source.path}'
    )


def test_the_drawn_edges_are_the_planted_ones_and_kinds_add_up(
    source: Source, selection: Selection, pair: dict[str, Any]
) -> None:
    alone = edges(source, {"a": pair["a"], "b": None}, 100, "", [])
    assert {(row["sender"], row["receiver"]) for row in alone} == FOUND
    both = edges(source, pair, 3, "", [])
    assert sum(row["in_a"] for row in both) == sum(row["in_b"] for row in both) == 3
    assert {kind(row) for row in both} <= {"A only", "B only", "both"}
    for row in both:
        stored = source.first(
            "SELECT score, rank FROM circuit_edges WHERE circuit = $a AND sender = $s AND receiver = $r",
            a=pair["a"],
            s=row["sender"],
            r=row["receiver"],
        )
        assert (row["score_a"], row["rank_a"]) == (stored.get("score"), stored.get("rank"))
    shape = Shape.of(source, pair["a"])
    near = edges(source, {"a": pair["a"], "b": None}, 100, "L1H0", shape.reads("L1H0"))
    assert {(row["sender"], row["receiver"]) for row in near} == {
        each for each in FOUND if each[0] == "L1H0" or each[1].startswith("L1")
    }


def test_the_figure_has_an_answer_to_the_pointer_for_every_edge(
    source: Source, selection: Selection, pair: dict[str, Any]
) -> None:
    shape = Shape.of(source, pair["a"])
    assert (shape.layers, shape.heads, shape.kv_heads) == (3, 4, 2)
    assert shape.head_of("L1G1.v") == (1, 2, 2)
    assert shape.reader("<b>") is None
    rows = edges(source, pair, 100, "", [])
    made = graph(rows, nodes(source, pair), shape, selection, pair=True)
    by_name = {trace.meta: trace for trace in made.data}
    told = {(row[1], row[2]) for row in by_name["handles"].customdata}
    assert told == {(row["sender"], row["receiver"]) for row in rows}
    dashes = {trace.line.dash for trace in made.data if trace.meta == "edges"}
    assert dashes == {
        ("dash" if (row["score_a"] if row["in_a"] else row["score_b"]) > 0 else "solid") for row in rows
    }
    assert {row[1] for row in by_name["nodes"].customdata} >= {"input", "L0H0", "L1H0", "M1", "logits"}
    assert made.layout.yaxis.range[0] > made.layout.yaxis.range[1], "the input is on top"


def test_curves_are_those_of_the_table(source: Source, pair: dict[str, Any]) -> None:
    found, rows = circuits(source), source.records(CURVES, **pair)
    a, b = found[pair["a"]], found[pair["b"]]
    mine = own(rows, a)
    assert {row["measure"] for row in mine} == {"faithfulness", "complement", "random"}
    line = next(trace for trace in figure([("A", a, mine)]).data if trace.name == "A faithfulness")
    stored = [row for row in mine if row["measure"] == "faithfulness"]
    assert list(line.x) == [row["asked"] for row in stored]
    assert list(line.y) == [row["value"] for row in stored]
    assert list(line.error_y.array) == [row["ci_high"] - row["value"] for row in stored]
    for circuit in (a, b):
        there = {row["measure"] for row in under(rows, circuit, b["policy"])}
        assert there == {"faithfulness", "base_job"}, "the base's circuit was run under the policy as well"


def test_heads_that_were_not_tried_have_no_number(source: Source, pair: dict[str, Any]) -> None:
    rows = {row["head_name"]: row for row in node_rows(nodes(source, pair))}
    assert rows["L1H0"]["minimality_a"] > 0.5
    assert "A" in rows["L0H0"]["inside"]
    untried = source.records(
        "SELECT node FROM circuit_nodes WHERE circuit = $a AND ablated IS NULL", a=pair["a"]
    )
    assert all(rows[each["node"]]["ablated_a"] is None for each in untried if each["node"] in rows)


def test_the_read_that_the_window_cut_comes_first(source: Source, pair: dict[str, Any]) -> None:
    policy = circuits(source)[pair["b"]]["policy"]
    rows = source.records(BY_READ, circuit=pair["a"], policy=policy)
    assert rows[0]["read"] == "END→B"
    cut = [row["mass_base"] * (1 - row["kept"]) for row in rows]
    assert cut == sorted(cut, reverse=True)
    assert cut[0] > 0.3
    assert rows[0]["best"] == "L1H0"


def test_overlaps_are_the_newest_beside_chance(source: Source, pair: dict[str, Any]) -> None:
    (row,) = source.records(OVERLAPS, a="one", b=None)
    assert (row["shared"], row["spearman"]) == (2, None)
    said = plain(overlap_table([row], circuits(source), "one", ""))
    assert "0.20 (0.140 at random)" in said
    own_halves = source.records(OVERLAPS, **pair)
    assert {(each["circuit_a"], each["circuit_b"]) for each in own_halves} >= {(pair["a"], pair["a"])}


@pytest.fixture(scope="module")
def circuits_served(circuit_trace: Path) -> Iterator[str]:
    yield from browsing.served(circuit_trace)


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_a_click_on_an_edge_shows_it_and_a_swap_changes_sides(visit: Any, circuits_served: str) -> None:
    page = visit(f"{circuits_served}circuits")
    page.wait_for_selector("#circuit-graph .js-plotly-plot .lines path", state="attached")
    page.wait_for_selector("#circuit-curves .js-plotly-plot .lines path", state="attached")
    assert "not applicable on this model" in page.inner_text("#circuit-table")
    page.wait_for_selector("#circuit-edges [data-edge='L1H0~M1.in']")
    page.click("#circuit-edges [data-edge='L0H0~L1G0.k']")
    page.wait_for_selector("#circuit-edge:has-text('L0H0 → L1G0.k')")
    chosen = browsing.chosen(page)
    assert (chosen["edge"], chosen["layer"], chosen["head"]) == ("L0H0~L1G0.k", "1", "0")
    page.wait_for_selector("#circuit-edges [data-edge='L0H0~L1G0.k'][aria-current]")
    x, y = page.evaluate(
        """() => { const plot = document.querySelector("#circuit-graph .js-plotly-plot");
        plot.scrollIntoView({ block: "center" });
        const { xaxis, yaxis } = plot._fullLayout, box = plot.getBoundingClientRect();
        return [box.left + xaxis._offset + xaxis.d2p(0), box.top + yaxis._offset + yaxis.d2p(0)]; }"""
    )
    page.mouse.move(x, y)
    page.wait_for_selector("#circuit-graph .hoverlayer .hovertext")
    page.mouse.click(x, y)
    page.wait_for_function("new URLSearchParams(location.search).get('layer') === '0'")
    page.click("#panel-graph [data-option='near=node']")
    page.wait_for_selector("#circuit-graph-note:has-text('Only the edges of L0H0')")
    page.keyboard.press("s")
    page.wait_for_function(
        f"new URLSearchParams(location.search).get('circuit_b') === '{chosen['circuit_a']}'"
    )
    page.wait_for_selector("#circuit-curves:has-text('was not run under B')")
    page.wait_for_selector("#circuit-curves .js-plotly-plot .lines path", state="attached")
    browsing.shot(page, "circuits")


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_a_trace_without_circuits_and_an_empty_one_say_what_to_run(
    visit: Any, served: str, empty_served: str
) -> None:
    page = visit(f"{served}circuits", width=390, height=800)
    page.wait_for_selector("#circuit-missing .command")
    assert 'sparselens analyse "circuit(task=ioi,n=16)"' in page.inner_text("#circuit-missing")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.goto(f"{empty_served}circuits")
    page.wait_for_selector("#notices .command")
    assert "Traceback" not in page.content()
