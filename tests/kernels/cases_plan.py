"""Policies whose choice is a plan, made here for the toy call: 6 query and 2 key-value heads, four layers."""

from pathlib import Path

from .policy_case import Case

GATES = Path(__file__).parent / "plan_duo_attention.json"
_DUO = f'duo_attention(plan="{GATES}",streaming=0.5,sink=3,recent={{}})'

_REPEATED = {"repeated": "the plan has a gate for each key-value head of the model"}

CASES = [
    Case(
        _DUO.format(9), _DUO.format(80), _DUO.format(12), row_local=True, by_group=True, exceptions=_REPEATED
    ),
    Case(
        f'duo_attention(plan="{GATES}",threshold=0.95,sink=3,recent=9)',
        f'duo_attention(plan="{GATES}",threshold=0,sink=3,recent=9)',
        f'duo_attention(plan="{GATES}",threshold=0.5,sink=3,recent=9)',
        row_local=True,
        by_group=True,
        exceptions=_REPEATED,
    ),
]
