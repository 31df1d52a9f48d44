"""A plan knows the model it was made on, and says so when it is used on another or was changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from small_session import small_session

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.plan import Plan, read_plan
from sparselens.kernels.policy import Memory, Policy
from sparselens.kernels.selection import Band, Selection
from sparselens.workbench import calibration as module
from sparselens.workbench.calibration import Calibration, calibration, calibrations
from sparselens.workbench.session import Session


@dataclass(frozen=True)
class Counting(Calibration):
    """Writes down the model's layers."""

    first: int = 2
    lengths: tuple[int, ...] = (16, 32)

    method: ClassVar[str] = "counted"
    summary: ClassVar[str] = "how many layers there are"

    def measure(self, session: Session, say: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any]]:
        say("counting")
        return {"layers": session.n_layers}, {"on": "nothing"}


@dataclass(frozen=True)
class Counted(Policy):
    """A window as wide as the plan says."""

    plan: str = ""

    name: ClassVar[str] = "counted"

    @property
    def plans(self) -> tuple[Plan, ...]:
        return (read_plan(self.plan, self.name),)

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        return Band(0, int(self.plans[0].content["layers"]))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "calibrations", lambda: {"counted": Counting})


@pytest.fixture
def made(tmp_path: Path) -> tuple[Session, Path]:
    session = small_session()
    return session, Counting().plan(session).write(tmp_path / "plan.json")


def test_a_plan_comes_back_from_its_file(made: tuple[Session, Path]) -> None:
    session, file = made
    plan = read_plan(file, "counted")
    assert plan.content == {"layers": session.n_layers}
    assert plan.data == {"arguments": {"first": 2, "lengths": [16, 32]}, "on": "nothing"}
    assert plan.weight_hash == session.provenance.weight_hash
    assert json.loads(file.read_text())["hash"] == plan.hash


def test_a_changed_plan_is_refused(made: tuple[Session, Path]) -> None:
    _, file = made
    record = json.loads(file.read_text())
    record["content"]["layers"] = 7
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="changed after it was made"):
        read_plan(file, "counted")


@pytest.mark.parametrize(("text", "said"), [("[1]", "it needs method"), ("{", "cannot read the plan")])
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_plan(tmp_path / "plan.json", "counted")


def test_a_missing_plan_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sparselens calibrate counted"):
        read_plan(tmp_path / "none.json", "counted")


def test_a_plan_of_another_method_is_refused(made: tuple[Session, Path]) -> None:
    with pytest.raises(ValueError, match="a plan for counted, not for other"):
        read_plan(made[1], "other")


def test_a_policy_runs_with_a_plan_of_the_same_model_alone(made: tuple[Session, Path]) -> None:
    session, file = made
    policy = Counted(plan=str(file))
    with session.under(policy):
        pass
    weights = replace(session.provenance, weight_hash="0" * 64)
    other = Session(session.model, session.tokenizer, weights)
    with pytest.raises(ValueError, match="calibrate it"), other.under(policy):
        pass


def test_a_nested_policy_s_plan_is_checked_too(made: tuple[Session, Path]) -> None:
    from sparselens.kernels.policies.per_head import PerHead

    session, file = made
    nested = PerHead(default=Counted(plan=str(file)), full=("L0H0",))
    assert [plan.method for plan in nested.plans] == ["counted"]
    assert nested.to_json()["plans"][0]["content"] == {"layers": session.n_layers}


def test_sizes_alone_are_compared_where_weights_are_not_known() -> None:
    plan = Plan("counted", "m", "abc", 2, 4, 2, {}, {})
    plan.check_model(None, 2, 4, 2)
    with pytest.raises(ValueError, match="2 layers, 4 heads, 2 key-value heads"):
        plan.check_model(None, 3, 4, 2)


@pytest.mark.usefixtures("known")
def test_a_call_is_read_into_its_arguments() -> None:
    assert calibration("counted") == Counting()
    assert calibration("counted(first=5,lengths=[8])") == Counting(5, (8,))
    assert calibration("counted(lengths=8)") == Counting(lengths=(8,))


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing", "no calibration for 'nothing'; there are counted"),
        ("counted(second=1)", "no parameter 'second'; it has first, lengths"),
        ("counted(first=many)", "first is a int"),
        ("counted(first", "counted"),
    ],
)
def test_a_wrong_call_says_what_would_do(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        calibration(text)


def test_every_calibration_says_what_it_measures() -> None:
    for name, kind in calibrations().items():
        assert kind.method == name
        assert kind.summary
        assert None not in kind.parameters().values()
