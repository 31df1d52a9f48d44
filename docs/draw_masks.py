"""Draw the mask of every policy over one head's dense attention: `make masks`, or some of them by name.

    .venv/bin/python -P docs/draw_masks.py a_shape quest

The default model reads 512 tokens of prose densely, once. Each policy then chooses on the queries and keys of that run,
for the head `HEAD`: L18H6 is the model's clearest induction head (docs/roles.md), with a sink, a local band and
matches far back, so that a picture shows what is kept of each. Policies that act on decode alone decode the last
`DECODED` tokens one by one. Writes `docs/images/masks/NAME.png`, `masks.json` beside them, and `docs/masks.md`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import sparselens as sl
from sparselens.kernels.call import AttentionCall
from sparselens.kernels.head import head_name
from sparselens.kernels.kernel import Attended
from sparselens.kernels.policy import Memory, Policy, parse, policies
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.kernels.walk import chosen
from sparselens.workbench.calibration import calibration
from sparselens.workbench.session import Session

DOCS = Path(__file__).resolve().parent
IMAGES = DOCS / "images" / "masks"
RECORDS = IMAGES / "masks.json"
PAGE = DOCS / "masks.md"
MODEL, TOKENS, HEAD = "smollm2-135m", 512, (18, 6)
DECODED = 128
POOL = 2
"""Tokens to a pixel, each way."""

CALLS: dict[str, str] = {
    "a_shape": "a_shape(sink=4,window=64)",
    "anchor_attention": "anchor_attention(theta=4.0,step=4,block=16)",
    "block_sparse": "block_sparse(k=3)",
    "dense": "dense",
    "dhsa_a": "dhsa_a(density=0.25,block_q=32,block_k=16)",
    "dhsa_topk": "dhsa_topk(density=0.25,block_q=32,block_k=16)",
    "dhsa_vs": "dhsa_vs(density=0.25,block_q=32,block_k=16)",
    "dhsa_vsb": "dhsa_vsb(density=0.25,block_q=32,block_k=16)",
    "dilated": "dilated(window=64,dilation=2)",
    "double_sparsity": 'double_sparsity(plan="{plan}",heavy=64)',
    "duo_attention": 'duo_attention(plan="{plan}",streaming=1.0,sink=4,recent=64)',
    "flex_prefill": "flex_prefill(gamma=0.9,min_budget=32,block=32)",
    "h2o": "h2o(heavy=51,recent=51)",
    "hip": "hip(mask_k=64,window=48,sink=4)",
    "infllm_v2": "infllm_v2(topk=12,block=16,kernel=8,stride=4,window=64)",
    "long_heads": "long_heads(chunks=8,chunk=32)",
    "mas_former": "mas_former(dense=[0,10,20],window=64)",
    "minference": "minference(ratio=0.03,tile=0)",
    "oracle_mass": "oracle_mass(density=0.1)",
    "oracle_of": "oracle_of(policy=a_shape(sink=4,window=64))",
    "oracle_topk": "oracle_topk(k=32)",
    "pbs_attention": "pbs_attention(threshold=0.7,segment=64,block=32)",
    "per_head": "per_head(default=a_shape(sink=4,window=64),full=[L18H3])",
    "power_attention": "power_attention(block=16,local=4,sink=1)",
    "proxy_attention": "proxy_attention(gamma=0.8,min_budget=64,block=32)",
    "quest": "quest(token_budget=64)",
    "radial": "radial(block=16,full=1,sink=1)",
    "random": "random(density=0.1)",
    "random_of": "random_of(policy=a_shape(sink=4,window=64))",
    "routing": "routing(clusters=8,window=128)",
    "s2_attention": "s2_attention(block=16,local=6,stride=6)",
    "sale": "sale(tau=0.05,local=64,segment=32)",
    "sf_attention": "sf_attention(group=128,sink=4)",
    "sliding_window": "sliding_window(window=64)",
    "snap_kv": "snap_kv(capacity=64,window=32,kernel=7,local=16)",
    "sparge_attention": "sparge_attention(similarity=0.1,cdf=0.9)",
    "sparse_d": "sparse_d(ratio=0.3,block=32)",
    "sparse_transformer": "sparse_transformer(stride=24)",
    "streaming_llm": "streaming_llm(sink=4,recent=64)",
    "tidal_decode": "tidal_decode(k=32)",
    "tri_shape": "tri_shape(sink=4,window=128,last=64)",
    "vertical_slash": "vertical_slash(vertical=48,slash=64,tile=0)",
    "x_attention": "x_attention(threshold=0.8,block=64)",
}
PLANS = {
    "double_sparsity": 'double_sparsity(prompts="prose(length=512,n=1)")',
    "duo_attention": "duo_attention(steps=1)",
}
"""How the plan of a policy that needs one is made: quickly, for a picture alone."""
WALKED = ("sparse_d",)
"""Policies of both phases that are drawn while they decode, since that is where they differ."""

LIMITS = (1e-4, 1e-3, 1e-2, 1e-1)
KEPT = ((96, 140, 200), (60, 170, 170), (110, 180, 60), (230, 160, 30), (225, 60, 45))
DROPPED = (70, 70, 110, 170, 220)
"""Opacity of the grey of a dropped cell, by the same limits of its dense weight."""


class _Calls:
    """Keeps the attention calls of one dense forward pass."""

    def __init__(self) -> None:
        self.found: list[AttentionCall] = []

    def want(self, call: AttentionCall) -> Want:
        """Return nothing: the call is all."""
        del call
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Keep the call; what is lazy in it is computed while the pass still knows it."""
        del selection, attended
        raw_query, raw_key = (None if raw is None else raw() for raw in (call.query_raw, call.key_raw))
        self.found.append(
            replace(
                call,
                query_raw=None if raw_query is None else lambda: raw_query,
                key_raw=None if raw_key is None else lambda: raw_key,
            )
        )


