"""DuoAttention: which key-value heads stream, by the authors' rule, and what their heads keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparselens.kernels.plan import Plan
from sparselens.kernels.policies.duo_attention import DuoAttention, retrieval_heads
from sparselens.kernels.policy import Memory, parse
from sparselens.kernels.selection import Band, Everything

from .conftest import make_call
from .policy_case import kept

GATES = [[0.9, 0.1], [0.4, 0.3], [0.0, 1.0]]


def made(gates: list[list[float]], n_heads: int = 6, **fields: Any) -> Plan:
    """A plan with these gates."""
    sizes = {"n_layers": len(gates), "n_heads": n_heads, "n_kv_heads": len(gates[0])}
    return Plan(
        **{"method": "duo_attention", "model": "toy", "weight_hash": "0"} | sizes | fields,
        data={},
        content={"gates": gates},
    )


@pytest.fixture
def plan(tmp_path: Path) -> str:
    return str(made(GATES).write(tmp_path / "gates.json"))


def quantile_of(values: list[float], share: float) -> float:
    """The quantile as numpy's default defines it: linear between the two nearest values."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.6, 0.75, 0.9, 1.0])
def test_heads_from_the_quantile_on_are_dense(share: float) -> None:
    gates = np.random.default_rng(0).permutation(30).reshape(10, 3) / 30
    flags = retrieval_heads(made(gates.tolist()), share, None)
    threshold = quantile_of([float(gate) for row in gates for gate in row], share)
    threshold = {0.0: -1.0, 1.0: 2.0}.get(share, threshold)
    for layer in range(10):
        for head in range(3):
            assert flags[layer][head] == (gates[layer, head] >= threshold)


def test_ties_fall_the_same_way_each_time_and_spread_over_the_layers() -> None:
    gates = made([[1.0, 1.0, 1.0]] * 30)
    flags = torch.tensor(retrieval_heads(gates, 0.5, None))
    assert int((~flags).sum()) == 45  # ceil(0.5 · 89)
    assert 0 < int(flags[:15].sum()) < 45
    retrieval_heads.cache_clear()
    assert torch.equal(flags, torch.tensor(retrieval_heads(gates, 0.5, None)))


def test_noise_breaks_ties_only() -> None:
    flags = retrieval_heads(made([[0.5, 0.5 + 2e-6], [0.5 - 2e-6, 0.5]]), 0.3, None)
    assert flags[1][0] is False
    assert sum(map(sum, flags)) == 3


def test_a_threshold_takes_the_place_of_the_share() -> None:
    assert retrieval_heads(made(GATES), 1.0, 0.4) == ((True, False), (True, False), (False, True))


def test_gates_are_clamped_as_the_authors_load_them() -> None:
    assert retrieval_heads(made([[-3.0, 7.0], [0.0, 1.0]]), 0.0, 1.0) == ((False, True), (False, True))


def test_streaming_heads_keep_sink_and_recent_and_retrieval_heads_everything(plan: str) -> None:
    call = make_call(80, layer=1)
    policy = DuoAttention(plan=plan, threshold=0.35, sink=3, recent=9)
    mask = kept(policy.selection_for(call, Memory()), call)[0]
    for head in range(6):
        gate = GATES[1][head // 3]
        for query in range(80):
            for key in range(80):
                near = key < 3 or query - key < 9
                assert mask[head, query, key] == (key <= query and (gate >= 0.35 or near))


def test_a_layer_of_one_kind_is_that_kind(plan: str) -> None:
    call = make_call(20)
    assert isinstance(parse(f'duo_attention(plan="{plan}",streaming=0)').select(call, Memory()), Everything)
    selection = parse(f'duo_attention(plan="{plan}",streaming=1,sink=2,recent=5)').select(call, Memory())
    assert selection == Band(2, 5)


def test_a_call_without_a_plan_names_the_command() -> None:
    policy = parse("duo_attention")
    for ask in (lambda: policy.select(make_call(20), Memory()), policy.to_json):
        with pytest.raises(ValueError, match="sparselens calibrate duo_attention"):
            ask()


@pytest.mark.parametrize(("layer", "heads", "kv_heads"), [(3, 6, 2), (0, 6, 3), (0, 4, 2)])
def test_a_plan_of_another_shape_is_refused(plan: str, layer: int, heads: int, kv_heads: int) -> None:
    call = make_call(20, heads, kv_heads, layer=layer)
    with pytest.raises(ValueError, match="gates of 3 layers of 6 heads, 2 key-value heads"):
        DuoAttention(plan=plan).select(call, Memory())


@pytest.mark.parametrize("content", [{}, {"gates": 3}, {"gates": [[0.5, 0.5]]}, {"gates": [[1, "a"]] * 3}])
def test_content_that_is_no_gates_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    broken = Plan("duo_attention", "toy", "0", 3, 6, 2, data={}, content=content)
    policy = DuoAttention(plan=str(broken.write(tmp_path / "broken.json")))
    with pytest.raises(ValueError, match="3 rows of 2 numbers"):
        policy.select(make_call(20), Memory())


@pytest.mark.parametrize("fields", ["streaming=1.5", "streaming=-0.1", "sink=-1", "recent=0"])
def test_bad_fields_are_refused(fields: str) -> None:
    with pytest.raises(ValueError, match=f"duo_attention: {fields.partition('=')[0]}"):
        parse(f"duo_attention({fields})")


def test_the_record_of_a_run_holds_the_plan_and_its_hash(plan: str) -> None:
    record = DuoAttention(plan=plan).to_json()
    assert record["plans"][0]["content"] == {"gates": GATES}
    assert record["plans"][0]["hash"] == DuoAttention(plan=plan).plans[0].hash


def test_a_wider_budget_is_a_longer_window() -> None:
    assert DuoAttention(recent=40).wider(2.5) == DuoAttention(recent=100)
