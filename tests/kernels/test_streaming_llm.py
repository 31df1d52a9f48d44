"""StreamingLLM's cache, retold row by row: keys un-rotated, kept or evicted, rotated again at their new place."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import kernel
from sparselens.kernels.memory import Memory
from sparselens.kernels.policy import parse
from sparselens.kernels.selection import Band, Biased, Mixture, Union
from sparselens.kernels.walk import walked

from .conftest import TOLERANCE, difference, exact, make_call

REFERENCE = kernel("reference")


def turned(vector: Tensor, position: int) -> Tensor:
    """A toy query or key before RoPE, turned to a position, channel pair by channel pair."""
    half = len(vector) // 2
    out = torch.zeros_like(vector)
    for channel in range(half):
        angle = position * 100.0 ** (-channel / half)
        a, b = float(vector[channel]), float(vector[channel + half])
        out[channel] = a * math.cos(angle) - b * math.sin(angle)
        out[channel + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def streamed(call: AttentionCall, sink: int, recent: int) -> tuple[Tensor, list[list[int]]]:
    """Outputs `[heads, q_len, head_dim]` in float64 of a cache of un-rotated keys, and its content, token by token."""
    output = torch.zeros(call.heads, call.q_len, call.head_dim, dtype=torch.float64)
    cache: list[int] = []
    contents = []
    for row in range(call.q_len):
        if len(cache) + 1 > sink + recent:
            cache = cache[:sink] + cache[len(cache) + 1 - recent :]
        cache.append(row)
        contents.append(list(cache))
        for head in range(call.heads):
            raw = turned(call.query[0, head, row].double(), -row)
            query = turned(raw, len(cache) - 1)
            group = head // call.group
            scores = []
            for place, key in enumerate(cache):
                again = turned(turned(call.key[0, group, key].double(), -key), place)
                score = float(query @ again) * call.scale
                scores.append(call.softcap * math.tanh(score / call.softcap) if call.softcap else score)
            weights = torch.softmax(torch.tensor(scores, dtype=torch.float64), 0)
            output[head, row] = weights @ call.value[0, group, cache].double()
    return output, contents


@pytest.mark.parametrize(
    ("length", "sink", "recent", "softcap"),
    [(40, 3, 9, None), (40, 1, 1, 5.0), (12, 0, 4, None), (1, 3, 9, None)],
)
def test_outputs_are_those_of_a_cache_numbered_anew(
    length: int, sink: int, recent: int, softcap: float | None
) -> None:
    call = make_call(length, softcap=softcap)
    selection = parse(f"streaming_llm(sink={sink},recent={recent})").select(call, Memory())
    output, contents = streamed(call, sink, recent)
    assert difference(REFERENCE.attend(call, selection).output[0], output) < TOLERANCE
    mask = selection.kept(call, 0, length)[0, 0]
    assert [row.nonzero()[:, 0].tolist() for row in mask] == contents


@pytest.mark.parametrize("phase", ["both", "decode"])
def test_decoding_in_one_pass_keeps_bias_and_keys(phase: str) -> None:
    call = make_call(40)
    policy = parse(f"streaming_llm(sink=3,recent=9,phase={phase})")
    selection = walked(policy, call, Memory(), 20)
    found = REFERENCE.attend(call, selection).output[0, :, 20:]
    assert difference(found, streamed(call, 3, 9)[0][:, 20:]) < TOLERANCE
    dense = exact(call, torch.ones(1, 1, 40, 40, dtype=torch.bool)).output[0, :, :20]
    if phase == "decode":
        assert difference(REFERENCE.attend(call, selection).output[0, :, :20], dense) < TOLERANCE


def test_it_is_a_shape_while_the_text_fits_and_not_after() -> None:
    call = make_call(40)
    ours, mask = (REFERENCE.attend(call, parse(text).select(call, Memory())).output[0] for text in
                  ("streaming_llm(sink=3,recent=9)", "a_shape(sink=3,window=9)"))  # fmt: skip
    assert torch.equal(ours[:, :12], mask[:, :12])
    assert difference(ours[:, 12:], mask[:, 12:]) > 0.01


def test_what_left_is_logged_before_the_token_that_takes_its_place() -> None:
    memory = Memory()
    walked(parse("streaming_llm(sink=3,recent=9)"), make_call(40), memory, 20)
    logged = {
        (entry.kv_head, entry.step): entry.positions.tolist() for entry in memory.removals if entry.step
    }
    assert logged == {(head, step): [step + 11] for head in range(2) for step in range(1, 20)}
    first = [entry.positions.tolist() for entry in memory.removals if not entry.step and not entry.kv_head]
    assert first == [
        list(range(3, 11)),
        [11],
    ]  # while the prompt was streamed, and before the first decoded token


def test_without_rotary_positions_it_says_so() -> None:
    call = replace(make_call(40), rope=None)
    with pytest.raises(ValueError, match="a_shape keeps the same keys"):
        parse("streaming_llm(sink=3,recent=9)").select(call, Memory())


@pytest.mark.parametrize("name", ["blocked", "triton"])
def test_kernels_that_do_not_change_scores_refuse(name: str) -> None:
    call = make_call(40)
    selection = parse("streaming_llm(sink=3,recent=9)").select(call, Memory())
    with pytest.raises(ValueError, match="changes scores"):
        kernel(name).attend(call, selection)


@pytest.mark.parametrize("fields", ["sink=-1", "recent=0"])
def test_bad_fields_are_refused(fields: str) -> None:
    with pytest.raises(ValueError, match="streaming_llm"):
        parse(f"streaming_llm({fields})")


# ---- the selection that changes scores ----


def biased(call: AttentionCall) -> Biased:
    return Biased(Band(2, 6), torch.tensor([0, 4]), torch.randn(1, call.heads, call.q_len, 2))


def by_hand(call: AttentionCall, selection: Biased) -> Tensor:
    """Float64 outputs with the bias added in its two columns."""
    key, value = (part[0].double().repeat_interleave(call.group, 0) for part in (call.key, call.value))
    scores = call.query[0].double() @ key.transpose(1, 2) * call.scale
    for place, column in enumerate(selection.columns.tolist()):
        scores[:, :, column] += selection.bias[0, :, :, place].double()
    kept = selection.kept(call, 0, call.q_len)[0]
    return torch.softmax(scores.masked_fill(~kept, -torch.inf), -1) @ value


def test_the_reference_adds_the_bias() -> None:
    call = make_call(30)
    selection = biased(call)
    assert difference(REFERENCE.attend(call, selection).output[0], by_hand(call, selection)) < TOLERANCE
    plain = REFERENCE.attend(call, selection.unbiased()).output
    assert torch.equal(plain, REFERENCE.attend(call, Band(2, 6)).output)


def test_a_mixture_adds_it_to_the_heads_of_its_part() -> None:
    call = make_call(30)
    whole = biased(call)
    few = torch.tensor([1, 4])
    mixture = Mixture([((1, 4), whole.of_heads(few)), ((0, 2, 3, 5), Band(0, 9))])
    assert mixture.biased
    found = REFERENCE.attend(call, mixture).output[0]
    assert difference(found[few], by_hand(call, whole)[few]) < TOLERANCE
    rest = torch.tensor([0, 2, 3, 5])
    assert torch.equal(found[rest], REFERENCE.attend(call, Band(0, 9)).output[0, rest])
    assert not mixture.unbiased().biased


def test_gradients_take_the_bias_as_a_constant() -> None:
    from sparselens.kernels.gradient import attend_with_gradient
    from sparselens.kernels.statistics import NOTHING

    call = make_call(20, dtype=torch.float64, softcap=5.0)
    selection = biased(call)
    tensors = [part.clone().requires_grad_() for part in (call.query, call.key, call.value)]
    ours = attend_with_gradient(
        REFERENCE, replace(call, query=tensors[0], key=tensors[1], value=tensors[2]), selection, NOTHING
    )
    weight = torch.randn_like(ours.output)
    found = torch.autograd.grad((ours.output * weight).sum(), tensors)
    query, key, value = tensors[0], *(part.repeat_interleave(3, 1) for part in tensors[1:])
    scores = 5 * torch.tanh(query @ key.transpose(-1, -2) * call.scale / 5)
    scores = scores + selection.bias_rows(call, 0, 20)
    plain = torch.softmax(scores.masked_fill(~selection.kept(call, 0, 20), -torch.inf), -1) @ value
    expected = torch.autograd.grad((plain * weight).sum(), tensors)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < 1e-12


def test_a_record_of_it_gives_keys_and_bias_back() -> None:
    from sparselens.storage.mask import bias_rows, keep_rows

    call = make_call(30)
    selection = biased(call)
    for head, (kind, data) in enumerate(selection.encode(call)):
        assert kind == "biased"
        assert (keep_rows(data, 5, 20, 30) == selection.kept(call, 5, 20)[0, 0].numpy()).all()
        assert (bias_rows(data, 5, 20, 30) == selection.bias_rows(call, 5, 20)[0, head].numpy()).all()
    assert bias_rows(Band(2, 6).encode(call)[0][1], 0, 30, 30) is None


def test_a_union_does_not_change_scores() -> None:
    with pytest.raises(ValueError, match="only keep keys"):
        Union((biased(make_call(20)), Band(0, 3)))
