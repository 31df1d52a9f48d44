"""Decoding in one pass: each decoded row keeps what its own decode call keeps, and memory answers as it would then."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.memory import Memory, Walk
from sparselens.kernels.policy import Policy, parse
from sparselens.kernels.selection import Bits, Everything, Groups, Mixture, Selection, Spliced, Union
from sparselens.kernels.walk import chosen, walked

from .conftest import make_call

TOKENS, PREFILL = 40, 29


def step_call(call: AttentionCall, at: int) -> AttentionCall:
    """The decode call of the token at `at`, made by hand."""
    return replace(
        call,
        query=call.query[:, :, at : at + 1],
        key=call.key[:, :, : at + 1],
        value=call.value[:, :, : at + 1],
        query_positions=call.query_positions[:, at : at + 1],
        key_positions=call.key_positions[:, : at + 1],
        allowed=replace(
            call.allowed,
            query_index=call.allowed.query_index[at : at + 1],
            key_index=call.allowed.key_index[: at + 1],
        ),
        phase="decode",
        step=at - PREFILL + 1,
    )


def prompt_call(call: AttentionCall) -> AttentionCall:
    """The prefill of the first `PREFILL` tokens."""
    index = call.allowed.query_index[:PREFILL]
    return replace(
        step_call(call, PREFILL - 1),
        query=call.query[:, :, :PREFILL],
        query_positions=call.query_positions[:, :PREFILL],
        allowed=replace(call.allowed, query_index=index, key_index=index),
        phase="prefill",
        step=0,
    )


def mask(selection: Selection, call: AttentionCall) -> Tensor:
    return selection.rows(call, 0, call.q_len).expand(1, call.heads, -1, -1)[0]


@pytest.mark.parametrize(
    "text",
    [
        "dense",
        "a_shape(sink=2,window=5)",
        "a_shape(sink=2,window=5,phase=decode)",
        "a_shape(sink=2,window=5,phase=prefill)",
        "a_shape(sink=2,window=5,dense_below=35)",
        "oracle_topk(k=4)",
        "oracle_mass(density=0.3)",
        "vertical_slash(vertical=4,slash=4,sink=1,recent=2,min_vertical=1,min_slash=1,last_q=8)",
        "per_head(default=oracle_mass(density=0.2),full=[L0H1])",
    ],
)
def test_every_row_keeps_what_its_own_call_keeps(text: str) -> None:
    call, policy, memory = make_call(TOKENS), parse(text), Memory()
    found = mask(walked(policy, call, memory, PREFILL), call)
    alone = Memory()
    first = mask(policy.selection_for(prompt_call(call), alone), prompt_call(call))
    assert torch.equal(found[:, :PREFILL, :PREFILL] & ~torch.ones(PREFILL, PREFILL).triu(1).bool(),
                       first & ~torch.ones(PREFILL, PREFILL).triu(1).bool())  # fmt: skip
    for at in range(PREFILL, TOKENS):
        one = step_call(call, at)
        kept = mask(policy.selection_for(one, alone), one)[:, 0]
        assert torch.equal(found[:, at, : at + 1], kept), at
    assert (memory.calls, memory.dense_calls) == (alone.calls, alone.dense_calls)
    assert memory.calls == 1 + TOKENS - PREFILL


@pytest.mark.parametrize("wrapped", ["bits", "groups", "union", "mixture"])
def test_a_selection_as_long_as_the_prompt_fits_the_whole_text(wrapped: str) -> None:
    bits = Bits.of(torch.rand(1, 6, PREFILL, PREFILL) < 0.5)
    groups = Groups(
        torch.randint(0, 3, (1, 1, PREFILL)), torch.randint(0, 3, (1, 1, PREFILL)), torch.eye(3).bool()[None, None]
    )  # fmt: skip
    made = {
        "bits": bits,
        "groups": groups,
        "union": Union((bits, groups)),
        "mixture": Mixture([((0, 1, 2), bits.of_heads(torch.arange(3))), ((3, 4, 5), groups)]),
    }[wrapped]

    @dataclass(frozen=True)
    class Fixed(Policy):
        name: ClassVar[str] = "fixed"

        def select(self, call: AttentionCall, memory: Memory) -> Selection:
            return made if call.phase == "prefill" else Everything()

    call = make_call(TOKENS)
    found = mask(walked(Fixed(), call, Memory(), PREFILL), call)
    assert torch.equal(found[:, :PREFILL, :PREFILL], mask(made, prompt_call(call)))
    assert not found[:, :PREFILL, PREFILL:].any()
    assert found[:, PREFILL:].all()


def test_what_is_dense_everywhere_stays_one_formula() -> None:
    call = make_call(TOKENS)
    assert isinstance(walked(parse("dense"), call, Memory(), PREFILL), Everything)
    assert isinstance(walked(parse("a_shape(phase=decode)"), call, Memory(), TOKENS), Everything)
    assert isinstance(walked(parse("a_shape(window=4)"), call, Memory(), PREFILL), Spliced)


def test_without_decoding_the_policy_is_asked_once() -> None:
    call, memory = make_call(TOKENS), Memory()
    chosen(parse("oracle_topk(k=3)"), call, memory, None)
    assert memory.calls == 1


@pytest.mark.parametrize("prefill", [0, TOKENS + 1])
def test_a_prefill_outside_the_text_is_refused(prefill: int) -> None:
    with pytest.raises(ValueError, match="1 to 40 tokens"):
        walked(parse("dense"), make_call(TOKENS), Memory(), prefill)


@pytest.mark.parametrize(
    "call", [make_call(20, batch=2), make_call(20, q_len=5), make_call(20, pads=[(3, 0)])]
)
def test_anything_but_one_whole_text_is_refused(call: AttentionCall) -> None:
    with pytest.raises(ValueError, match="whole text without padding"):
        walked(parse("dense"), call, Memory(), 2)


@dataclass(frozen=True)
class Follower(Policy):
    """Layer 0 leaves its step; the others keep the key at the number that layer 0 left, and themselves."""

    honest: bool = True
    reads: int = 0

    name: ClassVar[str] = "follower"

    @property
    def reads_layers(self) -> bool:
        return self.honest

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        if call.layer == 0:
            memory.set(0, "step", call.step)
            return Everything()
        left = memory.get(self.reads, "step", 0)
        keep = call.key_positions[0] == call.query_positions[0, :, None]
        keep |= call.key_positions[0] == left
        return Bits.of(keep[None, None])


def test_a_layer_reads_what_an_earlier_layer_left_at_the_same_step() -> None:
    memory, policy = Memory(), Follower()
    first, second = make_call(TOKENS), make_call(TOKENS, layer=1)
    walked(policy, first, memory, PREFILL)
    assert memory.get(0, "step") == TOKENS - PREFILL  # outside a walk: what was left last
    found = mask(walked(policy, second, memory, PREFILL), second)[0]
    for at in range(PREFILL, TOKENS):
        assert found[at].nonzero()[:, 0].tolist() == [at - PREFILL + 1, at]


def test_reading_another_layer_without_saying_so_is_an_error() -> None:
    memory, policy = Memory(), Follower(honest=False)
    walked(policy, make_call(TOKENS), memory, PREFILL)
    with pytest.raises(RuntimeError, match="reads_layers"):
        walked(policy, make_call(TOKENS, layer=1), memory, PREFILL)
    assert memory.walk is None


def test_reading_a_later_layer_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="later layers have not run yet"):
        walked(Follower(reads=2), make_call(TOKENS, layer=1), Memory(), PREFILL)


def test_leaving_things_for_another_layer_is_an_error() -> None:
    memory = Memory(walk=Walk(1, 0, keeps_steps=True))
    with pytest.raises(RuntimeError, match="under its own number"):
        memory.set(0, "step", 1)


def test_a_policy_around_one_that_reads_layers_reads_layers() -> None:
    from sparselens.kernels.policies.per_head import PerHead

    assert PerHead(default=Follower()).reads_layers
    assert not parse("per_head(default=oracle_topk)").reads_layers


def test_reset_forgets_the_steps_too() -> None:
    memory = Memory(walk=Walk(0, 3, keeps_steps=True))
    memory.set(0, "step", 3)
    memory.reset()
    memory.walk = Walk(1, 3, keeps_steps=True)
    assert memory.get(0, "step") is None


@pytest.mark.parametrize(
    ("text", "asleep"),
    [
        ("a_shape(phase=decode)", True),
        ("a_shape", False),
        ("a_shape(phase=prefill)", False),
        ("dense", False),
        ("per_head(default=a_shape(phase=decode),full=[L0H0])", True),
        ("per_head(default=a_shape,full=[L0H0],phase=decode)", True),
    ],
)
def test_what_drops_nothing_before_the_first_decoded_token_says_so(text: str, asleep: bool) -> None:
    assert parse(text).decodes_only == asleep
