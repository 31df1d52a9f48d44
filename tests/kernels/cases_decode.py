"""Policies of decoding: pages, channels, caches that evict. On the toy call the second half is decoded."""

from pathlib import Path

from .policy_case import Case

CHANNELS = Path(__file__).parent / "plan_double_sparsity.json"
_CHANNELS = f'double_sparsity(plan="{CHANNELS}",heavy={{}},group_factor=4,label_bits={{}},dense_layers=0)'
_GREEDY = {"nested": "what stays depends on what left before: sums of a wider cache rank other keys first"}
_WHOLE = dict.fromkeys(("decode", "future"), "sums over all rows of the prompt")

CASES = [
    Case(
        "quest(token_budget=16,page=4,dense_layers=0)",
        "quest(token_budget=80,page=4,dense_layers=0)",
        "quest(token_budget=24,page=4,dense_layers=0)",
        row_local=True,
        real="quest(token_budget=64)",
    ),
    Case(
        "quest(token_budget=16,page=4,share=sum,dense_layers=0)",
        wider="quest(token_budget=24,page=4,share=sum,dense_layers=0)",
        row_local=True,
        by_group=True,
        real="quest(token_budget=64,share=sum)",
    ),
    Case("quest(token_budget=12,page=4,dense_layers=0,phase=both)", row_local=True),
    Case(
        _CHANNELS.format(9, 4),
        _CHANNELS.format(80, 4),
        _CHANNELS.format(12, 4),
        row_local=True,
    ),
    Case(_CHANNELS.format(9, 0), row_local=True),
    Case(
        "snap_kv(capacity=12,window=8,kernel=3,local=4,prefix=2)",
        "snap_kv(capacity=40,window=8,kernel=3,local=4,prefix=2)",
        "snap_kv(capacity=20,window=8,kernel=3,local=4,prefix=2)",
        by_group=True,
        real="snap_kv(capacity=64,window=32,kernel=7,local=16)",
    ),
    Case(
        "h2o(heavy=5,recent=4)",
        "h2o(heavy=40,recent=40)",
        by_group=True,
        exceptions=_GREEDY,
        real="h2o(heavy=51,recent=51)",
    ),
    Case("h2o(heavy=5,recent=4,share=head)", exceptions=_GREEDY),
    Case("h2o(heavy=5,recent=4,share=max,phase=both)", "h2o(heavy=80,recent=0,phase=both)", by_group=True),
    Case(
        "h2o(heavy=5,recent=4,form=global,share=head,phase=prefill)",
        "h2o(heavy=80,recent=4,form=global,phase=prefill)",
        "h2o(heavy=9,recent=6,form=global,share=head,phase=prefill)",
        exceptions=_WHOLE,
        real="h2o(heavy=51,recent=51,form=global,phase=prefill)",
    ),
    Case(
        "streaming_llm(sink=3,recent=9)",
        "streaming_llm(sink=3,recent=77)",
        "streaming_llm(sink=3,recent=12)",
        row_local=True,
        by_group=True,
        exceptions={"padded": "positions are numbered anew in texts without padding alone"},
        real="streaming_llm(sink=4,recent=60)",
    ),
    Case(
        "tidal_decode(k=7,start=0,correction=3,full=false)",
        "tidal_decode(k=80,start=0,correction=3,full=false)",
        "tidal_decode(k=9,start=0,correction=3,full=false)",
        row_local=True,
        real="tidal_decode(k=32)",
    ),
]
