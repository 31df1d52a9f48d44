"""Features of a run beside those of its base: rows add up, equal runs are equal, a larger budget changes less."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from small_session import small_session

from sparselens.analyses.analysis import analyses
from sparselens.analyses.features.card import card
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.workbench.activations import Stream
from sparselens.workbench.cli import main
from sparselens.workbench.sae import load_sae
from sparselens.workbench.sae_training import Recipe, train
from sparselens.workbench.session import Session
from sparselens.workbench.site import Site

TEXTS = [" ".join(f"word{(7 * text + place) % 31}" for place in range(300)) for text in range(20)]
PROMPTS = [
    {
        "id": f"p{number}",
        "token_ids": np.random.default_rng(number).integers(5, 2900, 60).tolist(),
        "answer": " cat",
        "group": f"g{number}",
    }
    for number in range(3)
]
WINDOW = "a_shape(sink=2,window=6)"
MASSES = [f"oracle_mass(density={density})" for density in (0.1, 0.3, 0.7)]
Made: TypeAlias = tuple[Path, Path, dict[str, str]]


@pytest.fixture(scope="module")
def session() -> Session:
    return small_session()


@pytest.fixture(scope="module")
def made(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A trace with a base and a run for each policy, an SAE, and the runs' ids by policy."""
    folder = tmp_path_factory.mktemp("features")
    site = Site.of(session, "blocks.1.attn.hook_z")
    stream = Stream(site, text=TEXTS, context=32, block=20, batch=128)
    sae = train(session, Recipe(stream, features=96, k=8, tokens=8000, learning_rate=3e-3), folder / "sae")
    runs = session.capture(
        PROMPTS, policies=["dense", WINDOW, *MASSES], trace=folder / "trace", progress=False
    )
    return folder / "trace", sae, {run.name: run.run_id for run in runs[1:]}


@pytest.fixture(scope="module")
def found(session: Session, made: Made) -> dict[str, str]:
    """The analysis run of each policy."""
    trace, sae, runs = made
    return {
        policy: analyses()["features"].run(session, trace, run=run_id, sae=str(sae))
        for policy, run_id in runs.items()
    }


@pytest.fixture
def sql(made: Made, found: dict[str, str]) -> Iterator[Any]:
    del found
    with connect(made[0]) as connection:
        yield lambda text, **given: connection.sql(text, given, max_rows=None).arrow().to_pylist()


def test_two_dense_captures_have_the_same_features(found: dict[str, str], sql: Any) -> None:
    rows = sql("SELECT * FROM feature_diffs_history WHERE analysis_id = $of", of=found["dense"])
    assert {row["rows"] for row in rows} == {"all", "span:answer"}
    for row in rows:
        assert (row["jaccard"], row["cosine"]) == pytest.approx((1, 1), abs=1e-6)
        assert row["n_compared"] == row["n_rows"]
        assert row["error_a"] == row["error_b"]
    changes = sql("SELECT * FROM feature_changes_history WHERE analysis_id = $of", of=found["dense"])
    assert changes
    for row in changes:
        assert row["n_a"] == row["n_b"] == row["n_both"]
        assert row["sum_a"] == row["sum_b"]
        assert row["dropped"] == 0


def test_a_larger_budget_changes_features_less(found: dict[str, str], sql: Any) -> None:
    kept = [
        sql(
            "SELECT avg(jaccard) AS j, avg(cosine) AS c FROM feature_diffs_history"
            " WHERE analysis_id = $of AND rows = 'all'",
            of=found[policy],
        )[0]
        for policy in [*MASSES, "dense"]
    ]
    for smaller, larger in pairwise(kept):
        assert smaller["j"] < larger["j"]
        assert smaller["c"] < larger["c"]


def test_stored_activations_and_the_rest_are_all_of_them(sql: Any) -> None:
    rows = sql("""
        SELECT t.activation_sum, t.unstored_sum, t.n_active, sum(f.activation) AS stored, count(f.feature) AS n
        FROM feature_tokens t LEFT JOIN features f USING (run_id, prompt_id, sae, pos)
        GROUP BY run_id, prompt_id, pos, activation_sum, unstored_sum, n_active""")
    assert len(rows) > 100
    for row in rows:
        assert row["activation_sum"] == pytest.approx((row["stored"] or 0) + row["unstored_sum"], abs=1e-4)
        assert row["n"] == row["n_active"] <= 8


