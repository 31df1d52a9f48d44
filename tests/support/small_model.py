"""A small random Llama as a Hugging Face folder, with the small tokenizer: what a command can capture."""

from __future__ import annotations

from pathlib import Path

import torch
from small_tokenizer import small_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM


def save_small_model(folder: Path) -> Path:
    """Write a 2-layer model of 4 heads (2 key-value) and 128 positions into `folder`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=3000, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder
