"""`analyse circuit` on a model whose circuit is known: found, tested on other prompts, stored, and gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from planted_circuit import CIRCUIT, FIRST_WORD, WORDS, planted
from small_session import small_session

from sparselens.analyses.analysis import analyses
from sparselens.analyses.circuit.measure import Measure
from sparselens.analyses.circuit.question import ANALYSIS
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.workbench.session import Session
from sparselens.workbench.token_text import TokenText

GIVEN: dict[str, Any] = {
    "task": "copying(words=4,again=1)",
    "references": 2,
    "n": 6,
    "sizes": (3, 5, 12),
    "edges": 60,
    "steps": 5,
    "heads": 3,
    "knockouts": 2,
}
EXPECTED = set(CIRCUIT) - {("input", "L1H0.q")}
"""The last words are the same in the references, so what they ask for cannot be missed: one edge carries nothing."""
NEAR = "a_shape(sink=1,window=2)"
"""B stands after A, and the end reads it from up to four tokens away: this window loses it."""
Found: TypeAlias = tuple[Path, str, str]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    """The planted model; the words that prompts are drawn from are those that it knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenText, "words", lambda self: list(range(FIRST_WORD, FIRST_WORD + WORDS)))
        yield planted()[0]


@pytest.fixture(scope="module")
def found(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """A trace with the dense answer and that under a narrow window, which needs the dense one first."""
    path = tmp_path_factory.mktemp("circuit") / "trace"
    sparse = ANALYSIS.run(session, path, policy=NEAR, **GIVEN)
    dense = ANALYSIS.run(session, path, **GIVEN)
    return path, dense, sparse


def asked(path: Path, text: str, **given: Any) -> list[dict[str, Any]]:
    with connect(path) as connection:
        rows: list[dict[str, Any]] = connection.sql(text, given, max_rows=None).arrow().to_pylist()
    return rows


def curve(path: Path, analysis: str, measure: str) -> dict[tuple[str, int], dict[str, Any]]:
    """The curve's rows by circuit and size."""
    text = "SELECT * FROM circuit_curves_history WHERE analysis_id = $of AND measure = $measure"
    rows = asked(path, text, of=analysis, measure=measure)
    return {(row["circuit"], row["asked"]): row for row in rows}


def test_the_planted_edges_are_the_circuit(found: Found) -> None:
    path, dense, _ = found
    (about,) = asked(path, "SELECT * FROM circuits_history WHERE analysis_id = $of", of=dense)
    assert (about["asked"], about["n_edges"], about["n_heads"], about["n_mlps"]) == (5, 5, 2, 1)
    assert about["sufficient"]
    assert about["faithfulness"] > 0.8
    edges = asked(path, "SELECT * FROM circuit_edges_history WHERE analysis_id = $of ORDER BY rank", of=dense)
    assert {(row["sender"], row["receiver"]) for row in edges if row["in_circuit"]} == EXPECTED
    assert [row["rank"] for row in edges] == list(range(1, 61))
    sizes = [abs(row["score"]) for row in edges]
    assert sizes == sorted(sizes, reverse=True)


def test_too_few_edges_carry_nothing_and_all_but_the_circuit_neither(found: Found) -> None:
    path, dense, _ = found
    kept, rest = curve(path, dense, "faithfulness"), curve(path, dense, "complement")
    ((circuit, _), *_) = kept
    assert kept[circuit, 3]["value"] == pytest.approx(0, abs=0.05)
    assert kept[circuit, 12]["value"] == pytest.approx(1, abs=0.1)
    assert abs(rest[circuit, 5]["value"]) < 0.01
    (grown,) = curve(path, dense, "random").values()
    assert abs(grown["value"]) < 0.01
    for row in kept.values():
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
        assert (row["n"], row["n_clusters"]) == (3, 3)


def test_the_heads_that_carry_the_task_are_those_that_are_missed(found: Found) -> None:
    path, dense, _ = found
    nodes = {
        row["node"]: row
        for row in asked(path, "SELECT * FROM circuit_nodes_history WHERE analysis_id = $of", of=dense)
    }
    assert {name for name, row in nodes.items() if row["minimality"] is not None} == {"L0H0", "L1H0"}
    for name in ("L0H0", "L1H0"):
        assert nodes[name]["minimality_low"] > 0.8
        assert nodes[name]["ablated_high"] < -5
        assert nodes[name]["in_circuit"]
    others = [
        row for name, row in nodes.items() if row["ablated"] is not None and name not in ("L0H0", "L1H0")
    ]
    assert others
    assert all(abs(row["ablated"]) < 2 for row in others)
    assert nodes["M1"]["direct"] > 5 * max(abs(row["direct"]) for name, row in nodes.items() if name != "M1")


def test_a_window_that_hides_the_answer_breaks_the_task_and_is_named(found: Found) -> None:
    path, dense, sparse = found
    reads = {
        (row["read"], row["layer"], row["head"]): row
        for row in asked(
            path,
            "SELECT r.* FROM circuit_reads_history r JOIN circuits c USING (circuit)"
            " WHERE r.analysis_id = $of AND c.policy LIKE 'dense%'",
            of=sparse,
        )
    }
    found_read = reads["END→B", 1, 0]
    assert found_read["mass_base"] > 0.8
    assert found_read["kept"] < 0.5
    assert found_read["mass"] < found_read["mass_base"] / 2
    assert reads["B→A", 0, 0]["kept"] == 1
    base, own = (
        asked(path, "SELECT * FROM circuits_history WHERE analysis_id = $of", of=run)[0]
        for run in (dense, sparse)
    )
    assert own["whole"] < base["whole"] / 2
    assert own["accuracy"] < base["accuracy"] == 1
    job = curve(path, sparse, "base_job")
    assert job[base["circuit"], 5]["value"] < 0.6
    notes = ANALYSIS.show(Trace.open(path), sparse, {}).notes
    assert any(note.startswith("END→B") and "CUT" in note for note in notes)


def test_the_base_is_answered_once_for_all_policies(found: Found, session: Session) -> None:
    path, dense, sparse = found
    runs = {run.run_id: run.record for run in Trace.open(path).runs()}
    assert set(runs) == {dense, sparse}
    assert runs[sparse].extra["base_run"] == dense
    assert ANALYSIS.run(session, path, policy=NEAR, **GIVEN) == sparse


def test_shares_are_ratios_of_means_over_the_stored_prompts(found: Found) -> None:
    """A circuit of all edges is the whole model: its share of the base's job is told again from stored numbers."""
    path, dense, sparse = found
    text = (
        "SELECT prompt_id, metric, value FROM prompt_scores_history"
        " WHERE analysis_id = $of AND metric IN ('whole', 'empty')"
    )
    values: dict[str, dict[str, dict[str, float]]] = {}
    for run in (dense, sparse):
        for row in asked(path, text, of=run):
            values.setdefault(run, {}).setdefault(row["metric"], {})[row["prompt_id"]] = row["value"]
    gaps = {run: sum(each["whole"].values()) - sum(each["empty"].values()) for run, each in values.items()}
    assert set(values[dense]["whole"]) == set(values[sparse]["whole"])
    own, job = curve(path, sparse, "faithfulness"), curve(path, sparse, "base_job")
    for key, row in own.items():
        assert job[key]["value"] == pytest.approx(row["value"] * gaps[sparse] / gaps[dense], rel=1e-6)


def test_an_interrupted_search_goes_on_where_it_stopped(session: Session, tmp_path: Path) -> None:
    given = {**GIVEN, "sizes": (5,), "knockouts": 0, "heads": 1, "steps": 1}
    whole = ANALYSIS.run(session, tmp_path / "whole", **given)
    left = [4]
    passes: list[str] = []
    carried = Measure.carried

    def counted(self: Measure, case: Any, *rest: Any) -> Any:
        passes.append(case.clean.id)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return carried(self, case, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Measure, "carried", counted)
        with pytest.raises(KeyboardInterrupt):
            ANALYSIS.run(session, tmp_path / "broken", **given)
    before = set((tmp_path / "broken").glob("runs/*/units/*"))
    assert len(before) == 6 + 3 + 3
    again = ANALYSIS.run(session, tmp_path / "broken", **given)
    curves = [
        sorted((key[1], row["value"]) for key, row in curve(tmp_path / name, run, "faithfulness").items())
        for name, run in (("whole", whole), ("broken", again))
    ]
    assert curves[0] == curves[1]
    assert not list((tmp_path / "broken").glob("runs/*/units/*"))


def test_a_task_that_the_model_does_not_do_has_no_circuit(tmp_path: Path) -> None:
    session = small_session()
    run = analyses()["circuit"].run(session, tmp_path / "trace", n=8, references=1)
    assert asked(tmp_path / "trace", "SELECT * FROM circuits") == []
    assert asked(tmp_path / "trace", "SELECT * FROM circuit_edges") == []
    shown = ANALYSIS.show(Trace.open(tmp_path / "trace"), run, {})
    assert shown.rows == []
    assert any("not applicable" in note for note in shown.notes)
    metrics = {row["metric"] for row in asked(tmp_path / "trace", "SELECT metric FROM evals")}
    assert {"accuracy", "reference_accuracy", "chance", "needed"} <= metrics
    with pytest.raises(ValueError, match="no circuit to draw"):
        ANALYSIS.figure(Trace.open(tmp_path / "trace"), run, {})  # type: ignore[misc]


def test_a_policy_that_drops_nothing_is_refused_before_anything_is_searched(
    session: Session, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"drops nothing on copying.*add filler"):
        ANALYSIS.run(session, tmp_path / "trace", policy="a_shape(sink=4,window=64)", **GIVEN)
    assert Trace.open(tmp_path / "trace").runs() == []


def test_a_model_with_norms_after_attention_is_refused_before_anything_runs(tmp_path: Path) -> None:
    from small_tokenizer import small_tokenizer
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    from sparselens.workbench.models import wrap

    config = Gemma3TextConfig(
        vocab_size=3000, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, sliding_window=64,
    )  # fmt: skip
    session = wrap(Gemma3ForCausalLM(config).eval(), small_tokenizer())
    with pytest.raises(NotImplementedError, match="norms after attention"):
        ANALYSIS.run(session, tmp_path / "trace", n=4)
    assert Trace.open(tmp_path / "trace").runs() == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "docstring"}, "no task 'docstring'; there are ioi, greater_than, copying"),
        ({"task": "copying(n=3)"}, "n is a parameter of the analysis"),
        ({"edges": 10}, "at least the largest of sizes, 20000"),
        ({"faithful": 1.5}, "above 0 and at most 1"),
        ({"steps": 0}, "steps is 1 or more"),
        ({"bos": "never"}, "bos is one of"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ANALYSIS.settle(given)
    assert "\n" not in str(caught.value)


def test_the_figure_has_the_edges_of_the_circuit(found: Found) -> None:
    path, dense, sparse = found
    drawing = ANALYSIS.figure(Trace.open(path), dense, {})  # type: ignore[misc]
    lines = [trace for trace in drawing.data if trace.mode == "lines"]
    assert sum(x is None for trace in lines for x in trace.x) == len(EXPECTED)
    assert len({trace.name for trace in lines}) == sum(trace.showlegend for trace in lines)
    named = {text for trace in drawing.data if trace.mode == "markers+text" for text in trace.text}
    assert {"input", "L0H0", "L1H0", "M1", "logits"} <= named
    both = ANALYSIS.figure(Trace.open(path), sparse, {})  # type: ignore[misc]
    assert {trace.name for trace in both.data if trace.mode == "lines"} <= {"A only", "B only", "both"}
    ends = [np.array([y for y in trace.y if y is not None]) for trace in both.data]
    assert all(np.isfinite(each).all() for each in ends)