def test_stored_sources_and_the_rest_are_the_pre_activation(session: Session, made: Made, sql: Any) -> None:
    bias = load_sae(made[1], session).encoder[1].numpy()
    rows = sql("""
        SELECT feature, pre, unstored, sum(value) AS stored, any_value(f.activation) AS activation
        FROM feature_sources s JOIN features f USING (run_id, prompt_id, sae, pos, feature)
        GROUP BY run_id, run_b, prompt_id, pos, feature, pre, unstored""")
    assert len(rows) > 100
    for row in rows:
        assert row["pre"] == pytest.approx(row["stored"] + row["unstored"] + bias[row["feature"]], abs=1e-4)
        assert row["activation"] == pytest.approx(row["pre"], abs=1e-4)  # top-k passes the pre-activation on


def test_dropped_sources_are_those_behind_the_window(made: Made, found: dict[str, str], sql: Any) -> None:
    base = Trace.open(made[0]).run(found[WINDOW]).record.parents[1]
    rows = sql(
        "SELECT pos, k_pos, dropped FROM feature_sources_history WHERE analysis_id = $of AND run_id = $base",
        of=found[WINDOW],
        base=base,
    )
    assert {row["dropped"] for row in rows} == {True, False}
    for row in rows:
        assert row["dropped"] == (row["k_pos"] >= 2 and row["pos"] - row["k_pos"] >= 6)
    own = sql(
        "SELECT count(*) AS n FROM feature_sources_history WHERE analysis_id = $of AND run_id <> $base AND dropped",
        of=found[WINDOW],
        base=base,
    )
    assert own[0]["n"] == 0


def test_changes_are_counted_token_by_token(
    session: Session, made: Made, found: dict[str, str], sql: Any
) -> None:
    """Counted again from the stored tokens: every active feature is stored here, and errors say what is compared."""
    of = found[WINDOW]
    counted = sql(
        """
        WITH pair AS (SELECT DISTINCT run_a, run_b FROM feature_changes_history WHERE analysis_id = $of),
        ok AS (
            SELECT a.prompt_id, a.pos FROM pair JOIN feature_tokens a ON a.run_id = run_a
            JOIN feature_tokens b ON b.run_id = run_b AND b.prompt_id = a.prompt_id AND b.pos = a.pos
            WHERE a.pos > 0 AND b.error / b.norm <= 1.25 * a.error / a.norm)
        SELECT f.feature, count(*) FILTER (WHERE f.run_id = run_a) AS n_a,
               count(*) FILTER (WHERE f.run_id = run_b) AS n_b
        FROM features f JOIN ok USING (prompt_id, pos), pair WHERE f.run_id IN (run_a, run_b) GROUP BY ALL""",
        of=of,
    )
    stored = sql(
        "SELECT feature, n_a, n_b FROM feature_changes_history WHERE analysis_id = $of AND rows = 'all'",
        of=of,
    )
    assert {tuple(row.values()) for row in counted} == {tuple(row.values()) for row in stored}
    assert any(row["n_a"] != row["n_b"] for row in stored)


def test_the_printed_table_has_intervals_and_says_what_is_left_out(made: Made, found: dict[str, str]) -> None:
    shown = analyses()["features"].show(Trace.open(made[0]), found[WINDOW], {"top": 3})
    assert [row["rows"] for row in shown.rows][:2] == ["all", "affected"]
    assert "[" in shown.rows[0]["jaccard"]
    assert "tokens are not compared" in shown.notes[0]
    assert len(shown.notes) == 4


def test_bad_questions_say_what_would_do(session: Session, made: Made) -> None:
    trace, sae, runs = made
    features = analyses()["features"]
    run = runs["dense"]
    with pytest.raises(ValueError, match="name it with --run"):
        features.run(session, trace, sae=str(sae))
    with pytest.raises(ValueError, match="no SAE comes with"):
        features.run(session, trace, run=run)
    with pytest.raises(ValueError, match="top is 1 or more"):
        features.run(session, trace, run=run, sae=str(sae), top=0)
    with pytest.raises(ValueError, match="no SAE in 'nothing'"):
        features.run(session, trace, run=run, sae="nothing")
    base = Trace.open(trace).run(run).record.parents[0]
    with pytest.raises(ValueError, match=r"without a base: give base=…"):
        features.run(session, trace, run=base, sae=str(sae))


