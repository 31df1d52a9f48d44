"""A capture that decodes in one pass equals real decoding with a KV cache, and says what it did."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.policy import Policy
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.workbench.decode import decode_option, decoded_tokens
from sparselens.workbench.rerun import rerun
from sparselens.workbench.session import under

DECODED = 11
# Float64 in both: the same sums in another order. Scores below 100, 3 layers: 1e-16 · 100 · 3, and room for
# the norms' gain on what is small.
SAME = 1e-11

POLICIES = [
    "a_shape(sink=2,window=5,phase=decode)",
    "oracle_topk(k=4)",
    "per_head(default=oracle_topk(k=3,phase=decode),full=[L0H1])",
    "quest(token_budget=9,page=3,dense_layers=0)",
    "quest(token_budget=9,page=3,share=sum,dense_layers=1,phase=both)",
    "snap_kv(capacity=9,window=6,kernel=3,local=3,prefix=1)",
    "h2o(heavy=4,recent=3)",
    "h2o(heavy=4,recent=3,share=head,phase=both)",
    "per_head(default=h2o(heavy=3,recent=2),full=[L0H1])",
    "tidal_decode(k=4,start=0,correction=2)",
    "per_head(default=tidal_decode(k=4,start=0,correction=1,full=false,phase=both),full=[L0H1])",
]
STREAMING = ["streaming_llm(sink=2,recent=5)", "streaming_llm(sink=2,recent=5,phase=decode)"]


@dataclass
class Watcher:
    """Notes which positions each head keeps in each row, by layer and row; an observer."""

    reads_bias: ClassVar[bool] = True
    kept: dict[tuple[int, int], list[set[int]]] = field(default_factory=dict)

    def want(self, call: AttentionCall) -> Want:
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        seen = selection.kept(call, 0, call.q_len).expand(1, call.heads, -1, -1)[0]
        keys = call.key_positions[0]
        for row, position in enumerate(call.query_positions[0].tolist()):
            self.kept[call.layer, position] = [
                set(keys[seen[head, row]].tolist()) for head in range(call.heads)
            ]


def decoded_for_real(
    model: Any, ids: Tensor, policy: Policy | str, decode: int
) -> tuple[Tensor, Watcher, Any]:
    """Logits, kept keys and the execution of a prefill followed by one decode call a token, with a KV cache."""
    watcher = Watcher()
    first = ids.shape[1] - decode
    with torch.no_grad(), under(model, policy, kernel="reference", observers=[watcher]) as execution:
        state = model(input_ids=ids[:, :first], use_cache=True)
        logits = [state.logits]
        for at in range(first, ids.shape[1]):
            state = model(
                input_ids=ids[:, at : at + 1], past_key_values=state.past_key_values, use_cache=True
            )
            logits.append(state.logits)
    return torch.cat(logits, 1), watcher, execution


def decoded_at_once(
    model: Any, ids: Tensor, policy: Policy | str, decode: int
) -> tuple[Tensor, Watcher, Any]:
    """The same in one forward pass."""
    watcher = Watcher()
    options = {"kernel": "reference", "observers": [watcher], "decode": decode}
    with torch.no_grad(), under(model, policy, **options) as execution:
        logits = model(input_ids=ids, use_cache=False).logits
    return logits, watcher, execution


def removed(execution: Any) -> set[tuple[int, int, int, int]]:
    """The removal log as (layer, kv_head, step, position)."""
    return {
        (entry.layer, entry.kv_head, entry.step, position)
        for entry in execution.memory.removals
        for position in entry.positions.tolist()
    }


def loss(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")


def assert_same(model: Any, ids: Tensor, policy: Policy | str, decode: int, tolerance: float) -> Any:
    real, seen, there = decoded_for_real(model, ids, policy, decode)
    once, found, here = decoded_at_once(model, ids, policy, decode)
    assert found.kept == seen.kept
    assert removed(here) == removed(there)
    assert (loss(once, ids) - loss(real, ids)).abs().max() < tolerance
    assert (here.selections, here.dense_calls) == (there.selections, there.dense_calls)
    assert here.calls == here.n_layers
    return once


@pytest.mark.parametrize("policy", POLICIES)
def test_decoding_in_one_pass_equals_decoding_with_a_cache(
    tiny: Any, family: str, ids: Tensor, policy: str
) -> None:
    model = tiny(family).double()
    logits = assert_same(model, ids, policy, DECODED, SAME)
    with torch.no_grad(), under(model, "dense", kernel="reference"):
        dense = model(input_ids=ids, use_cache=False).logits
    assert (logits[:, -DECODED:] - dense[:, -DECODED:]).abs().max() > 1e-3


@pytest.mark.parametrize("policy", STREAMING)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_positions_numbered_anew_are_so_in_one_pass_too(
    tiny: Any, name: str, ids: Tensor, policy: str
) -> None:
    model = tiny(name).double()
    logits = assert_same(model, ids, policy, DECODED, SAME)
    mask, _, _ = decoded_at_once(
        model, ids, policy.replace("streaming_llm", "a_shape").replace("recent", "window"), DECODED
    )
    assert (logits[:, -DECODED:] - mask[:, -DECODED:]).abs().max() > 1e-3


def test_a_capture_of_changed_scores_is_verified_and_shown_whole(
    small: Any, prompts: Any, tmp_path: Path
) -> None:
    policies = [*STREAMING, "per_head(default=streaming_llm(sink=2,recent=5),full=[L0H1,L1H2])"]
    options = {"kernel": "reference", "verify": True, "progress": False}
    runs = small.capture(prompts[:2], policies[:2], tmp_path / "t", decode=9, **options)
    runs += small.capture(prompts[:2], policies[2], tmp_path / "t", base=None, **options)
    assert [str(run.verdict) for run in runs] == ["verified 3/3"] * 4
    with connect(tmp_path / "t") as trace:
        kinds = trace.sql(
            "SELECT DISTINCT policy, selections.kind FROM selections JOIN runs USING (run_id) ORDER BY ALL"
        ).rows
        shares = trace.sql("SELECT min(kept_mass), max(kept_mass) FROM head_stats").rows[0]
        js = trace.sql("SELECT count(js) FROM diffs WHERE scope <> 'end_to_end'").rows
        gone = trace.sql(
            "SELECT count(*), max(step) FROM removals JOIN runs USING (run_id) WHERE policy LIKE '%decode%'"
        ).rows
    assert {kind for _, kind in kinds} == {"everything", "spliced", "biased"}
    assert 0 < shares[0] < shares[1] <= 1 + 1e-6  # of the scores as the model has them
    assert js == [(0,)]
    assert gone[0][1] == 8


def test_a_wrong_bias_in_the_record_is_found(
    small: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sparselens.kernels import selection_encoding

    honest = selection_encoding._array
    doubled = "sparselens.kernels.selection_encoding._array"
    monkeypatch.setattr(doubled, lambda tensor: honest(2 * tensor if tensor.is_floating_point() else tensor))
    (run,) = small.capture(
        prompts[:1], STREAMING[0], tmp_path / "t", base=None, kernel="reference", verify=True, progress=False
    )
    assert run.verdict.failed == ["verify_kernel", "verify_logits"]


def test_what_changes_scores_is_no_base_and_needs_the_reference(
    small: Any, prompts: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="use --kernel reference"):
        small.capture(prompts[:1], STREAMING[0], tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match="cannot be a base"):
        small.capture(
            prompts[:1], "a_shape", tmp_path / "b", base=STREAMING[0], kernel="reference", progress=False
        )


def test_an_observer_that_does_not_follow_changed_scores_is_refused(tiny: Any, ids: Tensor) -> None:
    class Blind(Watcher):
        reads_bias: ClassVar[bool] = False

    model = tiny("llama")
    with pytest.raises(ValueError, match="which Blind does not follow"):  # noqa: SIM117
        with under(model, STREAMING[0], kernel="reference", observers=[Blind()]):
            model(input_ids=ids)


def test_a_text_too_short_to_decode_is_refused(tiny: Any, ids: Tensor) -> None:
    model = tiny("llama")
    with (
        pytest.raises(ValueError, match="at most 39 can be decoded, not 40"),
        under(model, "dense", decode=40),
    ):
        model(input_ids=ids)
    with pytest.raises(ValueError, match="1 or more, not 0"), under(model, "dense", decode=0):
        pass


def test_tokens_that_really_come_one_at_a_time_are_asked_as_they_are(tiny: Any, ids: Tensor) -> None:
    """The option concerns whole texts: a generation inside the block is decoded anyway."""
    model, watcher = tiny("llama"), Watcher()
    with torch.no_grad(), under(model, POLICIES[0], observers=[watcher], decode=5) as execution:
        state = model(input_ids=ids, use_cache=True)
        model(input_ids=ids[:, :1], past_key_values=state.past_key_values, use_cache=True)
    assert watcher.kept[0, 40][0] == {0, 1, 36, 37, 38, 39, 40}
    assert execution.calls == 2 * execution.n_layers


# ---- in a capture ----


@pytest.fixture(scope="module")
def captured(small: Any, prompts: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    trace = tmp_path_factory.mktemp("decode") / "trace"
    policies = ["a_shape(sink=2,window=5,phase=decode)", "oracle_topk(k=4)"]
    for handle in small.capture(prompts[:2], policies, trace, decode=9, verify=True, progress=False):
        assert str(handle.verdict) == "verified 3/3"
    return trace


def test_the_option_is_recorded_and_shared_by_base_and_policies(captured: Path) -> None:
    runs = Trace.open(captured).runs()
    assert [run.record.args["decode"] for run in runs] == [9, 9, 9]


def test_a_run_without_the_option_has_no_such_argument(small: Any, prompts: Any, tmp_path: Path) -> None:
    (run,) = small.capture(prompts[2:], [], tmp_path / "trace", progress=False)
    assert "decode" not in Trace.open(tmp_path / "trace").run(run.run_id).record.args


def test_losses_are_those_of_real_decoding(small: Any, prompts: Any, captured: Path) -> None:
    with connect(captured) as trace:
        rows = trace.sql(
            "SELECT prompt_id, nll FROM predictions JOIN runs USING (run_id)"
            " WHERE policy LIKE 'a_shape%' ORDER BY prompt_id, pos"
        ).df()
    for prompt in prompts[:2]:
        ids = torch.tensor([prompt.token_ids])
        logits, _, _ = decoded_for_real(small.model, ids, "a_shape(sink=2,window=5,phase=decode)", 9)
        stored = torch.tensor(rows[rows.prompt_id == prompt.id].nll.to_numpy())
        # float32 logits below 32 are spaced 2e-6 apart; two layers of sums of 48 terms move a few of those steps
        assert (loss(logits, ids) - stored).abs().max() < 5e-5


def test_shares_are_of_the_decoded_rows(captured: Path, prompts: Any) -> None:
    with connect(captured) as trace:
        rows = trace.sql(
            "SELECT prompt_id, rows, density, kv_read_share, n_rows FROM head_stats JOIN runs USING (run_id)"
            " WHERE policy LIKE 'a_shape%' AND pattern = 'executed' AND layer = 1 AND head = 2"
        ).df()
    for prompt in prompts[:2]:
        n = len(prompt)
        there = sum(range(n - 9 + 1, n + 1))
        mine = rows[rows.prompt_id == prompt.id].set_index("rows")
        assert mine.n_rows["decoded"] == mine.n_rows["affected"] == 9
        assert mine.density["decoded"] == pytest.approx(9 * 7 / there)
        assert mine.kv_read_share["decoded"] == mine.kv_read_share["all"] == pytest.approx(9 * 7 / there)
        assert mine.density["all"] == pytest.approx(1 - (there - 63) / (n * (n + 1) / 2))


def test_a_group_reads_what_any_of_its_heads_reads(captured: Path, prompts: Any) -> None:
    from sparselens.storage.mask import keep_rows

    with connect(captured) as trace:
        stored = trace.sql(
            "SELECT prompt_id, head, data FROM selections JOIN runs USING (run_id)"
            " WHERE policy LIKE 'oracle%' AND layer = 0 ORDER BY prompt_id, head"
        ).df()
        shares = trace.sql(
            "SELECT prompt_id, head, kv_read_share FROM head_stats JOIN runs USING (run_id)"
            " WHERE policy LIKE 'oracle%' AND layer = 0 AND pattern = 'executed' AND rows = 'all'"
        ).df()
    for prompt in prompts[:2]:
        n = len(prompt)
        data = stored[stored.prompt_id == prompt.id].data.tolist()
        masks = [keep_rows(bytes(record), n - 9, n, n) for record in data]
        for head in range(4):
            pair = masks[head // 2 * 2] | masks[head // 2 * 2 + 1]
            mine = shares[(shares.prompt_id == prompt.id) & (shares["head"] == head)]
            assert mine.kv_read_share.item() == pytest.approx(pair.sum() / sum(range(n - 8, n + 1)))


def test_a_repetition_decodes_too(small: Any, captured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sparselens.workbench.rerun as module

    monkeypatch.setattr(module, "recorded_session", lambda *_: small)
    run = Trace.open(captured).runs()[1]
    found = rerun(captured, run.run_id)
    assert {entry.table for entry in found} == {"predictions", "head_stats", "diffs"}
    assert all(entry.missing == 0 and entry.largest == 0.0 for entry in found)


def test_show_says_how_many_tokens_were_decoded(captured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sparselens.workbench.commands.show import show

    show(Trace.open(captured).runs()[1].run_id, captured, as_json=True)
    assert json.loads(capsys.readouterr().out)["args"]["decode"] == 9


def test_the_answer_is_decoded_by_name(small: Any, prompts: Any, tmp_path: Path) -> None:
    policy = "a_shape(sink=1,window=2,phase=decode)"
    small.capture(prompts[:1], policy, tmp_path / "trace", decode="answer", progress=False)
    with connect(tmp_path / "trace") as trace:
        decoded = trace.sql("SELECT DISTINCT n_rows FROM head_stats WHERE rows = 'decoded'").rows
    assert decoded == [(len(prompts[0].answer_ids),)]


def test_only_recorded_layers_are_asked_again_and_the_numbers_stay(
    small: Any, prompts: Any, captured: Path, tmp_path: Path
) -> None:
    small.capture(prompts[:1], "oracle_topk(k=4)", tmp_path / "t", decode=9, layers=[1], progress=False)
    ask = (
        "SELECT scope, rows, head, write_error FROM diffs JOIN runs ON run_id = run_b"
        f" WHERE policy LIKE 'oracle%' AND layer = 1 AND prompt_id = '{prompts[0].id}' ORDER BY ALL"
    )
    with connect(tmp_path / "t") as few, connect(captured) as all_layers:
        assert few.sql(ask).rows == all_layers.sql(ask).rows


def test_layers_that_share_a_choice_are_asked_again_on_the_base_s_tensors(
    small: Any, prompts: Any, tmp_path: Path
) -> None:
    """Layer 0 chooses and keeps everything itself; its choice on the base's tensors is what layer 1 reads there."""
    policy = "tidal_decode(k=4,start=0,correction=2)"
    for name, layers in (("all", None), ("one", [1])):
        options = {"decode": 9, "verify": True, "layers": layers, "progress": False}
        runs = small.capture(prompts[:1], policy, tmp_path / name, **options)
        assert str(runs[1].verdict) == "verified 3/3"
    ask = "SELECT rows, head, write_error FROM diffs WHERE scope = 'local_policy' AND layer = 1 ORDER BY ALL"
    with connect(tmp_path / "all") as every, connect(tmp_path / "one") as one:
        found = every.sql(ask).rows
        assert len(found) >= 4
        assert one.sql(ask).rows == found
    # layer 0 is dense in both runs, so layer 1 gets the base's tensors and local and end-to-end errors agree
    end = ask.replace("local_policy", "end_to_end")
    with connect(tmp_path / "all") as every:
        for ours, theirs in zip(found, every.sql(end).rows, strict=True):
            assert ours[2] == pytest.approx(theirs[2], abs=1e-5)


