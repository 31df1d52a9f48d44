"""`sl.analyse` says what the command says, and what was asked before is not measured again."""

from __future__ import annotations

from typing import Any

import pytest
from small_session import small_session

import sparselens as sl
from sparselens.analyses.answer import Answer
from sparselens.storage.reader import connect

QUICK = {"parts": ["windows"], "windows": 3, "window": 16}


@pytest.fixture(scope="module")
def session() -> Any:
    return small_session()


@pytest.fixture(scope="module")
def answer(session: Any, tmp_path_factory: pytest.TempPathFactory) -> Answer:
    return sl.analyse("roles", tmp_path_factory.mktemp("asked") / "trace", session, **QUICK)


def test_an_answer_has_the_rows_of_its_own_run(session: Any, answer: Answer) -> None:
    other = sl.analyse("roles(seed=1)", answer.trace, session, **QUICK)
    assert other.run_id != answer.run_id
    for each in (answer, other):
        found = each.heads("sink_alpha")
        assert list(found.index) == [f"L{layer}H{head}" for layer in range(2) for head in range(4)]
        asked = "SELECT avg(value) AS mean FROM head_scores WHERE metric = 'sink_alpha' AND analysis_id = "
        with connect(each.trace) as connection:
            (mean,) = connection.sql(f"{asked} '{each.run_id}'").df()["mean"]
        assert found["sink_alpha"].mean() == pytest.approx(mean, abs=1e-12)
        assert each.sql(f"{asked} $analysis").df()["mean"][0] == mean
    assert (
        answer.heads("sink_alpha")["sink_alpha"].tolist() != other.heads("sink_alpha")["sink_alpha"].tolist()
    )


def test_an_answer_shows_what_the_command_prints(answer: Answer) -> None:
    assert set(answer.df(top=2)["metric"]) == {"sink_rate"}
    assert len(answer.df(top=2)) == 2
    assert any(note.startswith("sink_rate over all 8 heads") for note in answer.notes())


def test_all_metrics_are_columns_unless_some_are_named(answer: Answer) -> None:
    assert {"layer", "head", "sink_rate", "sink_alpha", "sink_rate_other"} == set(answer.heads().columns)
    with pytest.raises(ValueError, match=r"no score 'retrieval' of heads; it has .*sink_rate"):
        answer.heads("retrieval")


def test_what_was_answered_is_not_measured_again(session: Any, answer: Answer) -> None:
    assert sl.analyse("roles", answer.trace, session, **QUICK).run_id == answer.run_id
    assert sl.analyse("roles", answer.trace, session, again=True, **QUICK).run_id != answer.run_id


def test_an_unknown_question_and_a_missing_model_are_refused(answer: Answer) -> None:
    with pytest.raises(ValueError, match=r"no analysis named 'rolls'; there are .*roles"):
        sl.analyse("rolls", answer.trace)
    with pytest.raises(ValueError, match="the analysis roles runs a model: give one"):
        sl.analyse("roles", answer.trace)
