"""`--verify` passes what is right and fails, loudly, what is planted wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.kernel import kernel as kernel_named
from sparselens.kernels.selection import Band, Bits, Everything, Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.workbench import job as module
from sparselens.workbench.capture import capture
from sparselens.workbench.verify import ROWS, sampled_rows

POLICY = "a_shape(sink=2,window=9)"


class Wrong:
    """A kernel that attends over another selection than the one it was given."""

    name = "wrong"

    def __init__(self, change: Any) -> None:
        self.right, self.change = kernel_named("reference"), change

    def attend(self, call: AttentionCall, selection: Selection, want: Want = NOTHING) -> Attended:
        selection, call = self.change(selection, call)
        return self.right.attend(call, selection, want)


def wider_by_one(selection: Selection, call: AttentionCall) -> tuple[Selection, AttentionCall]:
    return (Band(selection.sink, selection.window + 1) if isinstance(selection, Band) else selection), call


def reads_the_future(selection: Selection, call: AttentionCall) -> tuple[Selection, AttentionCall]:
    mask = call.allowed
    return selection, replace(call, allowed=replace(mask, query_index=mask.query_index + 1))


def forgets_a_block(selection: Selection, call: AttentionCall) -> tuple[Selection, AttentionCall]:
    kept = selection.rows(call, 0, call.q_len).expand(1, call.heads, -1, -1).clone()
    kept[:, :, 64:, 32:40] &= torch.arange(call.q_len)[64:, None] - torch.arange(32, 40) < 4
    return Bits.of(kept), call


def ignores_the_policy(selection: Selection, call: AttentionCall) -> tuple[Selection, AttentionCall]:
    return Everything(), call


def one_head_is_dense(selection: Selection, call: AttentionCall) -> tuple[Selection, AttentionCall]:
    kept = selection.rows(call, 0, call.q_len).expand(1, call.heads, -1, -1).clone()
    kept[:, -1] = True
    return Bits.of(kept), call


@pytest.mark.parametrize("kernel", ["reference", "blocked"])
@pytest.mark.parametrize(
    "policy",
    [POLICY, "sliding_window(window=7)", "vertical_slash(vertical=8,slash=8)", "random(density=0.3)"],
)
def test_honest_kernels_are_verified_three_times(
    small: Any, prompts: Any, tmp_path: Path, kernel: str, policy: str
) -> None:
    runs = capture(small, prompts, [policy], tmp_path / "t", kernel=kernel, verify=True, progress=False)
    for run in runs:
        assert str(run.verdict) == "verified 3/3", run.verdict
        assert run.verdict is not None
        assert (
            run.verdict.detail["kernel_rows"] >= 2 * min(ROWS, len(prompts[0].token_ids)) * len(prompts) / 2
        )
    stored = runs[0].sql("SELECT verify_kernel, verify_logits, verify_calls FROM runs").rows
    assert stored == [(True, True, True)] * 2


@pytest.mark.parametrize(
    ("change", "policy"),
    [
        (wider_by_one, POLICY),
        (reads_the_future, "dense"),
        (forgets_a_block, "dense"),
        (ignores_the_policy, POLICY),
        (one_head_is_dense, POLICY),
    ],
)
def test_a_wrong_kernel_fails_both_checks(
    small: Any, prompts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, policy: str
) -> None:
    monkeypatch.setattr(module, "kernel_named", lambda name: Wrong(change))
    (run,) = capture(small, prompts[:2], [policy], tmp_path / "t", base=None, verify=True, progress=False)
    assert run.verdict is not None
    assert run.verdict.failed == ["verify_kernel", "verify_logits"]
    assert run.verdict.detail["kernel_error_over_allowed"] > 100
    assert run.sql("SELECT verify_kernel, verify_logits FROM runs").rows == [(False, False)]


def test_a_kernel_that_is_called_twice_a_layer_fails_the_count(
    small: Any, prompts: Any, tmp_path: Path
) -> None:
    from sparselens.workbench.session import under

    with pytest.raises(RuntimeError, match="expected 2"), under(small, POLICY) as execution:  # noqa: PT012
        small.model(input_ids=torch.tensor([prompts[0].token_ids]))
        execution.calls += 1


def test_a_bridged_session_is_verified_too(small: Any, prompts: Any, tmp_path: Path) -> None:
    from small_tokenizer import small_tokenizer

    from sparselens.workbench.models import wrap

    session = wrap(type(small.model)(small.model.config).eval(), small_tokenizer())
    session.bridge  # noqa: B018
    (run,) = capture(session, prompts[:1], [POLICY], tmp_path / "t", base=None, verify=True, progress=False)
    assert str(run.verdict) == "verified 3/3"


@pytest.mark.parametrize("tokens", [1, 5, 128, 129, 1000, 8192])
def test_sampled_rows_include_first_last_and_block_edges(tokens: int) -> None:
    rows = sampled_rows(tokens).tolist()
    assert rows == sorted(set(rows))
    assert {0, tokens - 1} <= set(rows)
    assert len(rows) >= min(ROWS, tokens)
    if tokens > 1000:
        assert {127, 128} & set(rows) or {63, 64} <= set(rows)
    assert max(rows) < tokens
