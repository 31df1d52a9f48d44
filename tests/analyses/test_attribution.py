"""Attribution finds the token that was made to matter, and equals slow loops over models that are not ours."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, spearmanr
from small_model import save_small_model
from small_session import small_session
from small_tokenizer import small_tokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from sparselens.analyses.attribution import question as attribution
from sparselens.analyses.attribution.measure import seen
from sparselens.analyses.attribution.method import checked, frozen, integrated_gradients, log_probability
from sparselens.analyses.attribution.plan import (
    Attribution,
    Case,
    cases,
    replacement_token,
    template_tokens,
)
from sparselens.analyses.attribution.question import ANALYSIS
from sparselens.analyses.attribution.scores import (
    correlations,
    held_out_best,
    metrics,
    shuffled,
    spearman_given,
    units,
)
from sparselens.analyses.attribution.show import dense_partner
from sparselens.kernels.policy import policy as policy_of
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.workbench.cli import main
from sparselens.workbench.encoder import Encoder
from sparselens.workbench.models import wrap

WIDTH, HEAD, FACTS = 32, 8, 3
FACT, MARK, QUERY, FILLER = 100, 110, 120, 130  # the first of each kind of token
ANSWER = 200


def planted_model() -> Any:
    """One layer of GPT-2, set by hand: head 0 reads facts and copies them, head 1 reads marks, 2 and 3 read nothing.

    The token after the query is `ANSWER` plus the number of the facts' kind; a fact's kind is all that decides it.
    Features of the embedding come as +1 and −1 so that the norm's mean is 0: 0–2 the facts' kinds, 3 any fact,
    4 mark, 5 query, 6 filler.
    """
    config = GPT2Config(
        vocab_size=3000, n_embd=WIDTH, n_layer=1, n_head=4, n_positions=64, tie_word_embeddings=False,
        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    half = WIDTH // 2
    with torch.no_grad():
        for each in model.parameters():
            each.zero_()
        block, embedding = model.transformer.h[0], model.transformer.wte.weight
        for norm in (block.ln_1, block.ln_2, model.transformer.ln_f):
            norm.weight.fill_(1)
        features = dict.fromkeys(range(3000), (6,)) | {MARK: (4,), QUERY: (5,)}
        features |= {FACT + kind: (kind, 3) for kind in range(FACTS)}
        for token, own in features.items():
            for feature in own:
                embedding[token, feature], embedding[token, feature + half] = 1, -1
        query_in, key_in, value_in = block.attn.c_attn.weight.split(WIDTH, dim=1)
        query_in[5, 0], key_in[3, 0] = 2, 1
        query_in[5, HEAD], key_in[4, HEAD] = 2, 1
        for kind in range(FACTS):
            value_in[kind, kind] = 1
            block.attn.c_proj.weight[kind, 8 + kind] = 4
            model.lm_head.weight[ANSWER + kind, 8 + kind] = 1
    return model


def planted(tmp_path: Path, rows: list[dict[str, Any]]) -> tuple[Any, str]:
    """A session on the planted model, and a file with prompts of token ids."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return wrap(planted_model(), small_tokenizer()), str(path)


def asked(kind: int, places: list[int], *, mark: int, length: int = 14) -> dict[str, Any]:
    """A prompt of fillers with facts of one kind, a mark, and the query at its end."""
    ids = [FILLER + place for place in range(length)]
    for place in places:
        ids[place] = FACT + kind
    ids[mark] = MARK
    return {"token_ids": [*ids, QUERY], "answer": [ANSWER + kind], "group": f"kind {kind}"}


ONE_FACT = [
    asked(0, [3], mark=8),
    asked(1, [9], mark=4),
    asked(2, [6], mark=11),
    asked(0, [10], mark=2),
]


def scores_of(trace: Path, run_id: str) -> dict[tuple[str, int, int], float]:
    with connect(trace) as connection:
        rows = connection.sql(
            "SELECT metric, layer, head, value FROM head_scores WHERE analysis_id = $id AND head IS NOT NULL",
            {"id": run_id},
            max_rows=None,
        ).rows
    return {(metric, layer, head): value for metric, layer, head, value in rows}


