"""`diff` reads a paired capture exactly, and says what runs captured apart cannot tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparselens.analyses.compare import compare
from sparselens.analyses.diff import diff
from sparselens.storage.reader import connect
from sparselens.workbench.cli import main

POLICY = "a_shape(sink=2,window=9)"


def test_heads_are_ranked_by_write_error_on_the_answers_rows(paired: list[Any]) -> None:
    found = diff(paired[0].trace, "dense", POLICY)
    assert found.over == "span:answer"
    errors = [row["write_error"] for row in found.rows]
    assert errors == sorted(errors, reverse=True)
    assert len(errors) == 8
    rows = (
        paired[1]
        .sql(
            "SELECT layer, head, avg(write_error) FROM diffs"
            " WHERE scope = 'end_to_end' AND rows = 'span:answer' GROUP BY ALL"
        )
        .rows
    )
    expected = {f"L{layer}H{head}": value for layer, head, value in rows}
    assert {row["head_name"]: row["write_error"] for row in found.rows} == pytest.approx(expected)
    assert found.notes == []


def test_runs_captured_apart_fill_what_the_tables_allow_and_name_the_capture_for_the_rest(
    apart: list[Any],
) -> None:
    trace = apart[0].trace
    found = diff(trace, "first", "second")
    assert all(row["write_error"] is None and row["js"] is None for row in found.rows)
    assert "sparselens capture" in found.notes[0]
    assert "--policy 'a_shape(sink=2,window=9)'" in found.notes[0]
    assert "over the 5 prompts" in found.notes[1]
    with connect(trace) as connection:
        a, b = (
            connection.sql(
                "SELECT avg(entropy) FROM head_stats JOIN (SELECT DISTINCT prompt_id FROM head_stats WHERE run_id = $b)"
                " USING (prompt_id) WHERE run_id = $run AND pattern = 'executed' AND rows = 'all'"
                " AND layer = 1 AND head = 2",
                {"run": run.run_id, "b": apart[1].run_id},
            ).rows[0][0]
            for run in apart
        )
        stored = connection.sql(
            "SELECT avg(entropy_change), any_value(kept_mass) FROM diffs"
            " WHERE rows = 'all' AND layer = 1 AND head = 2"
        ).rows[0]
        changes = connection.sql("SELECT count(*), count(kl), avg(nll_change) FROM token_diffs").rows[0]
        losses = connection.sql(
            "SELECT avg(y.nll - x.nll) FROM predictions x JOIN predictions y USING (prompt_id, pos)"
            f" WHERE x.run_id = '{apart[0].run_id}' AND y.run_id = '{apart[1].run_id}'"
        ).rows[0][0]
    assert stored[0] == pytest.approx(b - a, abs=1e-5)
    assert stored[1] is None
    assert changes[0] > 0
    assert changes[1] == 0
    assert changes[2] == pytest.approx(losses, abs=1e-6)


def test_a_second_diff_writes_nothing_unless_it_is_asked_to(apart: list[Any]) -> None:
    trace = apart[0].trace

    def count() -> int:
        with connect(trace) as connection:
            return int(connection.sql("SELECT count(*) FROM runs WHERE kind = 'diff'").rows[0][0])

    diff(trace, "first", "second")
    before = count()
    diff(trace, "first", "second")
    assert count() == before
    diff(trace, "first", "second", again=True)
    assert count() == before + 1


@pytest.mark.parametrize(
    ("names", "message"),
    [(("dense", "nothing"), "no run 'nothing'.*a_shape"), (("dense", "dense"), "the same run")],
)
def test_unknown_and_equal_runs_are_refused(paired: list[Any], names: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diff(paired[0].trace, *names)


def test_runs_without_a_common_prompt_are_refused(small: Any, prompts: Any, tmp_path: Any) -> None:
    from sparselens.workbench.capture import capture

    capture(small, prompts[:1], [], tmp_path / "t", run_name="one", progress=False)
    capture(small, prompts[1:2], [], tmp_path / "t", run_name="two", progress=False)
    with pytest.raises(ValueError, match="no common prompt"):
        diff(tmp_path / "t", "one", "two")


def test_compare_gives_frames_and_the_report(paired: list[Any]) -> None:
    compared = compare(paired[0], paired[1:])
    frame = compared.df()
    assert frame["policy"].tolist() == [POLICY]
    assert 0 < frame["density"][0] < 1
    assert np.isfinite(frame["kl_all"][0])
    assert len(compared.heads(top=3)) == 3
    assert str(compared) == compared.report()
    with pytest.raises(ValueError, match="at least one run"):
        compare(paired[0], [])


def test_the_commands_print_what_the_functions_return(
    paired: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    trace = str(paired[0].trace)
    assert main(["report", "dense", POLICY, "--trace", trace]) == 0
    assert "answer NLL" in capsys.readouterr().out
    assert main(["diff", "dense", POLICY, "--trace", trace, "--top", "2", "--json"]) == 0
    assert capsys.readouterr().out.count("head_name") == 2
    assert main(["diff", "dense", "nothing", "--trace", trace]) == 2
    assert capsys.readouterr().err.startswith("error: no run 'nothing'")
