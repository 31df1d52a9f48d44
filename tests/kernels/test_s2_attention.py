"""S2-Attention is its formula in loops; shards are absolute, per key-value head, and cover the text together."""

from __future__ import annotations

import pytest
import torch

from sparselens.kernels.policies.s2_attention import S2Attention

from .conftest import make_call
from .policy_case import chosen, mask_of


@pytest.mark.parametrize(("heads", "kv_heads", "stride"), [(6, 2, 4), (2, 2, 8), (6, 6, 3)])
def test_it_is_its_formula_in_loops(heads: int, kv_heads: int, stride: int) -> None:
    call = make_call(70, heads=heads, kv_heads=kv_heads)
    mask = mask_of(f"s2_attention(block=4,local=2,stride={stride},offset=1,dense=1)", call)[0]
    step = max(1, int(stride / heads))
    for head in range(heads):
        shard = head // (heads // kv_heads)
        for q in range(70):
            for k in range(70):
                far = (k // 4 + shard * step + 1) % stride == 0
                near = q // 4 - k // 4 < 2
                expected = k <= q and (near or far or shard == kv_heads - 1)
                assert bool(mask[head, q, k]) == expected, (head, q, k)


def test_the_heads_together_keep_everything_where_there_is_one_for_each_shard() -> None:
    call = make_call(80, heads=4, kv_heads=4)
    mask = mask_of("s2_attention(block=4,local=1,stride=4)", call)[0]
    assert torch.equal(mask.any(0), torch.ones(80, 80, dtype=torch.bool).tril())
    assert not mask.all(0).any(1)[-1] or mask.double().mean() < 0.5


def test_a_block_that_left_the_window_unread_never_comes_back() -> None:
    """Absolute block numbers: what a head drops, its cache may drop."""
    mask = mask_of("s2_attention(block=4,local=2,stride=5)", make_call(80))[0]
    for k in range(80):
        column = mask[:, k + 8 :, k]  # rows for which the key is outside the window
        assert not (column[:, 1:] & ~column[:, :-1])[:, 4:].any()


def test_too_many_dense_heads_raise() -> None:
    with pytest.raises(ValueError, match="there are 2 key-value heads"):
        chosen("s2_attention(dense=3)", make_call(20))


def test_fields_that_cannot_be_raise() -> None:
    for wrong in ({"block": 0}, {"local": 0}, {"stride": 0}, {"offset": -1}, {"dense": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            S2Attention(**wrong)
    with pytest.raises(ValueError, match="alike"):
        S2Attention(alike=True, dense=1)
