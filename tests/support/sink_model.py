"""A hand-set Llama whose keys make sinks: token t's key says how old it is, so the oldest kept key gets most.

Layer 0 attends uniformly. In layer 1, head 0 reads the oldest key there is (each older key e^2 times as much as the
next), and head 1 the token `LATER` as soon as it is there. The first token's value writes a tenth of the others'.
A prompt is the ids 0, 1, 2 …: position and id are one.
"""

from __future__ import annotations

from typing import Any

import torch
from small_tokenizer import small_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from sparselens.workbench.models import wrap

LATER = 20
LENGTH = 64
SIZE, HEAD = 32, 16
STEEP = 2.0
"""How much higher a key scores than the next one."""


def sink_model() -> Any:
    """Return the model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=3000, hidden_size=SIZE, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, rope_theta=1e30, initializer_range=0.02,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    age = 1 - torch.arange(3000).clamp(max=LENGTH) / LENGTH
    with torch.no_grad():
        embedding = torch.zeros(3000, SIZE)
        embedding[:, 0] = 1  # what queries read
        embedding[:, 1] = age
        embedding[LATER, 2] = 1
        embedding[:, 3] = 1
        embedding[0, 3] = 0.1  # what values write
        embedding[:, 4] = (4 - embedding.square().sum(1)).sqrt()  # every token has norm 2
        model.model.embed_tokens.weight.copy_(embedding)
        unit = SIZE**0.5 / 2  # what the norm multiplies an embedding with
        for layer in model.model.layers:
            for weights in layer.mlp.parameters():
                weights.zero_()
            attention = layer.self_attn
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
                projection.weight.zero_()
            for head in range(2):
                attention.v_proj.weight[head * HEAD, 3] = 1
                attention.o_proj.weight[5, head * HEAD] = 1e-6  # to where nothing is read
        slow = HEAD // 2 - 1  # the pair of dimensions that hardly turns
        last = model.model.layers[1].self_attn
        for head, (read, strength) in enumerate([(1, STEEP * LENGTH), (2, 40.0)]):
            last.q_proj.weight[head * HEAD + slow, 0] = 1
            last.k_proj.weight[head * HEAD + slow, read] = strength * HEAD**0.5 / unit**2
    return model


def sink_session() -> Any:
    """Return a session on it."""
    return wrap(sink_model(), small_tokenizer())