def evals_of(trace: Path, run_id: str) -> dict[str, tuple[float, int]]:
    with connect(trace) as connection:
        rows = connection.sql(
            "SELECT metric, value, n FROM evals WHERE analysis_id = $id", {"id": run_id}, max_rows=None
        ).rows
    return {metric: (value, n) for metric, value, n in rows}


def test_both_methods_find_the_one_token_that_decides(tmp_path: Path) -> None:
    session, path = planted(tmp_path, ONE_FACT)
    chosen = Attribution(prompts=path, replacement="pad" if session.tokenizer.pad_token_id else "eos")
    for case, row in zip(cases(session, chosen), ONE_FACT, strict=True):
        found = seen(session, chosen, case, replacement_token(session.tokenizer, chosen.replacement))
        at = next(place for place, token in enumerate(row["token_ids"]) if FACT <= token < FACT + FACTS)
        assert found.answered
        for method in ("ig", "ablation"):
            size = np.abs(found.attributed[method])
            assert size.argmax() == at, method
            assert size[at] > 0.999 * size.sum(), method
            assert found.attributed[method][at] > 1


def test_the_head_that_reads_the_token_correlates_and_one_that_reads_elsewhere_does_not(
    tmp_path: Path,
) -> None:
    session, path = planted(tmp_path, ONE_FACT)
    run_id = ANALYSIS.run(session, tmp_path / "t", prompts=path, replacement="eos", steps=64)
    scores, evals = scores_of(tmp_path / "t", run_id), evals_of(tmp_path / "t", run_id)
    for method in ("", "_ig"):
        for stat in ("spearman", "kendall"):
            assert scores[f"attribution_{stat}_attention{method}", 0, 0] == pytest.approx(1)
            assert scores[f"attribution_{stat}_attention{method}", 0, 1] == pytest.approx(-1 / 12)
        assert scores[f"attribution_spearman_value_weighted{method}", 0, 0] == pytest.approx(1)
        assert (
            "attribution_spearman_attention",
            0,
            2,
        ) not in scores  # it reads all alike: no order to compare
        assert evals[f"attribution_spearman_attention{method}_best_head"][0] == pytest.approx(1)
    assert evals["ig_ablation_spearman"][0] == pytest.approx(1)
    assert evals["completeness_error"][0] < 0.01
    assert abs(evals["attribution_spearman_attention_shuffled"][0]) < 0.1
    assert evals["answered"] == (1, 4)


def test_a_policy_that_drops_the_token_that_mattered_takes_its_attribution(tmp_path: Path) -> None:
    """Two facts of the answer's kind far away outvote one of another kind that is near; the window sees that alone."""
    rows = [asked(kind, [2, 3], mark=6) for kind in range(FACTS)]
    for kind, row in enumerate(rows):
        row["token_ids"][10] = FACT + (kind + 1) % FACTS
    session, path = planted(tmp_path, rows)
    policy = "sliding_window(window=8)"
    token = replacement_token(session.tokenizer, "eos")
    for name in ("dense", policy):
        chosen = Attribution(prompts=path, policy=name, replacement="eos", steps=64)
        found = seen(session, chosen, cases(session, chosen)[0], token)
        assert found.answered is (name == "dense")
        for method in ("ig", "ablation"):
            first, second, near = found.attributed[method][[2, 3, 10]]
            assert near < -0.1
            for far in (first, second):
                assert far == pytest.approx(0, abs=1e-6) if name == policy else far > 0.1
        row = found.attention["attention"][0, 0]
        assert bool(row[2] == 0) is (name == policy)
        assert found.kept[0, 0].tolist() == [name == "dense" or at > 6 for at in range(15)]
    runs = {
        name: ANALYSIS.run(session, tmp_path / "t", prompts=path, policy=name, replacement="eos", steps=8)
        for name in ("dense", policy)
    }
    dense, sparse = (evals_of(tmp_path / "t", run_id) for run_id in runs.values())
    assert dense["dropped"][0] == 0
    assert sparse["dropped"][0] == pytest.approx(6 / 13)
    assert sparse["attribution_on_dropped"][0] == pytest.approx(0, abs=1e-6)
    shown = ANALYSIS.show(Trace.open(tmp_path / "t"), runs[policy], {})
    by = {(row["metric"], row["unit"]): row for row in shown.rows}
    row = by["attribution_spearman_attention", "all heads"]
    before = ANALYSIS.show(Trace.open(tmp_path / "t"), runs["dense"], {}).rows[0]
    assert row["dense"] == before["value"]
    assert row["change"] == pytest.approx(row["value"] - before["value"])
    assert "dense" not in before
    assert any("answer's row sees 54% of the compared tokens" in note for note in shown.notes)
    assert dense_partner(Trace.open(tmp_path / "t"), Trace.open(tmp_path / "t").run(runs["dense"])) is None