def test_the_command_decodes_shows_and_repeats_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from small_model import save_small_model

    from sparselens.workbench import cli

    model, trace = str(save_small_model(tmp_path / "model")), str(tmp_path / "trace")
    capture = [
        "capture",
        model,
        "--trace",
        trace,
        "--prompts",
        "repeats(length=40,n=1)",
        "--policy",
        "h2o(heavy=3,recent=3)",
    ]
    assert cli.main(capture) == 2
    assert "a decode policy asked to prefill" in capsys.readouterr().err
    assert cli.main([*capture, "--decode", "half"]) == 2
    assert "a number of last tokens" in capsys.readouterr().err
    assert cli.main([*capture, "--decode", "9", "--verify"]) == 0
    assert "verified 3/3" in capsys.readouterr().out
    assert cli.main(["show", "h2o(heavy=3,recent=3)", "--trace", trace]) == 0
    shown = capsys.readouterr().out
    assert '"decode": 9' in shown
    assert "removals" in shown
    assert cli.main(["rerun", "h2o(heavy=3,recent=3)", "--trace", trace]) == 0
    assert "equal" in capsys.readouterr().out


# ---- what is refused ----


@pytest.mark.parametrize(
    "policy", ["a_shape(phase=decode)", "per_head(default=a_shape(phase=decode),full=[L0H0])"]
)
def test_a_decode_policy_asked_to_prefill_is_refused(
    small: Any, prompts: Any, tmp_path: Path, policy: str
) -> None:
    with pytest.raises(ValueError, match=r"a decode policy asked to prefill.*--decode"):
        small.capture(prompts, policy, tmp_path / "trace", progress=False)
    assert not (tmp_path / "trace").exists()


