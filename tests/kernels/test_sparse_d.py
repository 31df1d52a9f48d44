"""SparseD's analogue is its formula in loops, and a decoded token reads what the prompt left."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policies.sparse_d import SparseD
from sparselens.kernels.policy import Memory
from sparselens.kernels.walk import walked

from .conftest import exact, make_call
from .policy_case import kept, mask_of


def in_loops(call: AttentionCall, ratio: float, block: int) -> Tensor:
    """The mask of a prompt `[heads, q, k]`, in loops over float64 weights."""
    n = call.k_len
    weights = exact(call, torch.ones(1, 1, n, n, dtype=torch.bool)).weights[0]
    mask = torch.zeros(call.heads, n, n, dtype=torch.bool)
    for head in range(call.heads):
        for start in range(0, n, block):
            rows = range(start, min(n, start + block))
            own = start // block
            mean = [
                sum(float(weights[head, q, j * block : (j + 1) * block].sum()) for q in rows) / block**2
                for j in range(own + 1)
            ]
            mean[own] = float("inf")
            best = sorted(range(own + 1), key=lambda j, by=mean: -by[j])  # type: ignore[misc]
            for j in best[: int((own + 1) * ratio) + 1]:
                for q in rows:
                    for k in range(j * block, min(n, (j + 1) * block)):
                        mask[head, q, k] = k <= q
    return mask


@pytest.mark.parametrize("length", [80, 67])
def test_a_prompt_is_its_formula_in_loops(length: int) -> None:
    call = make_call(length)
    assert torch.equal(mask_of("sparse_d(ratio=0.3,block=8)", call)[0], in_loops(call, 0.3, 8))


def test_a_decoded_token_reads_the_prompts_last_row_and_everything_since() -> None:
    call = make_call(70)
    policy = SparseD(ratio=0.3, block=8)
    mask = kept(walked(policy, call, Memory(), 50), call)[0]
    prompt = in_loops(call.sequence(0, torch.arange(50), torch.arange(50)), 0.3, 8)
    assert torch.equal(mask[:, :50, :50], prompt)
    for q in range(50, 70):
        assert torch.equal(mask[:, q, :48], prompt[:, 49, :48]), q  # never refreshed
        assert mask[:, q, 50 : q + 1].all()


def test_where_only_decoding_is_sparse_the_prompt_runs_in_full_and_leaves_the_same_choice() -> None:
    call = make_call(60)
    policy = SparseD(ratio=0.2, block=8)
    both = kept(walked(policy, call, Memory(), 40), call)[0]
    mask = kept(walked(policy(phase="decode"), call, Memory(), 40), call)[0]
    assert torch.equal(mask[0, :40], torch.ones(40, 60, dtype=torch.bool).tril())
    assert torch.equal(mask[:, 40:], both[:, 40:])
    assert not torch.equal(mask[:, :40], both[:, :40])


def test_the_count_is_that_of_the_authors_code() -> None:
    """⌊n · ratio⌋ + 1 blocks: one more than a rounded-up share would often be."""
    mask = mask_of("sparse_d(ratio=0.5,block=8)", make_call(80))[0, 0]
    rows = mask[7::8].view(10, 10, 8).any(-1).sum(-1)
    assert rows.tolist() == [min(n, int(n * 0.5) + 1) for n in range(1, 11)]


def test_fields_that_cannot_be_raise() -> None:
    with pytest.raises(ValueError, match="ratio lies in"):
        SparseD(ratio=1.5)
    with pytest.raises(ValueError, match="block"):
        SparseD(block=0)