def read(session: Session) -> list[AttentionCall]:
    """Return the attention calls of the model's layers on the text, dense."""
    prompt = session.prompts(f"prose(length={TOKENS},n=1)")[0]
    calls = _Calls()
    with session.under("dense", observers=[calls]), torch.no_grad():
        session.model(input_ids=torch.tensor([prompt.token_ids]), use_cache=False)
    return calls.found


def mask_of(policy: Policy, calls: Sequence[AttentionCall], decode: int | None) -> Tensor:
    """Return what the policy keeps in `HEAD`: bool `[q_len, k_len]`, causality included."""
    layer, head = HEAD
    memory = Memory()
    for call in calls[0 if policy.reads_layers else layer : layer + 1]:
        selection = chosen(policy, call, memory, decode)
    kept = selection.kept(call, 0, call.q_len)
    return kept[0, head if kept.shape[1] > 1 else 0]


def picture(kept: NDArray[np.bool_], weights: NDArray[np.float64]) -> bytes:
    """Return a PNG of `[q, k]`: kept cells coloured by dense weight, dropped ones grey, the future clear."""
    size = kept.shape[0] // POOL
    cells = kept.reshape(size, POOL, size, POOL).swapaxes(1, 2).reshape(size, size, -1)
    heavy = weights.reshape(size, POOL, size, POOL).swapaxes(1, 2).reshape(size, size, -1)
    any_kept = cells.any(-1)
    heaviest = np.where(any_kept, np.where(cells, heavy, 0).max(-1), heavy.max(-1))
    index = np.digitize(heaviest, LIMITS) + np.where(any_kept, 1, 1 + len(KEPT))
    index[np.triu(np.ones((size, size), dtype=bool), 1)] = 0
    image = Image.fromarray(index.astype(np.uint8), "P")
    image.putpalette([128] * 3 + [part for colour in KEPT for part in colour] + [128] * 3 * len(DROPPED))
    out = BytesIO()
    image.save(out, "PNG", transparency=bytes([0, *[255] * len(KEPT), *DROPPED]), optimize=True)
    return out.getvalue()


