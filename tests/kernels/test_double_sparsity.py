"""Double Sparsity's ranking over a few channels, retold in loops; its labels, its plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.plan import Plan
from sparselens.kernels.policies.double_sparsity import rounded
from sparselens.kernels.policy import Memory, parse
from sparselens.kernels.selection import Everything

from .cases_decode import CHANNELS
from .conftest import make_call

TABLE = json.loads(CHANNELS.read_text())["content"]["channels"]


def label(vector: torch.Tensor, channels: list[int], bits: int) -> list[float]:
    """The heavy channels of one query or key, rounded between their own smallest and largest."""
    values = [float(vector[channel]) for channel in channels]
    if not bits:
        return values
    low, high = min(values), max(values)
    step = (high - low) / (2**bits - 1) or 1.0
    return [round((value - low) / step) * step + low for value in values]


def naive(call: AttentionCall, head: int, row: int, heavy: int, count: int, bits: int) -> set[int]:
    channels = TABLE[call.layer][head][:count]
    query = label(call.query[0, head, row].double(), channels, bits)
    scores = {}
    for key in range(row):
        of_key = label(call.key[0, head // call.group, key].double(), channels, bits)
        scores[key] = sum(a * b for a, b in zip(query, of_key, strict=True)) / count**0.5
    best = sorted(scores, key=lambda key: -scores[key])[: heavy - 1]
    return {row, *best}


@pytest.mark.parametrize(
    ("length", "layer", "factor", "bits"), [(60, 0, 4, 0), (60, 3, 2, 4), (37, 2, 8, 2), (1, 0, 4, 4)]
)
def test_keys_are_those_of_the_formula(length: int, layer: int, factor: int, bits: int) -> None:
    call = make_call(length, layer=layer)
    fields = f"heavy=7,group_factor={factor},label_bits={bits},dense_layers=0,phase=both"
    text = f'double_sparsity(plan="{CHANNELS}",{fields})'
    kept = parse(text).select(call, Memory()).kept(call, 0, length)[0]
    for head in range(6):
        for row in range(length):
            found = set(kept[head, row].nonzero()[:, 0].tolist())
            assert found == naive(call, head, row, 7, 16 // factor, bits), (head, row)


def test_rounding_keeps_the_ends_and_has_so_many_values() -> None:
    values = torch.randn(50, 16)
    for bits in (1, 2, 4):
        found = rounded(values, bits)
        assert torch.allclose(found.amin(-1), values.amin(-1))
        assert torch.allclose(found.amax(-1), values.amax(-1), atol=1e-6)
        assert max(len(row.unique()) for row in found) <= 2**bits
        step = (values.amax(-1) - values.amin(-1)) / (2**bits - 1)
        assert ((found - values).abs().amax(-1) <= step / 2 + 1e-6).all()
    assert torch.equal(rounded(torch.ones(3, 4), 4), torch.ones(3, 4))


def test_the_first_layers_are_dense() -> None:
    policy = parse(f'double_sparsity(plan="{CHANNELS}",heavy=4)')
    assert isinstance(policy.select(make_call(40, layer=1), Memory()), Everything)
    assert not isinstance(policy.select(make_call(40, layer=2), Memory()), Everything)


def test_without_a_plan_it_says_how_to_make_one() -> None:
    policy = parse("double_sparsity")
    with pytest.raises(ValueError, match="sparselens calibrate double_sparsity"):
        policy.select(make_call(20, layer=5), Memory())
    with pytest.raises(ValueError, match="sparselens calibrate double_sparsity"):
        _ = policy.plans


@pytest.mark.parametrize("call", [make_call(20, layer=4), make_call(20, heads=4), make_call(20, head_dim=8)])
def test_a_plan_for_other_heads_is_refused(call: AttentionCall) -> None:
    with pytest.raises(ValueError, match="does not rank"):
        parse(f'double_sparsity(plan="{CHANNELS}",dense_layers=0)').select(call, Memory())


def test_a_plan_without_channels_is_refused(tmp_path: Path) -> None:
    plan = Plan("double_sparsity", "toy", "0" * 64, 1, 6, 2, {}, {"gates": []}).write(tmp_path / "plan.json")
    with pytest.raises(ValueError, match="no list of channels"):
        parse(f'double_sparsity(plan="{plan}",dense_layers=0)').select(make_call(20), Memory())


@pytest.mark.parametrize("fields", ["heavy=0", "group_factor=0", "label_bits=-1", "dense_layers=-1"])
def test_bad_fields_are_refused(fields: str) -> None:
    with pytest.raises(ValueError, match="double_sparsity"):
        parse(f"double_sparsity({fields})")
