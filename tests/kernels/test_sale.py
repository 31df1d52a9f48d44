"""SALE: estimate, groups, local part and threshold are those of the authors' kernels, in loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.int4 import Int4
from sparselens.kernels.plan import Plan
from sparselens.kernels.policies.sale import Sale
from sparselens.kernels.policy import Memory, parse

from .conftest import make_call
from .policy_case import kept

TOY = Sale(local=16, segment=16, block_q=16, block_k=16)


def rounded_in_loops(
    rows: list[list[float]], group: Callable[[int], int]
) -> tuple[list[list[int]], list[float]]:
    steps = []
    for i in range(len(rows)):
        mates = [j for j in range(len(rows)) if group(j) == group(i)]
        steps.append(max(abs(value) for j in mates for value in rows[j]) / 7)
    return [[round(v / steps[i]) if steps[i] else 0 for v in row] for i, row in enumerate(rows)], steps


def estimates_in_loops(query: Tensor, key: Tensor, block_k: int) -> list[list[float]]:
    """The estimated products of one head: queries `[n, d]`, keys `[n, d]`."""
    mean_q, mean_k = query.mean(0), key.mean(0)
    centred_q, centred_k = (query - mean_q).tolist(), (key - mean_k).tolist()
    whole_q, step_q = rounded_in_loops(centred_q, lambda r: (r // 16) * 8 + r % 8)
    whole_k, step_k = rounded_in_loops(centred_k, lambda r: (r // block_k) * 4 + r % 8 // 2)
    mean_q, mean_k = mean_q.tolist(), mean_k.tolist()
    found = []
    for i in range(len(whole_q)):
        exact = sum(a * b for a, b in zip(query[i].tolist(), mean_k, strict=True))
        row = []
        for j in range(len(whole_k)):
            product = sum(a * b for a, b in zip(whole_q[i], whole_k[j], strict=True))
            back = sum(a * b for a, b in zip(mean_q, centred_k[j], strict=True))
            step = step_q[i] * step_k[j]
            row.append(exact + ((product + round(back / step)) * step if step else back))
        found.append(row)
    return found


def sale_in_loops(call: AttentionCall, policy: Sale, taus: list[float]) -> Tensor:
    n, bq, bk = call.k_len, policy.block_q, policy.block_k
    mask = torch.zeros(1, call.heads, n, n, dtype=torch.bool)
    for head in range(call.heads):
        query, key = call.query[0, head].double(), call.key[0, head // call.group].double()
        exact = (query @ key.T * call.scale).tolist()
        estimate = estimates_in_loops(query, key, bk)
        for begin in range(0, n, bq):
            rows = range(begin, min(begin + bq, n))
            visible = math.ceil(rows.stop / bk)
            stay = policy.local // bk
            segments = 0
            while stay + (segments + 1) * policy.segment // bk <= visible - 1:
                segments += 1
            scanned = range(1, 1 + segments * policy.segment // bk)
            chosen = set()
            for q in rows:
                outside = [exact[q][k] for k in range(q + 1) if k // bk not in scanned]
                top = max(outside)
                total = sum(math.exp(s - top) for s in outside)
                for k in range(q + 1):
                    if math.exp(estimate[q][k] * call.scale - top) / total > taus[head]:
                        chosen.add(k // bk)
            for q in rows:
                for k in range(q + 1):
                    block = k // bk
                    mask[0, head, q, k] = block not in scanned or block in chosen or taus[head] < 1e-5
    return mask


@pytest.mark.parametrize("length", [96, 75])
@pytest.mark.parametrize("tau", [0.0, 0.3, 1.5])
def test_it_is_the_formula_in_loops(length: int, tau: float) -> None:
    call = make_call(length, heads=2, kv_heads=1, dtype=torch.float64, sharp=1.0)
    mask = kept(TOY(tau=tau).select(call, Memory()), call)
    assert torch.equal(mask, sale_in_loops(call, TOY, [tau] * 2))
    assert (int(mask.sum()) < length * (length + 1)) == (tau > 0)


def test_the_estimate_is_of_four_bits_in_the_groups_of_an_mma_thread() -> None:
    call = make_call(64, heads=1, kv_heads=1, dtype=torch.float64)
    rounded = Int4.of(call, 32)
    assert float(rounded.query.abs().max()) == float(rounded.key.abs().max()) == 7
    query, key = rounded.query_step[0], rounded.key_step[0]
    assert torch.equal(query[:8], query[8:16])
    assert len(query.unique()) == 32
    assert len(key.unique()) == 8  # four groups in each of two blocks
    assert torch.equal(key[:8], key[24:32])
    assert float(key[0]) == float(key[1]) != float(key[2])
    expected = torch.tensor(estimates_in_loops(call.query[0, 0], call.key[0, 0], 32), dtype=torch.float64)
    assert torch.allclose(rounded.scores(0, 64)[0], expected * call.scale, rtol=1e-10)


def test_a_part_common_to_all_keys_costs_no_precision() -> None:
    call = make_call(64, heads=1, kv_heads=1, dtype=torch.float64)
    errors = []
    for common in (0.0, 20.0):
        call.key[:] += common
        exact = call.query[0] @ call.key[0].transpose(1, 2) * call.scale
        errors.append(Int4.of(call, 32).scores(0, 64) - exact)
    assert torch.allclose(errors[0], errors[1], atol=1e-10)
    assert float(errors[0].abs().mean()) > 0.1


def test_constant_tokens_are_estimated_exactly() -> None:
    call = make_call(32, heads=2, kv_heads=1, dtype=torch.float64)
    call.key[:] = call.key[:, :, :1]
    call.query[:] = call.query[:, :, :1]
    exact = call.query[0] @ call.key[0].transpose(1, 2) * call.scale
    assert torch.allclose(Int4.of(call, 32).scores(0, 32), exact.expand(2, -1, -1), rtol=1e-12)


def test_the_local_part_is_what_whole_segments_leave() -> None:
    """64 queries and 32 keys a tile, window and segment of 128: 4 to 7 blocks of 32 are local, beside the first."""
    call = make_call(704, heads=1, kv_heads=1)
    mask = kept(Sale(tau=1e9).select(call, Memory()), call)[0, 0]
    for row in range(0, 704, 64):
        visible = (row + 64) // 32
        scanned = max(0, (visible - 1) // 4 - 1) * 4
        expected = torch.arange(704) < row + 64
        expected[32 : 32 * (1 + scanned)] = False
        assert torch.equal(mask[row + 63], expected), row


def test_a_threshold_is_of_the_partial_mass_and_below_1e5_dense() -> None:
    call = make_call(80)
    full = 6 * 80 * 81 // 2
    counts = [int(kept(TOY(tau=tau).select(call, Memory()), call).sum()) for tau in (5.0, 0.5, 0.01, 0.9e-5)]
    assert counts == sorted(counts)
    assert counts[-1] == full
    assert int(kept(TOY.wider(1e9).select(call, Memory()), call).sum()) == full
    # a relative weight exceeds 1 where a scanned key outweighs sink and window together
    call.key[0, :, 20] = 10 * call.query[0, ::3, 70]
    assert kept(TOY(tau=5.0).select(call, Memory()), call)[0, 0, 70, 20]


def test_the_plan_gives_each_head_its_threshold(tmp_path: Path) -> None:
    taus = [0.0, 1e9, 2.0, 0.0, 1e9, 3.0]
    plan = Plan("sale", "toy", "hash", 2, 6, 2, {}, {"tau": [[1e9] * 6, taus]})
    path = plan.write(tmp_path / "plan.json")
    call = make_call(80, dtype=torch.float64, layer=1)
    policy = parse(f"sale(plan={path},local=16,segment=16,block_q=16,block_k=16)")
    assert policy.plans[0].hash == plan.hash
    mask = kept(policy.selection_for(call, Memory()), call)
    for head, tau in enumerate(taus):
        assert torch.equal(mask[:, head], kept(TOY(tau=tau).select(call, Memory()), call)[:, head])
    wider = kept(policy.wider(4.0).select(call, Memory()), call)
    assert torch.equal(wider[:, 2], kept(TOY(tau=0.5).select(call, Memory()), call)[:, 2])


def test_bad_fields_are_refused() -> None:
    for fields in ({"tau": -1.0}, {"divisor": 0.0}, {"block_k": 12}, {"local": 100}, {"segment": 0}):
        with pytest.raises(ValueError, match=f"sale: {next(iter(fields))} is"):
            Sale(**fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sparselens calibrate sale"):
        _ = Sale(plan="nowhere.json").plans
