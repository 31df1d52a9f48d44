"""An analysis that is interrupted goes on where it stopped, and one that fails on its arguments leaves nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparselens.analyses.analysis import Analysis, Findings, Setting, Shown, analyses
from sparselens.analyses.ledger import UNITS, Ledger
from sparselens.storage.trace import Trace


@dataclass(frozen=True)
class Counting:
    """Squares of the first `n` numbers; fails at `fail`."""

    n: int = 4
    policy: str = "dense()"


class Counter:
    """An analysis that counts what it computes, and can be told to fail."""

    def __init__(self) -> None:
        self.computed: list[int] = []
        self.fail_at: int | None = None

    def find(self, setting: Setting) -> Findings:
        if setting.parameters.n == 0:
            raise ValueError("n is at least 1")
        values = [self.unit(setting.ledger, number) for number in range(setting.parameters.n)]
        rows = {"layer": 0, "head": 0, "metric": [f"m{i}" for i in range(len(values))], "value": values}
        return Findings([("head_scores", rows)], {"policy": "dense()"})

    def unit(self, ledger: Ledger, number: int) -> float:
        def compute() -> dict[str, Any]:
            if number == self.fail_at:
                raise KeyboardInterrupt
            self.computed.append(number)
            return {"square": np.float64(number**2)}

        return float(ledger.once(f"number {number}", compute)["square"])

    def analysis(self) -> Analysis:
        return Analysis(
            name="counting",
            question="what are squares?",
            parameters=Counting,
            find=self.find,
            cost=lambda _: "nothing",
            show=lambda *_: Shown([], []),
        )


def test_an_interrupted_analysis_goes_on_where_it_stopped(small: Any, tmp_path: Path) -> None:
    counter = Counter()
    counter.fail_at = 2
    with pytest.raises(KeyboardInterrupt):
        counter.analysis().run(small, tmp_path / "trace")
    (stopped,) = Trace.open(tmp_path / "trace").runs()
    assert stopped.status == "interrupted"
    assert counter.computed == [0, 1]
    counter.fail_at = None
    run_id = counter.analysis().run(small, tmp_path / "trace")
    assert run_id == stopped.run_id
    assert counter.computed == [0, 1, 2, 3]
    done = Trace.open(tmp_path / "trace").run(run_id)
    assert done.status == "complete"
    assert not (done.folder / UNITS).exists()


def test_the_numbers_of_another_question_are_not_taken(small: Any, tmp_path: Path) -> None:
    counter = Counter()
    counter.fail_at = 2
    with pytest.raises(KeyboardInterrupt):
        counter.analysis().run(small, tmp_path / "trace")
    counter.fail_at = None
    counter.analysis().run(small, tmp_path / "trace", n=3)
    assert counter.computed == [0, 1, 0, 1, 2]
    counter.analysis().run(small, tmp_path / "trace", again=True)
    assert counter.computed == [0, 1, 0, 1, 2, 0, 1, 2, 3]


def test_an_analysis_that_fails_on_its_arguments_leaves_no_run(small: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n is at least 1"):
        Counter().analysis().run(small, tmp_path / "trace", n=0)
    assert Trace.open(tmp_path / "trace").runs() == []


def test_a_ledger_without_a_folder_remembers_while_it_lives() -> None:
    counter, ledger = Counter(), Ledger()
    assert [counter.unit(ledger, 3), counter.unit(ledger, 3)] == [9.0, 9.0]
    assert counter.computed == [3]


@pytest.mark.parametrize("name", ["roles", "restore", "ablate", "attribution"])
def test_a_policy_that_only_decodes_is_not_run_dense_over_whole_texts(name: str) -> None:
    with pytest.raises(ValueError, match="keeps everything until a token is decoded"):
        analyses()[name].settle({"policy": "quest(token_budget=64)"})
    analyses()[name].settle({"policy": "double_sparsity(phase=both,plan=some.json)"})
