"""A tiny random Llama as a GGUF file, and wheels that carry it, as a package index would."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
from small_tokenizer import small_tokenizer

from sparselens.workbench.checkpoint import Published
from sparselens.workbench.package_index import Wheel

_LAYERS, _WIDTH, _HEADS, _KV_HEADS, _INNER = 2, 16, 4, 2, 24


def write_gguf(path: Path, *, seed: int = 0) -> Path:
    """Write a 2-layer Llama with the small tokenizer's vocabulary; all weights float32."""
    draw = np.random.default_rng(seed)
    state = json.loads(small_tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in state["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    kv = _WIDTH // _HEADS * _KV_HEADS
    shapes = {"token_embd.weight": (len(tokens), _WIDTH), "output_norm.weight": (_WIDTH,)}
    for layer in range(_LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (_WIDTH,),
            f"blk.{layer}.attn_q.weight": (_WIDTH, _WIDTH),
            f"blk.{layer}.attn_k.weight": (kv, _WIDTH),
            f"blk.{layer}.attn_v.weight": (kv, _WIDTH),
            f"blk.{layer}.attn_output.weight": (_WIDTH, _WIDTH),
            f"blk.{layer}.ffn_norm.weight": (_WIDTH,),
            f"blk.{layer}.ffn_gate.weight": (_INNER, _WIDTH),
            f"blk.{layer}.ffn_up.weight": (_INNER, _WIDTH),
            f"blk.{layer}.ffn_down.weight": (_WIDTH, _INNER),
        }
    for name, shape in shapes.items():
        writer.add_tensor(name, draw.normal(size=shape, scale=0.3).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def publish(folder: Path, *, parts: int = 1) -> Published:
    """Put wheels with the pieces of a GGUF into `folder` (a find-links folder) and return what they are."""
    folder.mkdir(parents=True, exist_ok=True)
    data = write_gguf(folder / "tiny.gguf").read_bytes()
    (folder / "tiny.gguf").unlink()
    cut = -(-len(data) // parts)
    wheels, members = [], []
    for part in range(parts):
        name, member = f"tiny_part{part}", f"tiny_part{part}/tiny.gguf.{part}"
        path = folder / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, data[part * cut : (part + 1) * cut])
            archive.writestr(
                f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
            )
        raw = path.read_bytes()
        wheels.append(Wheel(f"tiny-part{part}==1.0", len(raw), hashlib.sha256(raw).hexdigest()))
        members.append(member)
    return Published(
        name="tiny",
        wheels=tuple(wheels),
        members=tuple(members),
        gguf_sha256=hashlib.sha256(data).hexdigest(),
        quantisation="F32",
        card="",
    )
