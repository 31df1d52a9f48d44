"""LongHeads' selection is its formula in loops, token by token too, before RoPE where that is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policies.long_heads import LongHeads
from sparselens.kernels.policy import Memory
from sparselens.kernels.walk import walked

from .conftest import make_call
from .policy_case import chosen, kept, mask_of

POLICY = LongHeads(chunks=4, chunk=8)


def softmax(values: list[float]) -> list[float]:
    high = max(values)
    weights = [math.exp(value - high) for value in values]
    return [weight / sum(weights) for weight in weights]


def in_loops(call: AttentionCall, scored: Tensor, query: Tensor, key: Tensor, policy: LongHeads) -> Tensor:
    """The mask `[heads, q, k]`, in loops over float64: `scored` queries, `query` and `key` inside chunks."""
    n, size = call.k_len, policy.chunk
    mask = torch.zeros(call.heads, n, n, dtype=torch.bool)
    for head in range(call.heads):
        q_, k_ = query[0, head].double(), key[0, head // call.group].double()
        v_ = call.value[0, head // call.group].double()
        chunk_keys = []
        for start in range(0, n - size + 1, size):
            inside = range(start, start + size)
            outputs = []
            for q in inside:
                weights = softmax([float(q_[q] @ k_[k]) * call.scale for k in inside])
                outputs.append(sum(w * v_[k] for w, k in zip(weights, inside, strict=True)))
            mean = sum(outputs) / size  # type: ignore[arg-type]
            weights = softmax([float(mean @ k_[k]) * call.scale for k in inside])
            chunk_keys.append(sum(w * k_[k] for w, k in zip(weights, inside, strict=True)))
        for q in range(n):
            own = q // size
            forced = {0, own - 1, own}
            ranked = sorted(
                range(own + 1),
                key=lambda c: (
                    -math.inf if c in forced else -float(scored[0, head, q].double() @ chunk_keys[c])
                ),
            )
            for chunk in ranked[: policy.chunks]:
                for k in range(chunk * size, min(n, (chunk + 1) * size)):
                    mask[head, q, k] = k <= q
    return mask


@pytest.mark.parametrize("length", [80, 67])
def test_it_is_its_formula_in_loops(length: int) -> None:
    """Queries before RoPE meet chunk keys that are rotated inside their chunk."""
    call, at = make_call(length), torch.arange(length)
    assert call.rope is not None
    before, key = (call.rope.undo(tensor, at) for tensor in (call.query, call.key))
    inside = [call.rope.turn(tensor, at % 8) for tensor in (before, key)]
    assert torch.equal(mask_of(str(POLICY), call)[0], in_loops(call, before, *inside, POLICY))


def test_without_a_known_rotation_all_are_as_they_are() -> None:
    call = replace(make_call(80), rope=None)
    expected = in_loops(call, call.query, call.query, call.key, POLICY)
    assert torch.equal(mask_of(str(POLICY), call)[0], expected)


@pytest.mark.parametrize("prefill", [1, 31, 40, 79])
def test_decoding_keeps_what_a_prefill_would(prefill: int) -> None:
    """Chunks that are completed while decoding are made of the queries that came one by one."""
    call = make_call(80)
    mask = kept(walked(POLICY, call, Memory(), prefill), call)
    assert torch.equal(mask, mask_of(str(POLICY), call))


def test_a_prefill_in_chunks_keeps_the_same() -> None:
    call, memory = make_call(80), Memory()
    whole = mask_of(str(POLICY), call)
    for start, stop in ((0, 13), (13, 50), (50, 80)):
        part = call.sequence(0, torch.arange(start, stop), torch.arange(stop))
        found = kept(POLICY.selection_for(part, memory), part)
        assert torch.equal(found, whole[:, :, start:stop, :stop])


def test_a_dense_prompt_leaves_its_chunk_keys_to_the_tokens_after_it() -> None:
    call = make_call(80)
    for policy in (POLICY(phase="decode"), POLICY(dense_below=50)):
        mask = kept(walked(policy, call, Memory(), 49), call)
        assert torch.equal(mask[:, :, 49:], mask_of(str(POLICY), call)[:, :, 49:])
        assert torch.equal(mask[0, 0, :49], torch.ones(49, 80, dtype=torch.bool).tril())


def test_queries_that_were_not_seen_raise() -> None:
    with pytest.raises(ValueError, match="were not seen"):
        chosen(str(POLICY), make_call(80, q_len=1))


def test_the_forced_chunks_count() -> None:
    mask = mask_of(str(POLICY), make_call(80))[0]
    assert (mask[:, 79].view(6, 10, 8).any(-1).sum(-1) == 4).all()
    assert mask[:, 79, :8].all()
    assert mask[:, 79, 64:].all()


def test_fields_that_cannot_be_raise() -> None:
    for wrong, said in (({"chunks": 2}, "3 or more"), ({"chunk": 0}, "chunk is 1")):
        with pytest.raises(ValueError, match=said):
            LongHeads(**wrong)


def test_chunks_that_a_native_window_dropped_from_the_cache_are_not_read() -> None:
    call, memory = make_call(80, window=20), Memory()
    whole = mask_of(str(POLICY), call)
    prompt = call.sequence(0, torch.arange(60), torch.arange(60))
    POLICY.selection_for(prompt, memory)
    for q in range(60, 80):
        one = call.sequence(0, torch.tensor([q]), torch.arange(q - 19, q + 1))
        found = kept(POLICY.selection_for(one, memory), one)
        assert torch.equal(found[:, :, 0], whole[:, :, q, q - 19 : q + 1]), q