def test_a_card_says_what_the_tables_say(made: Made, found: dict[str, str], sql: Any) -> None:
    del found
    most = sql(
        "SELECT feature, count(*) AS n FROM features WHERE run_id = $run GROUP BY feature ORDER BY n DESC, feature",
        run=made[2][WINDOW],
    )[0]
    with connect(made[0]) as connection:
        seen = card(connection, most["feature"], run=made[2][WINDOW], top=3)
    assert seen.n_active == most["n"]
    assert seen.n_tokens == sql("SELECT sum(n_tokens) AS n FROM prompts")[0]["n"]
    assert [each.activation for each in seen.examples] == sorted(
        (each.activation for each in seen.examples), reverse=True
    )
    assert seen.unstored == pytest.approx(0, abs=1e-6)
    assert sum(row["n"] for row in seen.tokens) <= seen.n_active
    assert seen.largest == seen.examples[0].activation


def test_the_heads_of_a_card_and_what_is_not_stored_sum_to_the_pre_activations(made: Made, sql: Any) -> None:
    row = sql(
        "SELECT run_id, run_b, feature FROM feature_sources GROUP BY ALL"
        " ORDER BY count(*) DESC, run_id, run_b, feature LIMIT 1"
    )[0]
    with connect(made[0]) as connection:
        seen = card(connection, row["feature"], run=row["run_id"], against=row["run_b"])
    bias = sql(
        "SELECT any_value(pre) - sum(value) - any_value(unstored) AS bias FROM feature_sources WHERE run_id = $run"
        " AND run_b = $against AND feature = $feature GROUP BY prompt_id, pos",
        run=row["run_id"],
        against=row["run_b"],
        feature=row["feature"],
    )
    assert len(bias) == seen.n_told
    whole = sum(each["value"] for each in seen.heads) + seen.untold + sum(each["bias"] for each in bias)
    assert whole == pytest.approx(seen.pre, abs=1e-3)


def test_one_base_compared_with_many_runs_marks_the_drops_of_the_one_that_is_asked_for(
    made: Made, sql: Any
) -> None:
    base = Trace.open(made[0]).run(made[2]["dense"]).record.parents[0]
    feature = sql(
        "SELECT feature FROM feature_sources WHERE run_id = $base AND dropped GROUP BY feature"
        " ORDER BY count(*) DESC, feature LIMIT 1",
        base=base,
    )[0]["feature"]
    with connect(made[0]) as connection:
        window, dense = (
            card(connection, feature, run=base, against=made[2][name], top=50) for name in (WINDOW, "dense")
        )
    marked = [(each.pos, part) for each in window.examples for part in each.sources]
    assert marked
    for pos, part in marked:
        assert part["dropped"] == (part["k_pos"] >= 2 and pos - part["k_pos"] >= 6)
    assert any(part["dropped"] for _, part in marked)
    assert not any(part["dropped"] for each in dense.examples for part in each.sources)
    assert (window.n_active, window.n_told) == (dense.n_active, dense.n_told)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"feature": 96}, "has features 0 to 95, not 96"),
        ({"feature": 0, "sae": "nothing"}, "no SAE of the trace begins with 'nothing'"),
        ({"feature": 0, "run": "elsewhere"}, "no run 'elsewhere'"),
    ],
)
def test_a_card_that_cannot_be_drawn_says_what_there_is(
    made: Made, found: dict[str, str], asked: dict[str, Any], says: str
) -> None:
    del found
    with connect(made[0]) as connection, pytest.raises(ValueError, match=says):
        card(connection, **asked)


def test_the_command_prints_a_card(
    made: Made, found: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    del found
    assert main(["sae", "feature", "1", "--trace", str(made[0])]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("feature 1 of ")
    assert "strongest" in printed
    assert "changes" in printed
