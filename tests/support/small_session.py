"""A session on a small random Llama: 2 layers, 4 heads in 2 groups, 256 positions, the small tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from small_tokenizer import small_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from sparselens.workbench.models import wrap


def small_session() -> Any:
    """A fresh session; the same weights every time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=3000, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3,
    )  # fmt: skip
    return wrap(LlamaForCausalLM(config).eval(), small_tokenizer())
