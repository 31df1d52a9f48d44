"""Queries and keys before RoPE are what the projections gave, in a prefill, in chunks and under a KV cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.statistics import NOTHING
from sparselens.workbench.bridge import bridge_of
from sparselens.workbench.session import attention_layers, under

# A rotation and its inverse in float32: each channel is a sum of two products, twice; values here stay below 8.
CLOSE = 8 * 2**-20


class Taken:
    """The raw tensors of every call, as they were when it ran."""

    reads_bias = True

    def __init__(self) -> None:
        self.calls: list[tuple[int, Tensor | None, Tensor | None]] = []

    def want(self, call: AttentionCall) -> Any:
        return NOTHING

    def saw(self, call: AttentionCall, selection: Any, attended: Any) -> None:
        raw = (None if given is None else given() for given in (call.query_raw, call.key_raw))
        self.calls.append((call.layer, *raw))


def projected(model: Any, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The outputs of the query and key projections (normalised where the model does) of every layer."""
    found: dict[tuple[int, str], Tensor] = {}
    handles = []
    for layer, module in enumerate(attention_layers(model)):
        for name in ("q", "k"):
            last = getattr(module, f"{name}_norm", None) or getattr(module, f"{name}_proj")
            handles.append(last.register_forward_hook(
                lambda _, __, output, key=(layer, name): found.__setitem__(key, output)))  # fmt: skip
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    tokens = ids.shape[1]

    def by_head(output: Tensor) -> Tensor:
        return output if output.dim() == 4 else output.view(1, tokens, -1, 8).transpose(1, 2)

    layers = range(len(attention_layers(model)))
    return [(by_head(found[layer, "q"]), by_head(found[layer, "k"])) for layer in layers]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("cuts", [(40,), (17, 30, 40), (38, 39, 40)])
@pytest.mark.parametrize("bridged", [False, True])
def test_raw_tensors_are_the_projections(
    tiny: Any, ids: Tensor, family: str, cuts: tuple[int, ...], bridged: bool
) -> None:
    model, taken = tiny(family), Taken()
    expected = projected(model, ids)
    if bridged:
        bridge_of(model, None)
    with torch.no_grad(), under(model, "dense", observers=[taken]):
        state, start = None, 0
        for stop in cuts:
            past = None if state is None else state.past_key_values
            state = model(input_ids=ids[:, start:stop], past_key_values=past, use_cache=True)
            start = stop
    parts = iter(taken.calls)
    start = 0
    for stop in cuts:
        for layer, (query, key) in enumerate(expected):
            seen, raw_query, raw_key = next(parts)
            assert seen == layer
            assert raw_query is not None
            assert raw_key is not None
            assert (raw_query - query[:, :, start:stop]).abs().max() < CLOSE
            first = stop - raw_key.shape[2]  # a rolling cache of a window has let go of the older keys
            assert (raw_key - key[:, :, first:stop]).abs().max() < CLOSE
        start = stop


def test_layers_with_a_base_of_their_own_turn_differently(tiny: Any, ids: Tensor) -> None:
    calls: list[AttentionCall] = []

    class Kept(Taken):
        def saw(self, call: AttentionCall, selection: Any, attended: Any) -> None:
            calls.append(call)

    model = tiny("gemma3")
    with torch.no_grad(), under(model, "dense", observers=[Kept()]):
        model(input_ids=ids)
    ropes = [call.rope for call in calls]
    assert all(rope is not None for rope in ropes)
    assert ropes[0].cos is ropes[2].cos  # type: ignore[union-attr]
    assert not torch.equal(ropes[0].cos, ropes[1].cos)  # type: ignore[union-attr]


def test_a_model_without_rotary_positions_has_none(tiny: Any, ids: Tensor) -> None:
    model, taken = tiny("gpt2"), Taken()
    with torch.no_grad(), under(model, "dense", observers=[taken]):
        model(input_ids=ids)
    assert [call[1:] for call in taken.calls] == [(None, None)] * 2
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match="a_shape keeps the same keys"),
        under(model, "streaming_llm(sink=2,recent=5)", kernel="reference"),
    ):
        model(input_ids=ids)


def test_a_padded_batch_has_none(tiny: Any, ids: Tensor) -> None:
    model, taken = tiny("llama"), Taken()
    valid = torch.ones(2, 40, dtype=torch.long)
    valid[1, :7] = 0
    with torch.no_grad(), under(model, "dense", observers=[taken]):
        model(input_ids=ids.expand(2, -1), attention_mask=valid)
    assert all(call[1] is None for call in taken.calls)


def test_other_tensors_in_a_call_are_turned_back_from_what_they_are(tiny: Any, ids: Tensor) -> None:
    calls: list[AttentionCall] = []

    class Kept(Taken):
        def saw(self, call: AttentionCall, selection: Any, attended: Any) -> None:
            calls.append(call)

    model = tiny("llama")
    with torch.no_grad(), under(model, "dense", observers=[Kept()]):
        model(input_ids=ids)
    call = calls[0]
    other = call.with_tensors(2 * call.query, 3 * call.key, call.value)
    assert call.query_raw is not None
    assert other.query_raw is not None
    assert other.key_raw is not None
    assert (other.query_raw() - 2 * call.query_raw()).abs().max() < CLOSE
    assert call.rope is not None
    assert (call.rope.turn(other.key_raw(), torch.arange(40)) - 3 * call.key).abs().max() < 3 * CLOSE


def test_listening_leaves_no_hook_behind(tiny: Any, ids: Tensor) -> None:
    model = tiny("llama")
    with under(model, "dense"):
        assert all(layer._forward_pre_hooks for layer in attention_layers(model))
    assert not any(layer._forward_pre_hooks for layer in attention_layers(model))
