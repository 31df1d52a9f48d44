"""Policies that estimate blocks or columns of a prompt: anchors, trees, 4 bits, permutations, proxies."""

from .policy_case import Case

_BLOCK = {"decode": "a block of queries decides together", "future": "a block of queries decides together"}

CASES = [
    Case(
        "anchor_attention(theta=1.5,step=2,block=8)",
        "anchor_attention(theta=1e9,step=2,block=8)",
        "anchor_attention(theta=3.0,step=2,block=8)",
        real="anchor_attention(theta=4.0,step=4,block=16)",
        exceptions=_BLOCK,
    ),
]
