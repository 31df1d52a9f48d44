"""Policies that estimate blocks or columns of a prompt: anchors, trees, 4 bits, permutations, proxies."""

from .policy_case import Case

_BLOCK = {"decode": "a block of queries decides together", "future": "a block of queries decides together"}
_STAGED = (
    "hip(variant=v1.2,mask_k={},window=9,sink=2,block_q=8,chunks=[8,4,2],keeps=[16,12],averaged=[2,2,1])"
)

CASES = [
    Case(
        "anchor_attention(theta=1.5,step=2,block=8)",
        "anchor_attention(theta=1e9,step=2,block=8)",
        "anchor_attention(theta=3.0,step=2,block=8)",
        real="anchor_attention(theta=4.0,step=4,block=16)",
        exceptions=_BLOCK,
    ),
    Case(
        "hip(mask_k=8,window=12,sink=2,block_q=8,block_k=2)",
        "hip(mask_k=160,window=12,sink=2,block_q=8,block_k=2)",
        "hip(mask_k=32,window=12,sink=2,block_q=8,block_k=2)",
        real="hip(mask_k=64,window=48,sink=4)",
        exceptions={**_BLOCK, "nested": "another budget descends another tree"},
    ),
    Case(
        _STAGED.format(8),
        _STAGED.format(80).replace("[16,12]", "[80,80]"),
        _STAGED.format(12),
        by_group=True,
        real="hip(variant=v1.2,mask_k=64,window=64,sink=4,chunks=[32,16,8],keeps=[256,128])",
        exceptions=_BLOCK,
    ),
    Case(
        "sale(tau=2.0,local=8,segment=8,block_q=8,block_k=8)",
        "sale(tau=0.0,local=8,segment=8,block_q=8,block_k=8)",
        "sale(tau=0.5,local=8,segment=8,block_q=8,block_k=8)",
        real="sale(tau=0.05,local=64,segment=32)",
        exceptions=_BLOCK,
    ),
    Case(
        "pbs_attention(threshold=0.5,segment=16,block=8)",
        "pbs_attention(threshold=1.0,segment=16,block=8)",
        "pbs_attention(threshold=0.8,segment=16,block=8)",
        real="pbs_attention(threshold=0.7,segment=64,block=32)",
        exceptions=_BLOCK,
    ),
    Case(
        "dhsa_topk(density=0.2,block_q=8,block_k=4)",
        "dhsa_topk(density=1.0,block_q=8,block_k=4)",
        "dhsa_topk(density=0.5,block_q=8,block_k=4)",
        real="dhsa_topk(density=0.25,block_q=32,block_k=16)",
        exceptions=_BLOCK,
    ),
    Case(
        "dhsa_a(density=0.2,block_q=8,block_k=4)",
        "dhsa_a(density=1.0,block_q=8,block_k=4)",
        "dhsa_a(density=0.5,block_q=8,block_k=4)",
        real="dhsa_a(density=0.25,block_q=32,block_k=16)",
        exceptions=_BLOCK,
    ),
    Case(
        "dhsa_vs(density=0.2,block_q=8,block_k=4)",
        "dhsa_vs(density=1.0,block_q=8,block_k=4)",
        "dhsa_vs(density=0.5,block_q=8,block_k=4)",
        real="dhsa_vs(density=0.25,block_q=32,block_k=16)",
        exceptions={**_BLOCK, "nested": "the lines that are chosen change the scores"},
    ),
    Case(
        "dhsa_vsb(density=0.2,block_q=8,block_k=4)",
        "dhsa_vsb(density=1.0,block_q=8,block_k=4)",
        "dhsa_vsb(density=0.5,block_q=8,block_k=4)",
        real="dhsa_vsb(density=0.25,block_q=32,block_k=16)",
        exceptions={**_BLOCK, "nested": "the lines that are chosen change the scores"},
    ),
    Case(
        "proxy_attention(gamma=0.5,min_budget=0,block=8)",
        "proxy_attention(gamma=1.0,min_budget=0,block=8)",
        "proxy_attention(gamma=0.8,min_budget=0,block=8)",
        real="proxy_attention(gamma=0.8,min_budget=64,block=32)",
        exceptions=_BLOCK,
    ),
    Case(
        "proxy_attention(gamma=0.5,min_budget=0,block=8,proxies=2)",
        exceptions={**_BLOCK, "repeated": "proxies are groups of key-value heads"},
    ),
]
