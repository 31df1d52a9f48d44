"""TidalDecode's layers: who chooses, who reads which choice, and what happens without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.memory import Memory
from sparselens.kernels.policy import parse
from sparselens.kernels.selection import Everything
from sparselens.kernels.walk import walked

from .conftest import make_call
from .policy_case import kept

TEXT = "tidal_decode(k=6,start=1,correction=3)"
PREFILL = 30


def layers(length: int = 40) -> list[AttentionCall]:
    return [make_call(length, layer=layer) for layer in range(6)]


def best(call: AttentionCall, head: int, row: int, k: int) -> set[int]:
    query = call.query[0, head, row].double()
    scores = {key: float(query @ call.key[0, head // call.group, key].double()) for key in range(row)}
    return {row, *sorted(scores, key=lambda key: -scores[key])[: k - 1]}


def rows_of(mask: Tensor, row: int) -> list[set[int]]:
    return [set(mask[0, head, row].nonzero()[:, 0].tolist()) for head in range(mask.shape[1])]


def test_layers_read_what_the_last_choosing_layer_chose_for_the_same_token() -> None:
    calls, memory, policy = layers(), Memory(), parse(TEXT)
    found = [walked(policy, call, memory, PREFILL) for call in calls]
    assert [isinstance(selection, Everything) for selection in found] == [
        True,
        True,
        False,
        True,
        False,
        False,
    ]
    for layer, source in ((2, 1), (4, 3), (5, 3)):
        mask = kept(found[layer], calls[layer])
        for row in range(PREFILL, 40):
            assert rows_of(mask, row) == [best(calls[source], head, row, 6) for head in range(6)], (
                layer,
                row,
            )
        assert mask[:, :, :PREFILL].sum() == 6 * PREFILL * (PREFILL + 1) / 2


def test_one_pass_equals_token_by_token() -> None:
    calls, memory, alone, policy = layers(), Memory(), Memory(), parse(TEXT)
    found = [kept(walked(policy, call, memory, PREFILL), call) for call in calls]
    for step, row in enumerate(range(PREFILL, 40), 1):
        for call, whole in zip(calls, found, strict=True):
            one = call.sequence(0, torch.tensor([row]), torch.arange(row + 1))
            one = type(one)(**{**vars(one), "phase": "decode", "step": step})
            assert torch.equal(
                kept(policy.selection_for(one, alone), one)[:, :, 0], whole[:, :, row, : row + 1]
            )


def test_without_the_choosing_layer_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="layer 2 reads what layer 1 chose"):
        walked(parse(TEXT), make_call(40, layer=2), Memory(), PREFILL)


@pytest.mark.parametrize("fields", ["k=0", "start=9", "start=-1", "start=4,correction=4"])
def test_bad_fields_are_refused(fields: str) -> None:
    with pytest.raises(ValueError, match="tidal_decode"):
        parse(f"tidal_decode({fields})")
