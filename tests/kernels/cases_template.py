"""Templates whose indices are estimated per input: MInference, FlexPrefill, XAttention, SpargeAttention."""

from pathlib import Path

from .policy_case import Case

_PLAN = Path(__file__).with_name("minference_plan.json")
_BLOCK = {"future": "a block is chosen from all its rows"}
_PROBE = {"future": "estimated from the last queries"}
_FLEX = "flex_prefill(gamma={},tau={},min_budget={},block=8)"
_SPARGE = "sparge_attention({},block_q={},block_k=8)"

CASES = [
    Case(
        "tri_shape(sink=3,window=9,last=7)",
        "tri_shape(sink=0,window=80,last=0)",
        "tri_shape(sink=3,window=12,last=9)",
        row_local=True,
        by_group=True,
        real="tri_shape(sink=4,window=128,last=64)",
    ),
    Case(
        "block_sparse(k=2,block=8)",
        "block_sparse",
        "block_sparse(k=4,block=8)",
        real="block_sparse(k=3)",
        exceptions=_BLOCK,
    ),
    Case(
        f"minference(plan={_PLAN},tile=16)",
        "minference",
        f"minference(plan={_PLAN},ratio=1.5,tile=16)",
        real="minference(ratio=0.03,tile=0)",
        exceptions=_PROBE,
    ),
    Case(
        _FLEX.format(0.5, 0.0, 8),
        _FLEX.format(1.0, 0.0, 8),
        _FLEX.format(0.8, 0.0, 8),
        real="flex_prefill(gamma=0.9,min_budget=32,block=32)",
        exceptions=_PROBE,
    ),
    Case(
        _FLEX.format(0.6, 1.0, 8),
        _FLEX.format(0.5, 1.0, 80),
        _FLEX.format(0.9, 1.0, 16),
        exceptions=_PROBE,
    ),
    Case(
        "x_attention(threshold=0.6,stride=4,block=8)",
        "x_attention(threshold=1.0,stride=4,block=8)",
        "x_attention(threshold=0.9,stride=4,block=8)",
        real="x_attention(threshold=0.8,block=64)",
        exceptions=_BLOCK,
    ),
    Case(
        _SPARGE.format("similarity=0.1,cdf=0.6", 8),
        _SPARGE.format("similarity=-1.0,cdf=1.0", 8),
        _SPARGE.format("similarity=0.1,cdf=0.95", 8),
        real="sparge_attention(similarity=0.3,cdf=0.9)",
        exceptions=_BLOCK,
    ),
    Case(
        _SPARGE.format("similarity=-0.1,topk=0.2,sink=true", 16),
        _SPARGE.format("similarity=1.0,topk=0.2", 16),
        _SPARGE.format("similarity=-0.1,topk=0.5,sink=true", 16),
        exceptions=_BLOCK,
    ),
]
