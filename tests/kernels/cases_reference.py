"""References of another policy's shape."""

from .policy_case import Case

_SLASH = "vertical_slash(vertical=6,slash=8,sink=2,recent=3,min_vertical=1,min_slash=1,last_q=16,tile=0)"
_WIDE = "vertical_slash(vertical=9,slash=13,sink=2,recent=3,min_vertical=1,min_slash=1,last_q=16,tile=0)"
_BLOCK = "random(density={},granularity=block,block=16)"
_LATER = {"future": "the rows of a block are ranked together, later ones included"}
_FUTURE = dict.fromkeys(("decode", "future"), "as the policy whose shape it has")

CASES = [
    Case(
        "oracle_of(policy=a_shape(sink=3,window=9))",
        "oracle_of(policy=a_shape(sink=0,window=80))",
        "oracle_of(policy=a_shape(sink=4,window=9))",
        row_local=True,
        exceptions=_LATER,
        real="oracle_of(policy=a_shape(sink=4,window=64))",
    ),
    Case(
        f"oracle_of(policy={_SLASH})",
        "oracle_of",
        f"oracle_of(policy={_WIDE})",
        exceptions=_FUTURE,
    ),
    Case(
        f"oracle_of(policy={_BLOCK.format(0.4)})",
        f"oracle_of(policy={_BLOCK.format(1.0)})",
        f"oracle_of(policy={_BLOCK.format(0.7)})",
        exceptions=_LATER | {"decode": "the rows of a block are ranked together"},
    ),
    Case(
        "oracle_of(policy=per_head(default=a_shape(sink=1,window=5),full=[L0H1,L0H4]))",
        wider="oracle_of(policy=per_head(default=a_shape(sink=1,window=9),full=[L0H1,L0H4]))",
        row_local=True,
        exceptions=_LATER,
    ),
    Case(
        "random_of(policy=a_shape(sink=3,window=9),seed=1)",
        "random_of(policy=a_shape(sink=0,window=80))",
        "random_of(policy=a_shape(sink=4,window=9),seed=1)",
        row_local=True,
        real="random_of(policy=a_shape(sink=4,window=64))",
    ),
    Case(
        "random_of(policy=oracle_mass(density=0.2))",
        "random_of(policy=oracle_mass(density=1.0))",
        "random_of(policy=oracle_mass(density=0.4))",
        exceptions=dict.fromkeys(("decode", "future"), "as the policy whose shape it has"),
    ),
    Case(
        f"random_of(policy={_BLOCK.format(0.4)},seed=2)",
        f"random_of(policy={_BLOCK.format(1.0)})",
        f"random_of(policy={_BLOCK.format(0.7)},seed=2)",
        row_local=True,
    ),
]
