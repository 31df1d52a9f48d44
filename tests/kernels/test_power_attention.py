"""PowerAttention is its formula in loops, and stacked layers reach everything."""

from __future__ import annotations

import math

import pytest
import torch

from sparselens.kernels.policies.power_attention import PowerAttention

from .conftest import make_call
from .policy_case import chosen, kept, mask_of


@pytest.mark.parametrize("length", [80, 65])
def test_it_is_its_formula_in_loops(length: int) -> None:
    mask = mask_of("power_attention(block=4,local=3,sink=2)", make_call(length))[0, 0]
    powers = {2**n for n in range(20)}
    for q in range(length):
        for k in range(length):
            gap = q // 4 - k // 4
            assert bool(mask[q, k]) == (k <= q and (gap < 3 or gap in powers or k // 4 < 2)), (q, k)


def test_distances_are_counted_in_blocks() -> None:
    mask = mask_of("power_attention(block=4,local=1,sink=0)", make_call(40))[0, 0]
    assert mask[39, 32:36].all()  # one block back: also the keys at distances 3, 5, 6 and 7
    assert not mask[39, 24:28].any()  # three blocks back


def test_every_block_reaches_every_earlier_one_through_log2_layers() -> None:
    blocks = 32  # the distance 31 takes five steps
    number = torch.arange(blocks)
    step = PowerAttention(local=1, sink=0).keeps(number[:, None], number[None]).tril()
    reach = torch.eye(blocks, dtype=torch.bool)
    for layer in range(math.ceil(math.log2(blocks))):
        assert bool((reach == torch.ones_like(reach).tril()).all()) is False, layer
        reach = (reach.double() @ step.double()) > 0
    assert torch.equal(reach, torch.ones_like(reach).tril())


def test_chunks_of_the_prefill_and_decoding_see_the_same_blocks() -> None:
    whole = mask_of("power_attention(block=4,local=2)", make_call(80))
    late = make_call(80, q_len=13)
    assert torch.equal(kept(chosen("power_attention(block=4,local=2)", late), late), whole[:, :, -13:])


def test_a_block_a_window_or_a_sink_that_cannot_be_raises() -> None:
    for wrong in ({"block": 0}, {"local": 0}, {"sink": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PowerAttention(**wrong)
