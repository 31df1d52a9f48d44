"""Loading by name: what comes back, and what a wrong name, device or hub says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_model import save_small_model
from small_tokenizer import small_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from sparselens.workbench import models
from sparselens.workbench.models import MODELS, describe, load_checkpoint, resolve
from sparselens.workbench.provenance import state_hash


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama as a Hugging Face folder."""
    return save_small_model(tmp_path_factory.mktemp("model"))


def test_a_local_folder_is_loaded_in_eval_mode_with_its_hashes(folder: Path) -> None:
    model, tokenizer, provenance = load_checkpoint(str(folder), progress=False)
    assert not model.training
    assert model.dtype == torch.float32
    assert model.config._attn_implementation == "sdpa"
    assert tokenizer("The value")["input_ids"] == small_tokenizer()("The value")["input_ids"]
    assert provenance.name == str(folder)
    assert provenance.quantisation is None
    again = load_checkpoint(str(folder), progress=False)[2]
    assert again == provenance


def test_weights_that_lack_a_tensor_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack the weights model\.layers\.1\.mlp\.up_proj\.weight"):
        load_checkpoint(str(tmp_path), progress=False)


def test_the_asked_dtype_is_the_models(folder: Path) -> None:
    assert load_checkpoint(str(folder), dtype="bfloat16", progress=False)[0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"unknown dtype 'int8'; there are float32"):
        load_checkpoint(str(folder), dtype="int8")


def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="unknown device 'tpu'; there are auto, cpu"):
        load_checkpoint(str(folder), device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            load_checkpoint(str(folder), device="cuda:1")


def test_a_wrapped_model_is_described_from_memory(folder: Path) -> None:
    model, tokenizer, loaded = load_checkpoint(str(folder), progress=False)
    described = describe(model, tokenizer)
    assert described.tokenizer_hash == loaded.tokenizer_hash
    assert described.template_hash == loaded.template_hash
    assert described.weight_hash == state_hash(model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    assert describe(model, tokenizer).weight_hash != described.weight_hash


def test_a_hash_sees_names_and_shapes_not_only_bytes() -> None:
    first, second = torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 2, bias=False)
    second.weight = torch.nn.Parameter(first.weight.detach().reshape(2, 3).clone())
    assert state_hash(first) != state_hash(second)


@pytest.mark.parametrize("name", ["smollm-135m", "SmolLM2-135M", "gemma-270m"])
def test_a_near_miss_names_the_model_meant(name: str) -> None:
    with pytest.raises(ValueError, match=r"did you mean '(smollm2-135m|gemma3-270m)'\?") as caught:
        resolve(name)
    assert all(known in str(caught.value) for known in MODELS)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("./nowhere", FileNotFoundError, "no model at nowhere"),
        ("/nowhere/model.gguf", FileNotFoundError, "no model at"),
        ("a/b/c", FileNotFoundError, "owner/name"),
        ("we ird", ValueError, "smollm2-135m, gemma3-270m"),
    ],
)
def test_a_name_of_nothing_is_refused(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(name)


def test_a_folder_or_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is not a causal language model"):
        load_checkpoint(str(tmp_path), progress=False)
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"not a \.gguf"):
        resolve(str(tmp_path / "model.bin"))
    (tmp_path / "model.gguf").write_bytes(b"no gguf at all" * 10)
    with pytest.raises(ValueError, match="is not a GGUF file"):
        resolve(str(tmp_path / "model.gguf"))


def _hub_answers(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


def test_a_hub_that_cannot_be_reached_says_so_and_what_works_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    _hub_answers(monkeypatch, LocalEntryNotFoundError("no"))
    monkeypatch.setattr(models, "hub_is_off", lambda: False)
    with pytest.raises(ConnectionError, match=r"cannot be reached.*smollm2-135m, gemma3-270m, any local"):
        resolve("owner/model")
    with pytest.raises(ValueError, match=r"unknown model 'somename'.*cannot be reached"):
        resolve("somename")
    monkeypatch.setattr(models, "hub_is_off", lambda: True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"):
        resolve("owner/model")


def test_a_hub_id_is_fetched_at_its_revision_with_a_short_timeout(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    commit = tmp_path / "abc123"
    commit.symlink_to(folder)
    asked = _hub_answers(monkeypatch, commit)
    _, _, provenance = load_checkpoint("owner/model", revision="v1", progress=False)
    assert provenance.revision == "abc123"
    assert asked[0]["revision"] == "v1"
    assert asked[0]["etag_timeout"] <= 5
    assert "*.safetensors" in asked[0]["allow_patterns"]
    assert len(asked) == 1


def test_a_model_without_a_chat_template_loads_too(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=3000, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    small_tokenizer(chat=False).save_pretrained(tmp_path)
    model, _, provenance = load_checkpoint(str(tmp_path), progress=False)
    assert model.config.model_type == "gpt2"
    assert provenance.template_hash is None


@pytest.mark.model
def test_the_default_model_comes_as_the_design_says(smollm2: Any) -> None:
    config = smollm2.model.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
    assert config.max_position_embeddings == 8192
    assert smollm2.tokenizer("The").input_ids == smollm2.tokenizer("The", add_special_tokens=False).input_ids
    assert smollm2.provenance.quantisation.startswith("Q4_1")
