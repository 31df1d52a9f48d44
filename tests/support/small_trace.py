"""Small traces with real numbers: random attention in numpy, written through the real writer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparselens.storage.writer import RunWriter

Floats = NDArray[np.float64]
WORDS = (
    *("<|im_start|>", "The", " secret", " number", " of", " the", " <b>bold</b>", " house", " is", " 7", "4"),
    *("1", ".", "\n", "\n\n", " Rain", " fell", " on", " the", " <script>alert(1)</script>", " roof", ","),
    *(
        " 東京",
        "の",
        " café",
        "  ",
        " and",
        " people",
        " slept",
        " while",
        " rivers",
        " rose",
        ".",
        " Nobody",
    ),
    *(" asked", "\t", '"why"', "?"),
)
TOP = 8
POOL = 4


@dataclass(frozen=True)
class Shape:
    """Sizes of an invented model."""

    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    dim: int = 8
    length: int = 60


@dataclass
class Sample:
    """One prompt's q, k, v and what they give under a mask, all `[layers, heads, q, k]`."""

    shape: Shape
    query: Floats
    key: Floats
    value: Floats
    out: Floats

    @classmethod
    def draw(cls, shape: Shape, seed: int) -> Sample:
        """Random vectors, rounded to float16 as they are kept; key 0 is a sink for half of the heads."""
        rng = np.random.default_rng(seed)
        size = (shape.layers, shape.heads, shape.length, shape.dim)
        kv = (shape.layers, shape.kv_heads, shape.length, shape.dim)
        query, key, value = rng.normal(size=size) * 1.6, rng.normal(size=kv) * 1.6, rng.normal(size=kv)
        query[..., 0] += 2
        key[:, ::2, 0, 0] += 6
        out = rng.normal(size=(shape.layers, shape.heads, shape.dim, 16))
        query, key = (part.astype(np.float16).astype(np.float64) for part in (query, key))
        return cls(shape, query, key, value, out)

    def scores(self) -> Floats:
        group = self.shape.heads // self.shape.kv_heads
        return np.asarray(
            self.query @ np.repeat(self.key, group, axis=1).swapaxes(-1, -2) / np.sqrt(self.shape.dim)
        )

    def pattern(self, kept: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Softmax over the kept keys and its log-sum-exp."""
        scores = np.where(kept, self.scores(), -np.inf)
        top = scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        return weights / total, (top + np.log(total))[..., 0]

    def writes(self, pattern: Floats) -> Floats:
        group = self.shape.heads // self.shape.kv_heads
        return np.asarray(pattern @ np.repeat(self.value, group, axis=1) @ self.out)


def band(length: int, sink: int | None, window: int | None) -> NDArray[np.bool_]:
    """`[q, k]` causal keys, cut to the first `sink` and the last `window` of them."""
    q, k = np.arange(length)[:, None], np.arange(length)[None, :]
    kept = k <= q
    return kept if window is None else kept & ((k < (sink or 0)) | (q - k < window))


def words(length: int) -> list[str]:
    return [WORDS[i % len(WORDS)] for i in range(length)]


def head_columns(shape: Shape, extra: int = 1) -> dict[str, Any]:
    """`layer` and `head` of every head, each repeated `extra` times."""
    layer, head = np.divmod(np.arange(shape.layers * shape.heads), shape.heads)
    return {"layer": np.repeat(layer, extra), "head": np.repeat(head, extra)}


def entropy(pattern: Floats) -> Floats:
    return np.asarray(-(pattern * np.log(np.where(pattern > 0, pattern, 1))).sum(-1))


def write_prompt(part: Any, shape: Shape, name: str) -> None:
    texts = words(shape.length)
    part.add(
        "prompts",
        {"name": name, "prompt_set": "needles(length=60)", "grp": "numbers", "n_tokens": shape.length},
    )
    part.add(
        "tokens",
        {
            "pos": np.arange(shape.length),
            "token_id": np.arange(shape.length) % len(WORDS),
            "text": texts,
            "is_special": np.array([text.startswith("<|") for text in texts]),
        },
    )
    spans = {"needle": (6, 13), "answer": (shape.length - 3, shape.length)}
    part.add(
        "spans",
        {
            "name": list(spans),
            "start": [s for s, _ in spans.values()],
            "stop": [s for _, s in spans.values()],
        },
    )


def write_heads(part: Any, sample: Sample, kept: NDArray[np.bool_], base: Floats | None) -> Floats:
    """Every table about heads, from one pattern; returns the pattern."""
    shape = sample.shape
    pattern, lse = sample.pattern(kept)
    rows, heads = shape.length, shape.layers * shape.heads
    flat = pattern.reshape(heads, rows, rows)
    dense = sample.pattern(band(rows, None, None))[0].reshape(heads, rows, rows)
    allowed = band(rows, None, None)
    mass = (dense * kept).sum(-1)
    density = kept.sum() / allowed.sum()
    position = np.arange(rows)
    for over, which in {"all": position, "span:answer": np.arange(rows - 4, rows - 1)}.items():
        part.add(
            "head_stats",
            {
                "pattern": "executed",
                "rows": over,
                **head_columns(shape),
                "n_rows": len(which),
                "entropy": entropy(flat)[:, which].mean(1),
                "sink_mass": flat[:, which, 0].mean(1),
                "density": density,
                "kept_mass": mass[:, which].mean(1),
                "distance": (flat * (position[:, None] - position)).sum(-1)[:, which].mean(1),
                "write_norm": np.linalg.norm(sample.writes(pattern), axis=-1)
                .reshape(heads, rows)[:, which]
                .mean(1),
            },
        )
    strongest = np.zeros_like(flat, dtype=bool)
    for each in (flat, flat if base is None else base.reshape(heads, rows, rows)):
        top = np.argsort(-each, axis=-1)[..., :TOP]
        np.put_along_axis(strongest, top, True, axis=-1)
    strongest &= allowed
    at, q, k = np.nonzero(strongest)
    layer, head = np.divmod(at, shape.heads)
    part.add(
        "edges",
        {
            "layer": layer,
            "head": head,
            "q_pos": q,
            "k_pos": k,
            "p": flat[at, q, k],
            "kept": kept[q, k],
            **({} if base is None else {"p_base": base.reshape(heads, rows, rows)[at, q, k]}),
        },
    )
    error = None
    if base is not None:
        written = np.linalg.norm(sample.writes(pattern) - sample.writes(base), axis=-1)
        scale = np.linalg.norm(sample.writes(base).sum(1), axis=-1).mean(-1)[:, None, None]
        error = (written / scale).reshape(heads, rows)
    part.add(
        "row_stats",
        {
            "pattern": "executed",
            **head_columns(shape, rows),
            "q_pos": np.tile(position, heads),
            "entropy": entropy(flat).ravel(),
            "lse": lse.reshape(-1),
            "sink_mass": flat[:, :, 0].ravel(),
            "kept_mass": mass.ravel(),
            "unstored_mass": np.maximum((flat * ~strongest).sum(-1), 0).ravel(),
            **({} if error is None else {"write_error": error.ravel()}),
        },
    )
    size = -(-rows // POOL)
    wide = np.zeros((heads, size * POOL, size * POOL))
    wide[:, :rows, :rows] = flat
    counts = np.minimum(rows - np.arange(size) * POOL, POOL)
    pooled = wide.reshape(heads, size, POOL, size, POOL).sum((2, 4)) / counts[None, :, None]
    part.add(
        "pooled_maps",
        {
            "pattern": "executed",
            **head_columns(shape),
            "pool": POOL,
            "size": size,
            "data": [each.astype("<f2").tobytes() for each in pooled],
        },
    )
    return pattern


def write_diffs(
    part: Any, shape: Shape, ids: tuple[str, str], base: Floats, error: Floats, kept: NDArray[np.bool_]
) -> None:
    heads, rows = shape.layers * shape.heads, shape.length
    dense = base.reshape(heads, rows, rows)
    mass = (dense * kept).sum(-1)
    for scope in ("local_mask", "end_to_end"):
        for over, which in {"all": np.arange(rows), "span:answer": np.arange(rows - 4, rows - 1)}.items():
            part.add(
                "diffs",
                {
                    "run_a": ids[0],
                    "run_b": ids[1],
                    "scope": scope,
                    "rows": over,
                    **head_columns(shape),
                    "n_rows": len(which),
                    "write_error": error[:, which].mean(1),
                    "kept_mass": mass[:, which].mean(1),
                    "kept_mass_nosink": (
                        (dense * kept)[..., 1:].sum(-1) / np.maximum(dense[..., 1:].sum(-1), 1e-9)
                    )[:, which].mean(1),
                    "js": 0.1 * (1 - mass[:, which].mean(1)),
                    "sink_change": 0.3 * (1 - mass[:, which].mean(1)) - 0.05,
                    "entropy_change": -(1 - mass[:, which].mean(1)),
                },
            )


def keep_vectors(part: Any, sample: Sample, scale: float) -> None:
    """`--keep qk`: rotated q and k as rows of activations; a scale other than 1 makes them wrong."""
    shape = sample.shape
    for hook, vectors in (("hook_rot_q", sample.query), ("hook_rot_k", sample.key * scale)):
        for layer in range(shape.layers):
            heads = vectors.shape[1]
            part.add(
                "activations",
                {
                    "hook": f"blocks.{layer}.attn.{hook}",
                    "layer": layer,
                    "head": np.repeat(np.arange(heads), shape.length),
                    "pos": np.tile(np.arange(shape.length), heads),
                    "vector": list(vectors[layer].reshape(-1, shape.dim).astype(np.float32)),
                },
            )


def write_trace(
    path: Path, shape: Shape, *, prompts: int = 2, keep: bool = True, stretch: float = 1
) -> dict[str, str]:
    """A dense base and two sparse runs of the same prompts; returns run ids by name."""
    policies = {
        "dense": ("dense()", None, None),
        "window": ("sliding_window(window=16)", 0, 16),
        "sink+window": ("a_shape(sink=4,window=16)", 4, 16),
    }
    samples = [Sample.draw(shape, seed) for seed in range(prompts)]
    bases: list[Floats] = []
    ids: dict[str, str] = {}
    for name, (policy, sink, window) in policies.items():
        ids[name] = f"run-{len(ids)}-{name.replace('+', '-')}"
        run = RunWriter.start(
            path,
            ids[name],
            {
                "name": name,
                "policy": policy,
                "model": "invented",
                "kernel": "reference",
                "phase": "both",
                "parents": [] if name == "dense" else [ids["dense"]],
                "extra": {"n_kv_heads": shape.kv_heads},
            },
        )
        for i, sample in enumerate(samples):
            kept = band(shape.length, sink, window)
            with run.part([f"prompt-{i}"]) as part:
                write_prompt(part, shape, f"needle {i}")
                base = bases[i] if name != "dense" else None
                pattern = write_heads(part, sample, kept, base)
                if base is None:
                    bases.append(pattern)
                else:
                    written = np.linalg.norm(sample.writes(pattern) - sample.writes(base), axis=-1)
                    scale = np.linalg.norm(sample.writes(base).sum(1), axis=-1).mean(-1)[:, None, None]
                    error = (written / scale).reshape(-1, shape.length)
                    write_diffs(part, shape, (ids["dense"], ids[name]), base, error, kept)
                kind = (
                    {"kind": "everything"}
                    if window is None
                    else {"kind": "band", "sink": sink, "window": window}
                )
                part.add(
                    "selections",
                    {
                        **head_columns(shape),
                        "kind": kind["kind"],
                        "density": 1.0,
                        "data": [json.dumps(kind).encode()] * shape.layers * shape.heads,
                    },
                )
                rng = np.random.default_rng(i)
                nll = rng.gamma(1.2, 1.4, shape.length - 1) + (
                    0 if window is None else rng.gamma(0.4, 1.5, shape.length - 1)
                )
                nll[-3:] = 0.1 if window is None else 3.4
                part.add("predictions", {"pos": np.arange(1, shape.length), "nll": nll})
                if keep:
                    keep_vectors(part, sample, stretch)
        run.finish({"verify_kernel": True, "verify_logits": name != "window", "verify_calls": True})
    return ids


def write_long_trace(path: Path, shape: Shape) -> None:
    """Two runs of one long prompt of a larger model: what a page opens first, edges of the last rows."""
    rng = np.random.default_rng(0)
    heads = shape.layers * shape.heads
    for number, name in enumerate(("dense", "sink+window")):
        meta = {
            "name": name,
            "policy": "dense()" if not number else "a_shape(sink=4,window=512)",
            "kernel": "blocked",
        }
        run = RunWriter.start(path, f"run-{number}", {**meta, "parents": ["run-0"] if number else []})
        with run.part(["prompt-long"]) as part:
            write_prompt(part, shape, "long")
            nll = rng.gamma(1.2, 1.4, shape.length - 1)
            part.add("predictions", {"pos": np.arange(1, shape.length), "nll": nll})
            part.add(
                "head_stats",
                {
                    "pattern": "executed",
                    "rows": "all",
                    **head_columns(shape),
                    "n_rows": shape.length,
                    "sink_mass": rng.random(heads),
                    "density": 1 - 0.8 * number,
                },
            )
            row = np.repeat(np.arange(shape.length - 4, shape.length - 1), TOP)
            key = np.tile(np.arange(TOP) * 97, 3)
            part.add(
                "edges",
                {
                    **head_columns(shape, len(row)),
                    "q_pos": np.tile(row, heads),
                    "k_pos": np.tile(key, heads),
                    "p": 0.1,
                    "p_base": 0.1,
                    "kept": True,
                },
            )
            size = 64
            part.add(
                "pooled_maps",
                {
                    "pattern": "executed",
                    **head_columns(shape),
                    "pool": -(-shape.length // size),
                    "size": size,
                    "data": [rng.random((size, size)).astype("<f2").tobytes()] * heads,
                },
            )
            if number:
                part.add(
                    "diffs",
                    {
                        "run_a": "run-0",
                        "run_b": "run-1",
                        "scope": "local_mask",
                        "rows": "span:answer",
                        **head_columns(shape),
                        "n_rows": 3,
                        "write_error": rng.random(heads),
                    },
                )
        run.finish({})
