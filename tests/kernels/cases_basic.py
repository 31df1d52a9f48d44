"""Windows, stripes, mixtures and references."""

from .policy_case import Case

_SLASH = "vertical_slash(vertical=6,slash=8,sink=2,recent=3,min_vertical=1,min_slash=1,last_q=16,tile={})"
_FUTURE = {"decode": "estimated from the last queries", "future": "estimated from the last queries"}

CASES = [
    Case("dense", row_local=True, by_group=True),
    Case(
        "sliding_window(window=9)",
        "sliding_window(window=80)",
        "sliding_window(window=10)",
        row_local=True,
        by_group=True,
    ),
    Case(
        "a_shape(sink=3,window=9)",
        "a_shape(sink=0,window=80)",
        "a_shape(sink=4,window=9)",
        row_local=True,
        by_group=True,
    ),
    Case(
        _SLASH.format(0),
        "vertical_slash(vertical=80,tile=0)",
        "vertical_slash(vertical=9,slash=13,sink=2,recent=3,min_vertical=1,min_slash=1,last_q=16,tile=0)",
        exceptions=_FUTURE,
    ),
    Case(
        _SLASH.format(16),
        "vertical_slash",
        "vertical_slash(vertical=9,slash=13,sink=2,recent=3,min_vertical=1,min_slash=1,last_q=16,tile=16)",
        exceptions=_FUTURE,
    ),
    Case(
        "per_head(default=a_shape(sink=1,window=5),full=[L0H1,L0H4,L3H0])",
        "per_head(default=a_shape(sink=1,window=5),full=[L0H0,L0H1,L0H2,L0H3,L0H4,L0H5])",
        "per_head(default=a_shape(sink=1,window=9),full=[L0H1,L0H4,L3H0])",
        row_local=True,
    ),
    Case(
        "per_head(default=oracle_topk(k=5),full=[L0H2])",
        "per_head(full=[L0H1])",
        "per_head(default=oracle_topk(k=9),full=[L0H2])",
        row_local=True,
    ),
    Case(
        "per_head(default=per_head(default=sliding_window(window=3),full=[L0H0]),full=[L0H5])",
        wider="per_head(default=per_head(default=sliding_window(window=4),full=[L0H0]),full=[L0H5])",
        row_local=True,
    ),
    Case("oracle_topk(k=1)", "oracle_topk(k=80)", "oracle_topk(k=9)", row_local=True),
    Case("oracle_topk(k=30)", wider="oracle_topk(k=40)", row_local=True),
    Case(
        "oracle_mass(density=0.1)",
        "oracle_mass(density=1.0)",
        "oracle_mass(density=0.3)",
        exceptions=dict.fromkeys(("decode", "future"), "one threshold for all rows of a layer"),
    ),
    Case(
        "oracle_mass(mass=0.5)",
        "oracle_mass(mass=1.0)",
        "oracle_mass(mass=0.9)",
        exceptions=dict.fromkeys(("decode", "future"), "one threshold for all rows of a layer"),
    ),
    Case("random(density=0.2)", "random(density=1.0)", "random(density=0.5)", row_local=True),
    Case(
        "random(density=0.4,granularity=block,block=16)",
        "random(density=1.0,granularity=block)",
        "random(density=0.7,granularity=block,block=16)",
        row_local=True,
    ),
]
