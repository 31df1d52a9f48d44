"""Small random models of three families, and the default model once a test session."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

FAMILIES = ("llama", "gemma3", "gpt2")
VOCABULARY = 97


def make_tiny(family: str, *, seed: int = 0) -> Any:
    """A random model of a family: 2–3 layers, 4 heads, grouped keys where the family has them, eval, float32."""
    torch.manual_seed(seed)
    if family == "llama":
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    elif family == "gemma3":
        config = Gemma3TextConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=1, head_dim=16, sliding_window=8, max_position_embeddings=256,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"], initializer_range=0.2,
            query_pre_attn_scalar=16,
        )  # fmt: skip
        model = Gemma3ForCausalLM(config)
    else:
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2,
            attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
    config._name_or_path = f"tiny-{family}"
    return model.eval()


@pytest.fixture
def tiny() -> Any:
    return make_tiny


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def smollm2() -> Any:
    from sparselens.workbench.models import load

    return load("smollm2-135m", progress=False)


@pytest.fixture(scope="session")
def small() -> Any:
    """A session on a small random Llama (2 layers, 4 heads in 2 groups, 256 positions) with the small tokenizer."""
    from small_session import small_session

    return small_session()


@pytest.fixture(scope="session")
def prompts(small: Any) -> Any:
    """Three prompts of different length, two with an answer and a span."""
    words = (
        "the quick brown fox jumps over the lazy dog while seven wizards mix jade and quartz by the river "
    )
    rows = [
        {"id": "one", "text": words * 3, "answer": " river", "spans": {"animal": [4, 19]}, "group": "x"},
        {"id": "two", "text": words * 5, "answer": " jade", "foils": [" quartz"], "group": "y"},
        {"id": "three", "text": words},
    ]
    return small.prompts(rows)
