"""MInference gives each head the template of its plan, and the authors' default where there is none."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from sparselens.kernels.plan import Plan
from sparselens.kernels.policies.minference import MInference
from sparselens.kernels.policies.vertical_slash import VerticalSlash
from sparselens.kernels.policy import Memory, parse
from sparselens.kernels.selection import Everything

from .conftest import make_call
from .policy_case import chosen, kept, mask_of

SHAPE = "a_shape(sink=2,window=9)"
BLOCKS = "block_sparse(k=2,block=16)"
STRIPES = "vertical_slash(vertical=6,slash=8,last_q=16,sink=2,recent=3,min_vertical=1,min_slash=1{})"
HEADS = {"L1H0": SHAPE, "L1H1": STRIPES.format(""), "L1H2": BLOCKS, "L1H4": STRIPES.format(""), "L0H3": SHAPE}


def written(folder: Path, heads: dict[str, Any]) -> str:
    """The file of a plan for 2 layers of 6 heads."""
    plan = Plan("minference", "toy", "0" * 64, 2, 6, 2, {}, {"heads": heads})
    return str(plan.write(folder / "plan.json"))


def test_each_head_keeps_what_its_template_keeps(tmp_path: Path) -> None:
    call = make_call(80, layer=1)
    policy = MInference(plan=written(tmp_path, HEADS), tile=16)
    mask = kept(policy.select(call, Memory()), call)
    for head, text in {
        0: SHAPE,
        1: STRIPES.format(",tile=16"),
        2: BLOCKS,
        4: STRIPES.format(",tile=16"),
    }.items():
        assert torch.equal(mask[:, head], mask_of(text, call)[:, head]), head


def test_heads_that_are_not_listed_use_the_authors_default(tmp_path: Path) -> None:
    policy = MInference(plan=written(tmp_path, HEADS))
    assert policy.template(1, 3) == policy.template(0, 0) == VerticalSlash(1000, 6096)
    assert MInference().template(7, 7) == VerticalSlash(1000, 6096)
    call = make_call(120)
    assert torch.equal(mask_of("minference", call), mask_of("vertical_slash", call))


def test_heads_with_the_same_template_share_one_selection(tmp_path: Path) -> None:
    call = make_call(80, layer=1)
    policy = MInference(plan=written(tmp_path, {f"L1H{head}": SHAPE for head in range(6)}))
    assert policy.select(call, Memory()).told_apart(6) == 1
    assert torch.equal(kept(policy.select(call, Memory()), call), mask_of(SHAPE, call))


def test_the_ratio_scales_every_template_and_rounds_down(tmp_path: Path) -> None:
    policy = MInference(plan=written(tmp_path, HEADS), ratio=1.3, tile=0)
    assert policy.template(1, 0) == parse("a_shape(sink=2,window=11)")
    assert policy.template(1, 1) == parse(STRIPES.format(",tile=0").replace("=6", "=7").replace("=8", "=10"))
    assert policy.template(1, 2) == parse(BLOCKS)
    assert policy.template(1, 5) == VerticalSlash(1300, 7924, tile=0)


def test_a_wider_ratio_is_monotone_and_reaches_everything(tmp_path: Path) -> None:
    call, policy = make_call(80, layer=1), MInference(plan=written(tmp_path, HEADS), tile=0)
    sums = [
        kept(policy.wider(factor).select(call, Memory()), call).sum((-1, -2)) for factor in (0.2, 1, 2, 5, 60)
    ]
    assert all(bool((few <= many).all()) for few, many in pairwise(sums))
    assert int(sums[-1].sum()) == 6 * 80 * 81 // 2
    assert int(sums[1].sum()) < int(sums[2].sum())


def test_decode_is_dense() -> None:
    assert isinstance(chosen("minference", make_call(200, q_len=1)), Everything)


def test_the_plan_is_part_of_the_policys_record(tmp_path: Path) -> None:
    policy = MInference(plan=written(tmp_path, HEADS))
    assert policy.to_json()["plans"][0]["content"]["heads"] == HEADS
    assert parse(str(policy)) == policy
    assert "plans" not in MInference().to_json()


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        ({"L1H0": "dense"}, "a template is a_shape, vertical_slash or block_sparse, not 'dense'"),
        ({"L1H0": "a_shape(sinks=3)"}, "no field 'sinks'"),
        ({"L1H0": ["vertical_and_slash", 30, 800]}, "is not a policy"),
    ],
)
def test_a_plan_with_something_else_in_it_is_refused(
    tmp_path: Path, heads: dict[str, Any], said: str
) -> None:
    policy = MInference(plan=written(tmp_path, heads))
    with pytest.raises(ValueError, match=said):
        policy.select(make_call(20, layer=1), Memory())


def test_a_missing_plan_names_the_command_that_makes_one() -> None:
    with pytest.raises(ValueError, match="sparselens calibrate minference"):
        MInference(plan="none.json").select(make_call(20), Memory())


@pytest.mark.parametrize(
    ("text", "said"), [("ratio=0.0", "ratio is positive"), ("tile=-1", "tile is 0 or more")]
)
def test_bad_fields_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(f"minference({text})")