def test_a_decode_policy_may_generate(small: Any, prompts: Any, tmp_path: Path) -> None:
    small.capture(prompts[:1], "a_shape(phase=decode)", tmp_path / "trace", generate=2, progress=False)


@pytest.mark.parametrize(
    ("decode", "said"),
    [("answer", "'three' has no answer"), (500, "cannot be decoded"), ("some", "last tokens")],
)
def test_prompts_that_cannot_be_decoded_so_are_refused(
    small: Any, prompts: Any, tmp_path: Path, decode: int | str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        small.capture(prompts, "a_shape", tmp_path / "trace", decode=decode, progress=False)
    assert not (tmp_path / "trace").exists()


def test_the_option_is_a_number_or_the_answer(prompts: Any) -> None:
    assert [decode_option(text) for text in ("12", 12, "answer", None)] == [12, 12, "answer", None]
    assert [decoded_tokens(prompts[0], given) for given in (None, 4)] == [0, 4]
    for text in ("0", "-3", "1.5", "answers"):
        with pytest.raises(ValueError, match="1 or more"):
            decode_option(text)


@pytest.fixture(scope="module")
def exact_smollm2() -> Any:
    """The default model in float64: a decode step and a row of a prefill then differ by rounding of 1e-16."""
    from sparselens.workbench.models import load

    return load("smollm2-135m", dtype="float64", progress=False)


@pytest.mark.model
@pytest.mark.parametrize(
    "policy",
    [
        "quest(token_budget=16,page=4)",
        "snap_kv(capacity=24,window=16,kernel=5,local=8)",
        "h2o(heavy=12,recent=12)",
    ],
)
def test_the_default_model_decodes_in_one_pass_as_with_a_cache(exact_smollm2: Any, policy: str) -> None:
    """Residuals reach 1e3 and pass 30 layers: 1e-16 · 1e3 · 30 is 3e-12, and a norm may divide by a hundredth."""
    ids = torch.tensor([exact_smollm2.prompts("prose(length=80,n=1)")[0].token_ids])
    assert_same(exact_smollm2.model, ids, policy, 12, 1e-9)