def test_where_all_that_mattered_is_dropped_there_is_no_order_to_compare(tmp_path: Path) -> None:
    session, path = planted(tmp_path, [asked(kind, [2], mark=10) for kind in range(FACTS)])
    run_id = ANALYSIS.run(
        session,
        tmp_path / "t",
        prompts=path,
        policy="sliding_window(window=8)",
        replacement="eos",
        methods="ablation",
    )
    evals = evals_of(tmp_path / "t", run_id)
    assert scores_of(tmp_path / "t", run_id) == {}
    assert evals["log_probability"][0] == pytest.approx(-math.log(3000))
    assert "attribution_spearman_attention" not in evals
    assert ANALYSIS.show(Trace.open(tmp_path / "t"), run_id, {}).notes


def gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=3000, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2,
        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, attn_implementation="eager",
    )  # fmt: skip
    return wrap(GPT2LMHeadModel(config).eval(), small_tokenizer())


def session_of(family: str, small: Any) -> Any:
    return small if family == "llama" else gpt2()


def a_case(session: Any) -> tuple[Case, int]:
    """A case of 20 tokens whose answer is what the model says, and the replacement's id."""
    ids = torch.randint(300, 2900, (20,), generator=torch.Generator().manual_seed(3)).tolist()
    answer = int(session.logits(torch.tensor([ids]))[0, -1].argmax())
    (prompt,) = session.prompts([{"token_ids": ids, "answer": [answer]}])
    replaced = tuple(0 < at < 19 for at in range(20))
    return Case(prompt, tuple(ids), answer, replaced), 7


class Eager:
    """The same weights in transformers' own eager attention, with a mask of kept pairs `[tokens, tokens]`."""

    def __init__(self, session: Any, keep: Tensor) -> None:
        self.model = session.model
        lowest = torch.finfo(torch.float32).min
        self.mask = torch.where(keep, 0.0, lowest)[None, None]

    def __enter__(self) -> Eager:
        self.before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        return self

    def __exit__(self, *_: object) -> None:
        self.model.set_attn_implementation(self.before)

    def log_probability(self, answer: int, **given: Tensor) -> Tensor:
        batch = next(iter(given.values())).shape[0]
        logits = self.model(
            **given, attention_mask=self.mask.expand(batch, -1, -1, -1), use_cache=False
        ).logits
        return torch.log_softmax(logits[:, -1].float(), -1)[:, answer]


POLICIES = {"dense": (20, 20), "a_shape(sink=2,window=6)": (2, 6)}


