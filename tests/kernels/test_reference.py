"""The reference kernel is scaled_dot_product_attention, and dumb float64 attention where that cannot go."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from sparselens.kernels import call as call_module
from sparselens.kernels.kernel import kernel, kernels
from sparselens.kernels.selection import Band, Bits, Everything

from .conftest import TOLERANCE, difference, exact, make_call

REFERENCE = kernel("reference")


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (9, 3), (8, 1)])
@pytest.mark.parametrize("length", [1, 63, 111])
def test_dense_equals_scaled_dot_product_attention(length: int, heads: int, kv_heads: int) -> None:
    call = make_call(length, heads, kv_heads, batch=2)
    found = REFERENCE.attend(call, Everything())
    expected = scaled_dot_product_attention(call.query, call.key, call.value, is_causal=True, enable_gqa=True)
    assert difference(found.output, expected) < TOLERANCE


@pytest.mark.parametrize("pads", [[(0, 0), (17, 0)], [(0, 9), (5, 3)]])
def test_padding_equals_attention_with_the_mask_of_the_model(pads: list[tuple[int, int]]) -> None:
    call = make_call(63, pads=pads)
    found = REFERENCE.attend(call, Everything())
    mask = call.allowed.rows(0, 63)
    expected = scaled_dot_product_attention(call.query, call.key, call.value, mask, enable_gqa=True)
    assert difference(found.output, expected.nan_to_num()) < TOLERANCE
    for row, (left, right) in enumerate(pads):
        padding = [*range(left), *range(63 - right, 63)]
        assert not found.output[row][:, padding].any()
        assert torch.isinf(found.lse[row][:, padding]).all()


@pytest.mark.parametrize(
    "options", [{"window": 7}, {"softcap": 3.0}, {"sinks": True}, {"q_len": 1}, {"q_len": 20}]
)
def test_every_option_of_a_call_equals_float64(options: dict[str, object]) -> None:
    call = make_call(111, **options)  # type: ignore[arg-type]
    keep = torch.rand(1, 6, call.q_len, 111) < 0.4
    found, expected = REFERENCE.attend(call, Bits.of(keep)), exact(call, keep)
    assert difference(found.output, expected.output) < TOLERANCE
    assert difference(found.lse, expected.lse) < TOLERANCE


def test_a_further_mask_of_the_model_is_obeyed() -> None:
    call = make_call(40, extra=lambda batch, query, key: (batch >= 0) & ((query - key) % 3 == 0))
    found = REFERENCE.attend(call, Everything())
    index = torch.arange(40)
    keep = ((index[:, None] - index) % 3 == 0)[None, None]
    assert difference(found.output, exact(make_plain(call), keep).output) < TOLERANCE


def make_plain(call: call_module.AttentionCall) -> call_module.AttentionCall:
    return replace(call, allowed=replace(call.allowed, extra=None))


def test_empty_rows_are_zeros_with_a_normaliser_of_minus_infinity() -> None:
    call = make_call(30, sinks=True)
    keep = torch.ones(1, 1, 30, 30, dtype=torch.bool)
    keep[..., 7, :] = False
    found = REFERENCE.attend(call, Bits.of(keep))
    assert not found.output[:, :, 7].any()
    assert (found.lse[:, :, 7] == -math.inf).all()
    assert torch.isfinite(found.output).all()


def test_sink_logits_take_mass_from_every_key() -> None:
    with_sinks = make_call(30, sinks=True)
    without = replace(with_sinks, sinks=None)
    a, b = REFERENCE.attend(with_sinks, Everything()), REFERENCE.attend(without, Everything())
    share = torch.exp(b.lse - a.lse)
    assert (share < 1).all()
    assert difference(a.output, b.output * share[..., None]) < TOLERANCE


def test_row_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    call = make_call(100)
    whole = REFERENCE.attend(call, Band(2, 9))
    monkeypatch.setattr(call_module, "_ROW_BUDGET", 6 * 100 * 7)
    assert call.row_step == 7
    cut = REFERENCE.attend(call, Band(2, 9))
    assert difference(whole.output, cut.output) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_within_the_budget_of_an_honest_computation(dtype: torch.dtype) -> None:
    call = make_call(111, dtype=dtype)
    truth = exact(call, torch.ones(1, 1, 111, 111, dtype=torch.bool)).output
    honest = scaled_dot_product_attention(call.query, call.key, call.value, is_causal=True, enable_gqa=True)
    rounding = float(truth.abs().max()) * torch.finfo(dtype).eps
    found = REFERENCE.attend(call, Everything()).output
    assert found.dtype == dtype
    assert difference(found, truth) <= 2 * difference(honest, truth) + rounding


def test_grouped_queries_equal_repeated_keys() -> None:
    call = make_call(50, heads=6, kv_heads=2)
    repeated = replace(call, key=call.key.repeat_interleave(3, 1), value=call.value.repeat_interleave(3, 1))
    assert (
        difference(
            REFERENCE.attend(call, Everything()).output, REFERENCE.attend(repeated, Everything()).output
        )
        < TOLERANCE
    )


def test_an_unknown_kernel_is_answered_with_the_list() -> None:
    with pytest.raises(ValueError, match="blocked, reference"):
        kernel("flash")
    assert set(kernels()) >= {"blocked", "reference"}


def test_shapes_that_do_not_fit_raise() -> None:
    call = make_call(10)
    with pytest.raises(ValueError, match="does not fit"):
        replace(call, key=call.key[:, :, :9])
    with pytest.raises(ValueError, match="does not fit"):
        replace(call, query=call.query[:, :5])
    with pytest.raises(ValueError, match="as long as"):
        replace(call, query_positions=call.query_positions[:, 1:])
    with pytest.raises(ValueError, match="phase"):
        replace(call, phase="training")


@pytest.mark.parametrize("options", [{}, {"window": 9}, {"pads": [(3, 0), (0, 4)]}, {"q_len": 5}])
def test_allowed_pairs_are_counted_without_the_mask(options: dict[str, object]) -> None:
    call = make_call(37, **options)  # type: ignore[arg-type]
    expected = call.allowed.rows(0, call.q_len).expand(call.batch, -1, -1, -1).sum((1, 2, 3))
    assert torch.equal(call.allowed_pairs(), expected)
