"""Every policy runs on real text and on other families: what the laws say of toy calls, said of models."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparselens.kernels.kernel import kernel
from sparselens.kernels.plan import Plan
from sparselens.kernels.policy import Policy, parse, policies
from sparselens.storage.reader import connect
from sparselens.workbench.capture import capture
from sparselens.workbench.models import wrap

from ..kernels.conftest import exact, make_call  # noqa: TID252
from ..kernels.policy_case import cases, chosen, kept  # noqa: TID252

BASIC = {
    "sliding_window": "sliding_window(window=64)",
    "a_shape": "a_shape(sink=4,window=64)",
    "vertical_slash": "vertical_slash(vertical=30,slash=30,sink=4,recent=8,min_vertical=8,min_slash=8)",
    "per_head": "per_head(default=a_shape(sink=4,window=64),full=[L18H6,L17H3])",
    "oracle_topk": "oracle_topk(k=64)",
    "oracle_mass": "oracle_mass(density=0.1)",
    "random": "random(density=0.1)",
    "streaming_llm": "streaming_llm(sink=4,recent=64)",
    "duo_attention": 'duo_attention(plan="{plan}",streaming=0.5,sink=4,recent=64)',
    "double_sparsity": 'double_sparsity(plan="{plan}",heavy=64,group_factor=4,label_bits=4,dense_layers=2)',
}
"""Calls for 512 tokens of the policies whose cases name none; plans are made by hand for the model's sizes."""
REAL = BASIC | {parse(case.text).name: case.real for case in cases() if case.real}
TOY = {parse(case.text).name: case.text for case in reversed(cases())} | {
    "minference": 'minference(plan="{plan}",tile=0)',
}
MOVED = ("streaming_llm",)
"""Policies that give keys other positions: a mask does not say what they compute, and `blocked` refuses them."""
UNROTATED = ("long_heads",)
"""Policies that score before RoPE where the call says its rotation, which a padded batch does not (see the card)."""
QUICK = ("a_shape", "x_attention")
"""Run with the other tests; the rest with the slow ones."""
SPARSE = sorted(set(policies()) - {"dense"})


def some_slow(names: list[str]) -> list[Any]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def planned(call: str, session: Any, folder: Path) -> Policy:
    """The policy of a call; where it needs a plan, one with arbitrary content for the session's sizes."""
    name = call.partition("(")[0]
    if 'plan="' not in call:
        return parse(call)
    rng = random.Random(0)
    layers, heads, groups = session.n_layers, session.n_heads, session.n_kv_heads
    order = list(range(session.head_dim))
    template = "a_shape(sink=2,window=9)"
    content = {
        "minference": {"heads": {f"L{at // heads}H{at % heads}": template for at in range(layers * heads)}},
        "duo_attention": {"gates": [[rng.random() for _ in range(groups)] for _ in range(layers)]},
        "double_sparsity": {
            "channels": [[rng.sample(order, len(order)) for _ in range(heads)] for _ in range(layers)]
        },
    }[name]
    source = session.provenance
    made = Plan(
        name, source.name, source.weight_hash or "", layers, heads, groups, {"made": "by hand"}, content
    )
    path = made.write(folder / f"{name}.json")
    before = call[call.index('plan="') :].split('"')[1]
    return parse(call.replace(before, str(path)))


def decode_of(policy: Policy, tokens: int) -> int | None:
    return tokens if policy.decodes_only else None


def test_every_policy_has_a_call_for_real_text() -> None:
    assert set(SPARSE) == set(REAL)


@pytest.mark.model
@pytest.mark.parametrize("name", some_slow(SPARSE))
def test_it_is_captured_on_real_text_verified_and_sparse(smollm2: Any, tmp_path: Path, name: str) -> None:
    """On 512 tokens of prose; a policy that only decodes decodes the last 64."""
    policy = planned(REAL[name], smollm2, tmp_path)
    decode = decode_of(policy, 64)
    how: dict[str, Any] = {
        "kernel": "reference" if name in MOVED else "blocked",
        "decode": decode,
        "verify": True,
    }
    _, run = capture(smollm2, "prose(length=512,n=1)", [policy], tmp_path / "t", progress=False, **how)
    assert str(run.verdict) == "verified 3/3"
    rows = "decoded" if decode else "all"
    with connect(tmp_path / "t") as trace:
        found = trace.sql(
            "SELECT sum(density * n_rows) / sum(n_rows) FROM head_stats WHERE pattern = 'executed' AND run_id = "
            f"'{run.run_id}' AND rows = '{rows}'"
        )
    assert 0 < found.rows[0][0] < 1