def kept_pairs(policy: str) -> Tensor:
    sink, window = POLICIES[policy]
    query, key = torch.arange(20)[:, None], torch.arange(20)[None]
    return (key <= query) & ((key < sink) | (query - key < window))


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_integrated_gradients_are_those_of_a_loop_over_another_attention(
    family: str, policy: str, small: Any
) -> None:
    session = session_of(family, small)
    case, token = a_case(session)
    chosen = Attribution(policy=policy, prompts="ioi()", methods="ig", steps=24, batch=5)
    found = seen(session, chosen, case, token)
    embedding = session.model.get_input_embeddings()
    ends = [embedding(torch.tensor([ids])).detach() for ids in (case.ids, case.with_replacement(token))]

    def gradient(alpha: float) -> Tensor:
        point = (ends[1] + alpha * (ends[0] - ends[1])).requires_grad_()
        eager.log_probability(case.answer, inputs_embeds=point).sum().backward()
        assert point.grad is not None
        return (point.grad * (ends[0] - ends[1])).sum(-1)[0]

    with Eager(session, kept_pairs(policy)) as eager, frozen(session):
        at, weight = np.polynomial.legendre.leggauss(24)
        slow = sum(w / 2 * gradient((a + 1) / 2) for a, w in zip(at, weight, strict=True))
        riemann = sum(gradient((step + 0.5) / 300) for step in range(300)) / 300
        with torch.no_grad():
            change = sum(
                sign * eager.log_probability(case.answer, inputs_embeds=end).item()
                for sign, end in zip((1, -1), ends, strict=True)
            )
    ig = found.attributed["ig"]
    size = float(slow.abs().max())
    assert ig == pytest.approx(slow.double().numpy(), abs=2e-4 * size)
    assert ig == pytest.approx(riemann.double().numpy(), abs=0.05 * size)
    assert riemann.sum().item() == pytest.approx(change, rel=0.01)
    assert ig.sum() == pytest.approx(change, rel=0.05)
    assert found.value - found.value_replaced == pytest.approx(change, abs=1e-3)
    assert (ig[[0, 19]] == 0).all()


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_ablation_is_a_plain_loop(family: str, policy: str, small: Any) -> None:
    session = session_of(family, small)
    case, token = a_case(session)
    chosen = Attribution(policy=policy, prompts="ioi()", methods="ablation", batch=4)
    found = seen(session, chosen, case, token).attributed["ablation"]
    with Eager(session, kept_pairs(policy)) as eager, torch.no_grad():
        whole = eager.log_probability(case.answer, input_ids=torch.tensor([case.ids])).item()
        for at in range(19):
            ids = torch.tensor([case.ids])
            ids[0, at] = token
            without = eager.log_probability(case.answer, input_ids=ids).item()
            assert found[at] == pytest.approx(whole - without, abs=2e-4)
    assert found[19] == 0
    assert found[0] != 0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_attention_rows_are_those_of_eager_maps(family: str, small: Any) -> None:
    session = session_of(family, small)
    case, token = a_case(session)
    chosen = Attribution(prompts="ioi()", methods="ablation", batch=32)
    found = seen(session, chosen, case, token)
    values: list[Tensor] = []
    layers = session.model.get_decoder().layers if family == "llama" else session.model.transformer.h
    outputs = []
    for layer in layers:
        if family == "llama":
            outputs.append((layer.self_attn.v_proj, layer.self_attn.o_proj.weight.T))
        else:
            outputs.append((layer.attn.c_attn, layer.attn.c_proj.weight))
    handles = [
        module.register_forward_hook(lambda _, __, out: values.append(out[0].detach()))
        for module, _ in outputs
    ]
    with Eager(session, kept_pairs("dense")) as eager, torch.no_grad():
        maps = eager.model(
            input_ids=torch.tensor([case.ids]), output_attentions=True, use_cache=False
        ).attentions
    for handle in handles:
        handle.remove()
    for layer, (_, projection) in enumerate(outputs):
        for head in range(4):
            row = maps[layer][0, head, 19]
            assert found.attention["attention"][layer, head] == pytest.approx(row.numpy(), abs=1e-5)
            own = projection.detach()[head * 8 : head * 8 + 8]
            value = values[layer]
            if family == "llama":
                value = value[:, head // 2 * 8 : head // 2 * 8 + 8]
            else:
                value = value[:, 64 + head * 8 : 64 + head * 8 + 8]
            written = (value @ own).norm(dim=-1)
            expected = (row * written).detach().numpy()
            assert found.attention["value_weighted"][layer, head] == pytest.approx(expected, abs=1e-4)
            column = [maps[layer][0, head, key:, key].mean().item() for key in range(20)]
            assert found.attention["received"][layer, head] == pytest.approx(column, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_bridged_model_is_attributed_the_same(family: str) -> None:
    session = small_session() if family == "llama" else gpt2()
    case, token = a_case(session)
    chosen = Attribution(policy="a_shape(sink=2,window=6)", prompts="ioi()", steps=4, batch=4)
    plain = seen(session, chosen, case, token)
    assert session.bridge is not None
    bridged = seen(session, chosen, case, token)
    for method, values in plain.attributed.items():
        assert bridged.attributed[method] == pytest.approx(values, abs=1e-4 * np.abs(values).max())
    for name, rows in plain.attention.items():
        assert bridged.attention[name] == pytest.approx(rows, abs=1e-5)


def test_the_weights_are_as_trainable_as_before(small: Any) -> None:
    before = [each.requires_grad for each in small.model.parameters()]
    case, token = a_case(small)
    checked(small)
    target = log_probability(small, case.answer)
    with pytest.raises(RuntimeError, match="stop"), small.under("dense"):
        integrated_gradients(
            small,
            lambda ids: (_ for _ in ()).throw(RuntimeError("stop")),
            *(torch.tensor([ids]) for ids in (case.ids, case.with_replacement(token))),
            steps=2,
            batch=1,
        )
    assert [each.requires_grad for each in small.model.parameters()] == before
    assert not small.model.get_input_embeddings()._forward_hooks
    assert target(torch.tensor([case.ids])).requires_grad


def test_a_policy_that_reads_tensors_selects_anew_at_every_pass(small: Any) -> None:
    lengths: list[int] = []

    @policy_of
    def counting(call: Any, memory: Any) -> Any:
        del memory
        lengths.append(call.batch)
        return call.scores(0, call.q_len) > -1e9

    case, token = a_case(small)
    chosen = Attribution(prompts="ioi()", steps=6, batch=3)
    object.__setattr__(chosen, "policy", counting)
    found = seen(small, chosen, case, token)
    forwards = sum(lengths) / 2  # two layers
    # watched, baseline, IG's two ends, its 6 steps, ablation's whole prompt, 19 tokens and all that is kept
    assert forwards == 1 + 1 + 2 + 6 + 1 + 19 + 1
    dense = seen(small, Attribution(prompts="ioi()", steps=6, batch=3), case, token)
    size = np.abs(dense.attributed["ig"]).max()
    assert found.attributed["ig"] == pytest.approx(dense.attributed["ig"], abs=1e-5 * size)


def test_correlations_are_scipys_and_units_are_means() -> None:
    draw = np.random.default_rng(0)
    values = draw.random((2, 3, 12))
    attributed = {"ig": draw.normal(size=12), "ablation": draw.normal(size=12)}
    replaced = np.array([False] + [True] * 10 + [False])
    attention = {
        name: units(values * factor)
        for name, factor in (("attention", 1), ("value_weighted", 2), ("received", 3))
    }
    assert attention["attention"].shape == (6 + 2 + 1, 12)
    assert attention["attention"][7] == pytest.approx(values[1].mean(0))
    assert attention["attention"][8] == pytest.approx(values.reshape(6, 12).mean(0))
    found = correlations(attributed, attention, replaced)
    assert set(found) == {metric.name for metric in metrics(("ablation", "ig"))}
    row = attention["attention"][4]
    inside = slice(1, 11)
    for name, expected in {
        "attribution_spearman_attention_ig": spearmanr(np.abs(attributed["ig"][inside]), row[inside]),
        "attribution_spearman_attention_ig_signed": spearmanr(attributed["ig"][inside], row[inside]),
        "attribution_kendall_received": kendalltau(np.abs(attributed["ablation"][inside]), row[inside]),
        "attribution_spearman_attention_with_first": spearmanr(np.abs(attributed["ablation"][:11]), row[:11]),
    }.items():
        assert found[name][4] == pytest.approx(expected.statistic), name


def test_what_two_orders_share_beyond_a_third_is_the_partial_correlation() -> None:
    draw = np.random.default_rng(2)
    position = np.arange(80)
    near = position + draw.normal(size=(2, 80)) * 10
    attributed, attention = near[0], np.stack([near[1], draw.normal(size=80), near[0] - position])
    found = spearman_given(attributed, attention, position)
    for row, value in zip(attention, found, strict=True):
        ay, ap, yp = (
            spearmanr(*pair).statistic
            for pair in ((attributed, row), (attributed, position), (row, position))
        )
        assert value == pytest.approx((ay - ap * yp) / math.sqrt((1 - ap**2) * (1 - yp**2)))
    assert spearmanr(attributed, attention[0]).statistic > 0.8
    assert abs(found[0]) < 3 / math.sqrt(77)  # nothing but their place made them alike
    assert found[2] > 0.7
    assert np.isnan(spearman_given(attributed, position[None] * 2.0, position))


def test_shuffled_attribution_correlates_with_nothing() -> None:
    draw = np.random.default_rng(1)
    attributed = draw.normal(size=60)
    attention = np.abs(attributed)[None] + 0.01 * draw.random((3, 60))
    control = shuffled(attributed, attention, draws=400, seed="a prompt")
    assert control.shape == (400, 3)
    assert abs(control.mean()) < 3 / np.sqrt(400 * 59)
    assert control[:, 0].std() == pytest.approx(1 / np.sqrt(59), rel=0.15)  # that of chance at 60 tokens
    assert spearmanr(np.abs(attributed), attention[0]).statistic > 0.99
    again = shuffled(attributed, attention, draws=400, seed="a prompt")
    assert np.array_equal(control, again)


def test_the_best_head_is_chosen_on_other_clusters() -> None:
    values = np.array([[0.9, 0.1], [0.8, 0.2], [0.0, 0.7], [np.nan, 0.5]])
    found = held_out_best(values, ["a", "a", "b", "c"])
    assert found[:3].tolist() == [0.1, 0.2, 0.0]
    assert np.isnan(found[3])  # the best elsewhere has no value there
    assert np.isnan(held_out_best(values[:2], ["a", "a"])).all()


def words(small: Any, tmp_path: Path, *, n: int = 5) -> tuple[str, list[dict[str, Any]]]:
    """A file of prompts that the small random model answers, since its own first guess is their answer."""
    rows = []
    draw = torch.Generator().manual_seed(5)
    for number in range(n):
        ids = torch.randint(300, 2900, (12 + number,), generator=draw).tolist()
        answer = int(small.logits(torch.tensor([ids]))[0, -1].argmax())
        rows.append({"token_ids": ids, "answer": [answer], "group": f"g{number % 3}", "id": f"p{number}"})
    (tmp_path / "words.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return str(tmp_path / "words.jsonl"), rows


QUICK = {"steps": 4, "shuffles": 5}


def test_scores_do_not_depend_on_the_order_of_the_prompts(small: Any, tmp_path: Path) -> None:
    path, rows = words(small, tmp_path)
    (tmp_path / "back.jsonl").write_text("\n".join(json.dumps(row) for row in rows[::-1]))
    first = ANALYSIS.run(small, tmp_path / "t", prompts=path, **QUICK)
    second = ANALYSIS.run(small, tmp_path / "u", prompts=str(tmp_path / "back.jsonl"), **QUICK)
    one, other = scores_of(tmp_path / "t", first), scores_of(tmp_path / "u", second)
    assert one.keys() == other.keys()
    assert all(one[key] == pytest.approx(other[key], abs=1e-12) for key in one)
    pairs = evals_of(tmp_path / "t", first), evals_of(tmp_path / "u", second)
    assert pairs[0].keys() == pairs[1].keys()
    assert all(pairs[0][key] == pytest.approx(pairs[1][key], abs=1e-12) for key in pairs[0])


def test_every_row_says_what_it_is_over(small: Any, tmp_path: Path) -> None:
    path, rows = words(small, tmp_path)
    wrong = {**rows[0], "token_ids": rows[0]["token_ids"][::-1], "id": "wrong"}
    said = int(small.logits(torch.tensor([wrong["token_ids"]]))[0, -1].argmin())
    Path(path).write_text("\n".join(json.dumps(row) for row in [*rows, {**wrong, "answer": [said]}]))
    run_id = ANALYSIS.run(small, tmp_path / "t", prompts=path, **QUICK)
    with connect(tmp_path / "t") as connection:
        frame = connection.sql("SELECT * FROM head_scores", max_rows=None).df()
        prompts = connection.sql("SELECT * FROM prompt_scores", max_rows=None).df()
        evals = connection.sql("SELECT * FROM evals", max_rows=None).df()
    assert set(frame["metric"]) == {metric.name for metric in metrics(("ablation", "ig"))}
    assert frame.groupby("metric").size().tolist() == [8 + 2] * frame["metric"].nunique()
    assert frame["head"].isna().sum() == 2 * frame["metric"].nunique()
    assert (
        not frame[["value", "n", "n_clusters", "ci_low", "ci_high", "definition", "params"]]
        .isna()
        .any()
        .any()
    )
    assert set(frame["n"]) == {5}
    assert set(frame["n_clusters"]) == {3}
    assert (frame["ci_low"] <= frame["value"] + 1e-9).all()
    params = json.loads(frame["params"][0])
    assert params["selection"] == "recompute"
    assert params["unanswered"] == 1
    assert params["replacement_id"] == replacement_token(small.tokenizer, " the")
    assert prompts["prompt_id"].nunique() == 5
    layer = frame[(frame["metric"] == "attribution_spearman_attention") & frame["head"].isna()]
    assert len(layer) == 2
    model = prompts[prompts["metric"] == "attribution_spearman_attention"]["value"].mean()
    stored = evals[evals["metric"] == "attribution_spearman_attention"]["value"].item()
    assert stored == pytest.approx(model)
    notes = " ".join(ANALYSIS.show(Trace.open(tmp_path / "t"), run_id, {"top": 2}).notes)
    assert "5 prompts of" in notes
    assert "1 others left out" in notes
    assert "shuffled attribution" in notes


def test_a_path_integral_that_misses_is_said(small: Any, tmp_path: Path) -> None:
    path, _ = words(small, tmp_path)
    run_id = ANALYSIS.run(small, tmp_path / "t", prompts=path, steps=2, shuffles=5, methods="ig")
    error = evals_of(tmp_path / "t", run_id)["completeness_error"][0]
    assert error > 0.05
    notes = ANALYSIS.show(Trace.open(tmp_path / "t"), run_id, {}).notes
    assert any(note.startswith(f"WARNING: integrated gradients miss {error:.1%}") for note in notes)


def test_an_interrupted_run_goes_on_where_it_stopped(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = words(small, tmp_path)
    whole = ANALYSIS.run(small, tmp_path / "whole", prompts=path, **QUICK)
    measured: list[str] = []

    def told(session: Any, chosen: Any, case: Case, *rest: Any) -> Any:
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(case.prompt.name)
        return seen(session, chosen, case, *rest)

    monkeypatch.setattr(attribution, "seen", told)
    with pytest.raises(KeyboardInterrupt):
        ANALYSIS.run(small, tmp_path / "t", prompts=path, **QUICK)
    monkeypatch.setattr(attribution, "seen", lambda *given: measured.append("more") or seen(*given))
    done = ANALYSIS.run(small, tmp_path / "t", prompts=path, **QUICK)
    assert measured == ["p0", "p1", "p2", "more", "more"]
    assert scores_of(tmp_path / "t", done) == scores_of(tmp_path / "whole", whole)


def test_a_file_that_changed_is_measured_anew(small: Any, tmp_path: Path) -> None:
    path, rows = words(small, tmp_path)
    first = ANALYSIS.run(small, tmp_path / "t", prompts=path, methods="ablation", **QUICK)
    assert ANALYSIS.run(small, tmp_path / "t", prompts=path, methods="ablation", **QUICK) == first
    Path(path).write_text("\n".join(json.dumps(row) for row in rows[:4]))
    assert ANALYSIS.run(small, tmp_path / "t", prompts=path, methods="ablation", **QUICK) != first


def test_the_templates_words_are_not_replaced(small: Any) -> None:
    (prompt,) = small.prompts(
        [{"messages": [{"role": "user", "content": "the quick brown fox jumps over"}], "answer": " the"}]
    )
    encoder = Encoder(small.tokenizer)
    marked = template_tokens(prompt, encoder)
    inside = "".join(piece for piece, own in zip(prompt.pieces, marked, strict=True) if not own)
    assert inside == "the quick brown fox jumps over the"
    (plain,) = small.prompts([{"text": "the quick brown fox jumps over", "answer": " the"}])
    assert not any(template_tokens(plain, encoder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": "shapley"}, "methods are ablation, ig"),
        ({"steps": 1}, "steps is at least 2"),
        ({"prompts": "nowhere.jsonl"}, "a built-in set or a file that exists"),
        ({"prompts": "needle(length=64)"}, "unknown prompt set 'needle'"),
        ({"replacement": "two words of it"}, "has 5 tokens"),
        ({"replacement": "unk"}, "this tokenizer has no unk token; it has eos, bos"),
        ({"bos": "maybe"}, "bos is one of default"),
        ({"policy": "nothing"}, "no policy named 'nothing'"),
        ({"prompts": "prose(length=32,n=2)"}, "has no answer"),
        ({"prompts": "ioi(n=2)"}, "the model predicts the answer of none of the 4 prompts of ioi"),
    ],
)
def test_what_cannot_be_attributed_is_refused_and_nothing_is_written(
    small: Any, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ANALYSIS.run(small, tmp_path / "t", **arguments)
    assert not (tmp_path / "t" / "runs").exists() or not list((tmp_path / "t" / "runs").iterdir())


def test_a_prompt_too_short_to_compare_is_named(small: Any, tmp_path: Path) -> None:
    (tmp_path / "short.jsonl").write_text(
        json.dumps({"token_ids": [301, 302, 303], "answer": [304], "id": "tiny"})
    )
    with pytest.raises(
        ValueError, match="the prompt tiny has 1 tokens to compare between its first and its last; 4"
    ):
        ANALYSIS.run(small, tmp_path / "t", prompts=str(tmp_path / "short.jsonl"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_command_answers_and_compares_with_dense(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if family == "llama":
        folder = save_small_model(tmp_path / "model")
        from sparselens.workbench.models import load

        session = load(str(folder), progress=False)
    else:
        session = gpt2()
        folder = tmp_path / "model"
        session.model.save_pretrained(folder)
        small_tokenizer().save_pretrained(folder)
    path, _ = words(session, tmp_path, n=3)
    call = f"attribution(prompts={path!r},steps=3,shuffles=5)"
    words_ = ["analyse", call, "--model", str(folder), "--trace", str(tmp_path / "t"), "--json"]
    assert main(words_) == 0
    plain = capsys.readouterr()
    assert "3 prompts of 13 tokens" in plain.err
    assert main([*words_, "--policy", "a_shape(sink=1,window=4)"]) == 0
    sparse = capsys.readouterr()
    rows = json.loads(sparse.out)
    assert {"dense", "change", "change_low", "change_high"} <= set(rows[0])
    assert rows[0]["dense"] == json.loads(plain.out)[0]["value"]
    assert "paired by prompt" in sparse.err
