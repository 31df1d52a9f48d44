"""A trace of a small random model: a paired capture, and two runs captured apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

POLICY = "a_shape(sink=2,window=9)"


@pytest.fixture(scope="session")
def small() -> Any:
    from small_tokenizer import small_tokenizer

    from sparselens.workbench.models import wrap

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=3000, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3,
    )  # fmt: skip
    return wrap(LlamaForCausalLM(config).eval(), small_tokenizer())


@pytest.fixture(scope="session")
def prompts(small: Any) -> Any:
    words = (
        "the quick brown fox jumps over the lazy dog while seven wizards mix jade and quartz by the river "
    )
    return small.prompts(
        [
            {
                "id": f"p{n}",
                "text": words * (1 + n % 3) + f"and then {n}",
                "answer": " river",
                "group": f"family {n % 3}",
            }
            for n in range(6)
        ]
    )


@pytest.fixture(scope="session")
def paired(small: Any, prompts: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    from sparselens.workbench.capture import capture

    path: Path = tmp_path_factory.mktemp("paired") / "trace"
    return capture(small, prompts, [POLICY], path, generate=1, verify=True, progress=False)


@pytest.fixture(scope="session")
def apart(small: Any, prompts: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    from sparselens.workbench.capture import capture

    path: Path = tmp_path_factory.mktemp("apart") / "trace"
    first = capture(small, prompts, [], path, run_name="first", progress=False)
    second = capture(small, prompts[:5], [POLICY], path, base=None, run_name="second", progress=False)
    return [*first, *second]
