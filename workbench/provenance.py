"""Where a model came from: the hashes that let two runs be compared, or refused.

Two runs belong together when their weights, tokenizer and chat template are the same bytes; names and
revisions can be moved, hashes cannot.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Provenance:
    """What a manifest says about a model.

    `name` as it was asked for, `revision` the commit or package version (None where there is none),
    `weight_hash` sha256 of the safetensors files or of the state dict, `quantisation` the storage format
    the weights were de-quantised from (`Q4_1 (GGUF sha256 …)`) or None, `tokenizer_hash` and
    `template_hash` sha256 of the serialised tokenizer and of its chat template (None without one).
    """

    name: str
    revision: str | None
    weight_hash: str
    quantisation: str | None
    tokenizer_hash: str
    template_hash: str | None

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON-ready dict."""
        return asdict(self)


def file_hash(path: Path) -> str:
    """Sha256 of a file's bytes, in hex; OSError where it cannot be read."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_hash(paths: Iterable[Path]) -> str:
    """Sha256 of one file, or of the sorted `name hash` lines of several (a sharded checkpoint)."""
    ordered = sorted(paths, key=lambda path: path.name)
    if not ordered:
        raise ValueError("no weight files to hash")
    if len(ordered) == 1:
        return file_hash(ordered[0])
    lines = "".join(f"{path.name} {file_hash(path)}\n" for path in ordered)
    return hashlib.sha256(lines.encode()).hexdigest()


def remembered_hash(paths: Iterable[Path], memory: Path) -> str:
    """`files_hash`, remembered in the JSON file `memory` while sizes and times of the files stay the same.

    Hashing 0.5 GB takes a second or two, so a second load should not. An unreadable or unwritable memory
    is not an error: the hash is then computed again.
    """
    ordered = sorted(paths, key=lambda path: path.name)
    stamp = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in ordered]
    key = hashlib.sha256(json.dumps(stamp).encode()).hexdigest()
    try:
        known = json.loads(memory.read_text())
    except (OSError, json.JSONDecodeError):
        known = {}
    if isinstance(known, dict) and isinstance(known.get(key), str):
        return str(known[key])
    value = files_hash(ordered)
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        scratch = memory.with_name(f"{memory.name}.{key[:8]}")
        scratch.write_text(json.dumps({**(known if isinstance(known, dict) else {}), key: value}))
        scratch.replace(memory)
    except OSError:
        pass
    return value


def state_hash(model: nn.Module) -> str:
    """Sha256 over the names, shapes, types and bytes of a model's parameters and buffers, by name.

    Used for models that were handed over loaded (`wrap`), whose files are not known.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        for start in range(0, flat.numel(), 16 * _CHUNK):
            digest.update(flat[start : start + 16 * _CHUNK].cpu().numpy().tobytes())
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """Sha256 of how the tokenizer turns text into ids: its serialised form, else its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(state.encode()).hexdigest()


def template_hash(tokenizer: Any) -> str | None:
    """Sha256 of the tokenizer's chat template; None for a tokenizer without one."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