def drawn(name: str, session: Session, calls: Sequence[AttentionCall], weights: Tensor) -> dict[str, Any]:
    """Write the picture of one policy; returns its record: call, decoded tokens, density, dense mass kept."""
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / f"{name}.json"
        if name in PLANS:
            calibration(PLANS[name]).plan(session).write(plan)
        policy = parse(CALLS[name].replace("{plan}", str(plan)))
        decode = DECODED if policy.phase == "decode" or name in WALKED else None
        kept = mask_of(policy, calls, decode)
    (IMAGES / f"{name}.png").write_bytes(picture(kept.numpy(), weights.numpy()))
    rows = slice(len(kept) - DECODED if decode else 0, None)
    allowed = torch.ones_like(kept).tril()
    return {
        "call": str(policy(plan=plan.name) if name in PLANS else policy),
        "decoded": decode or 0,
        "density": round(float(kept[rows].sum() / allowed[rows].sum()), 3),
        "kept_mass": round(float((weights * kept)[rows].sum() / weights[rows].sum()), 3),
    }


def page(records: dict[str, dict[str, Any]]) -> str:
    """Return the page of all pictures."""
    lines = [
        "# Masks",
        "",
        "What each policy keeps of one head's attention, drawn by `make masks` (`docs/draw_masks.py`). The default"
        f" model reads {TOKENS} tokens of prose; the head is {head_name(HEAD)}, its clearest induction head"
        " ([roles](roles.md)): it has a sink, a local band and matches far back. Rows are queries from top to bottom,"
        " columns keys. Kept cells are coloured by their dense weight, in decades from blue (below 0.0001) over green"
        " to red (0.1 and more); dropped cells are grey, darker the more weight they had. Two tokens a pixel.",
        "",
        "Every policy chooses on the queries and keys of the same dense pass. *Density* is the share of allowed pairs"
        " that is kept and *mass* the mean dense weight on them, both in this head; of policies that are drawn while"
        f" they decode, over the last {DECODED} rows. One head on one text: pictures, not results.",
        "",
        "| policy | drawn | density | mass | |",
        "|---|---|---|---|---|",
    ]
    for name, record in sorted(records.items()):
        late = f", last {record['decoded']} tokens decoded" if record["decoded"] else ""
        lines.append(
            f"| `{name}` | `{record['call']}`{late} | {record['density']:.3f} | {record['kept_mass']:.3f} |"
            f" ![The mask of {name}](images/masks/{name}.png) |"
        )
    return "\n".join(lines) + "\n"


def main(names: Sequence[str]) -> int:
    """Draw the policies named, or all; returns 1 where one has no call in `CALLS` or could not be drawn."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    there = set(policies())
    records = json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else {}
    failed = sorted(there - set(CALLS)) if not names else []
    for name in failed:
        sys.stderr.write(f"{name}: has no call in docs/draw_masks.py\n")
    session = sl.load(MODEL)
    calls = read(session)
    layer, head = HEAD
    call = calls[layer]
    weights = torch.softmax(call.scores(0, call.q_len)[0, head].double(), -1)
    for name in names or sorted(there & set(CALLS)):
        try:
            records[name] = drawn(name, session, calls, weights)
        except ValueError as error:  # one policy that cannot be drawn does not hide the others
            sys.stderr.write(f"{name}: {error}\n")
            failed.append(name)
            continue
        size = (IMAGES / f"{name}.png").stat().st_size
        sys.stdout.write(
            f"{name}: density {records[name]['density']}, mass {records[name]['kept_mass']}, {size} bytes\n"
        )
    records = {name: records[name] for name in sorted(records) if name in there}
    RECORDS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(records), encoding="utf-8")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