@pytest.fixture(scope="module", params=["gpt2", "gemma3"])
def family(request: pytest.FixtureRequest) -> Any:
    """Four layers of 6 heads: GPT-2 with joint projections, Gemma 3 with 2 key-value heads and native windows."""
    from small_tokenizer import small_tokenizer
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    if request.param == "gpt2":
        config = GPT2Config(
            vocab_size=3000, n_embd=96, n_layer=4, n_head=6, n_positions=256, initializer_range=0.2,
            attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
        )  # fmt: skip
        return wrap(GPT2LMHeadModel(config).eval().double(), small_tokenizer())
    gemma = Gemma3TextConfig(
        vocab_size=3000, hidden_size=96, intermediate_size=48, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2, head_dim=16, sliding_window=40, max_position_embeddings=256,
        layer_types=["sliding_attention", "full_attention"] * 2, initializer_range=0.2, query_pre_attn_scalar=16,
    )  # fmt: skip
    return wrap(Gemma3ForCausalLM(gemma).eval().double(), small_tokenizer())


@torch.no_grad()
def logits(session: Any, policy: Policy, ids: Tensor, mask: Tensor | None, decode: int | None) -> Tensor:
    """Logits `[batch, tokens, vocabulary]` on the reference kernel."""
    with session.under(policy, kernel="reference", decode=decode):
        places = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
        found: Tensor = session.model(
            input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False
        ).logits
    return found


@pytest.mark.parametrize("name", SPARSE)
def test_it_runs_on_other_families_and_padding_changes_nothing_or_is_refused(
    family: Any, tmp_path: Path, name: str
) -> None:
    """80 tokens beside 60, in float64: padding changes the order of sums, which no choice may depend on."""
    policy = planned(TOY[name], family, tmp_path)
    decode = decode_of(policy, 20)
    torch.manual_seed(1)
    ids = torch.randint(4, 3000, (2, 80))
    if (said := refused(lambda: logits(family, policy, ids[:1], None, decode))) is not None:
        assert name in MOVED, said
        return
    alone = logits(family, policy, ids[:1], None, decode), logits(family, policy, ids[1:, 20:], None, decode)
    dense = logits(family, parse("dense"), ids[:1], None, None)
    assert all(bool(each.isfinite().all()) for each in alone)
    assert (alone[0] - dense).abs().max() > 1e-3
    mask = torch.ones_like(ids)
    mask[1, :20] = 0
    if (said := refused(lambda: logits(family, policy, ids, mask, decode))) is not None:
        assert "pad" in said
        return
    both = logits(family, policy, ids, mask, decode)
    assert bool(both[0].isfinite().all())
    if name in UNROTATED and family.text_config.model_type != "gpt2":
        return
    assert (both[0] - alone[0][0]).abs().max() < 1e-9 * float(alone[0].abs().max().clamp(min=1))
    assert (both[1, 20:] - alone[1][0]).abs().max() < 1e-9 * float(alone[1].abs().max().clamp(min=1))


def refused(attempt: Callable[[], Any]) -> str | None:
    """The one line that an attempt is refused with; None where it works."""
    try:
        attempt()
    except (ValueError, NotImplementedError) as error:
        said = str(error)
    else:
        return None
    assert "\n" not in said
    return said


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.text)
def test_it_runs_in_bfloat16(case: Any) -> None:
    """What is kept of bfloat16 tensors, attended to by the reference: off by half a step of the output, 2⁻⁸ of it."""
    call = make_call(80, dtype=torch.bfloat16)
    selection = chosen(case.text, call)
    found = kernel("reference").attend(call, selection).output
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()
    if parse(case.text).name in MOVED:
        return
    expected = exact(call, kept(selection, call)).output
    assert ((found.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-5).all()
