"""A hand-set Llama whose circuit is known: after `A B … A` it says B, by six edges and no others.

L0H0 writes at every token which word stood before it; L1H0 looks for the place whose word before is the current one and
copies the word there; M1 hands it to the output. All other weights are small noise, but one decoy: L0H2 writes the
current word, as strongly as the embedding does or `decoy` times as strongly, to where nobody reads.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from small_tokenizer import small_tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sparselens.analyses.circuit.graph import Graph
from sparselens.analyses.circuit.patch import LogitDifference, Pair
from sparselens.workbench.models import wrap
from sparselens.workbench.prompt import Prompt

CIRCUIT = (
    ("input", "L0G0.v"),
    ("L0H0", "L1G0.k"),
    ("input", "L1H0.q"),
    ("input", "L1G0.v"),
    ("L1H0", "M1.in"),
    ("M1", "logits"),
)
DECOY = (0, 2)
FIRST_WORD, WORDS = 10, 16
LAYERS, HEADS, KV_HEADS, HEAD_DIM, SIZE = 3, 4, 2, 32, 96
_WORD, _BEFORE, _FOUND, _SAY, _DECOY, _CONSTANT, _REST = 0, 16, 32, 48, 64, 80, 81
_NORM = 2.0
"""Length of every token's embedding."""
_FAST, _SLOW = 3, 8
"""Rotating pairs that place the word before; the first pair that hardly turns."""
MATCH = 4.0
_PLACE, _GATE, _LOUD, _NOISE = 60.0, 8.0, 4.0, 0.001
"""How much a match scores, and the token before; how far M1's gates are open; logits; the size of other weights."""


def planted_model(match: float, decoy: float) -> Any:
    """Return the model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=3000, hidden_size=SIZE, head_dim=HEAD_DIM, intermediate_size=WORDS, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=256, rope_theta=1e6,
        tie_word_embeddings=False, rms_norm_eps=1e-6,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            for weights in (*layer.mlp.parameters(), *layer.self_attn.parameters()):
                weights.normal_(0, _NOISE)
        square = _NORM**2 + 1 + decoy**2  # of the stream once the word before and the decoy are in it
        _embed(model)
        _look_back(model.model.layers[0].self_attn, decoy)
        _find(model.model.layers[1].self_attn, match, _unit(square))
        _read_out(model.model.layers[1].mlp, _unit(square + 1))
    return model


def _unit(square: float) -> float:
    """Return what a norm multiplies a stream of that squared length with."""
    return float((SIZE / square) ** 0.5)


def _embed(model: Any) -> None:
    """Every token has length `_NORM`, a constant, and a word its own dimension; logits read `_SAY`."""
    places, words = torch.arange(WORDS), FIRST_WORD + torch.arange(WORDS)
    embedding = torch.zeros(3000, SIZE)
    embedding[:, _CONSTANT] = 1
    embedding[words, _WORD + places] = 1
    embedding[:, _REST] = (_NORM**2 - embedding.square().sum(1)).sqrt()
    model.model.embed_tokens.weight.copy_(embedding)
    model.lm_head.weight.zero_()
    model.lm_head.weight[words, _SAY + places] = _LOUD


def _look_back(attention: Any, decoy: float) -> None:
    """L0H0 reads the token before; L0H2 reads itself, by the same means, and writes the decoy."""
    unit = _unit(_NORM**2)
    half, places = HEAD_DIM // 2, torch.arange(WORDS)
    turn = 1e6 ** (-torch.arange(_FAST) / half)
    strength = (_PLACE * HEAD_DIM**0.5) ** 0.5 / unit
    for head, group, back in ((0, 0, 1), (DECOY[1], 1, 0)):
        query, key = attention.q_proj.weight, attention.k_proj.weight
        at, to = head * HEAD_DIM + torch.arange(_FAST), group * HEAD_DIM + torch.arange(_FAST)
        query[at, _CONSTANT] = strength * torch.cos(back * turn)
        query[at + half, _CONSTANT] = -strength * torch.sin(back * turn)
        key[to, _CONSTANT] = strength
        attention.v_proj.weight[group * HEAD_DIM + places, _WORD + places] = 1 / unit
    attention.o_proj.weight[_BEFORE + places, places] = 1
    attention.o_proj.weight[_DECOY + places, DECOY[1] * HEAD_DIM + places] = decoy


def _find(attention: Any, match: float, unit: float) -> None:
    """L1H0 reads the places whose word before is its own word, and takes the word there."""
    places, half = torch.arange(WORDS), HEAD_DIM // 2
    slow = torch.cat([_SLOW + torch.arange(half - _SLOW), half + _SLOW + torch.arange(half - _SLOW)])
    strength = (match * HEAD_DIM**0.5) ** 0.5 / unit
    attention.q_proj.weight[slow, _WORD + places] = strength
    attention.k_proj.weight[slow, _BEFORE + places] = strength
    attention.v_proj.weight[places, _WORD + places] = 1 / unit
    attention.o_proj.weight[_FOUND + places, places] = 1


def _read_out(mlp: Any, unit: float) -> None:
    """M1 writes `_FOUND` to `_SAY`: its gates are open whatever they read."""
    places = torch.arange(WORDS)
    mlp.gate_proj.weight[:, _CONSTANT] = _GATE
    mlp.up_proj.weight[places, _FOUND + places] = 1
    mlp.down_proj.weight[_SAY + places, places] = 1
    mlp.down_proj.weight /= _GATE * unit**2


def planted(count: int = 3, *, match: float = MATCH, decoy: float = 1.0) -> tuple[Any, list[Pair], Tensor]:
    """Return a session, pairs, and the circuit's edges. Clean says `A B … A`, the reference `C D … E`."""
    session = wrap(planted_model(match, decoy), small_tokenizer())
    graph = Graph.of(session)
    edges = torch.zeros_like(graph.allowed)
    for sender, receiver in CIRCUIT:
        edges[graph.edge(sender, receiver)] = True
    return session, [_pair(number) for number in range(count)], edges


def _pair(number: int) -> Pair:
    drawn = random.Random(number).sample(range(FIRST_WORD, FIRST_WORD + WORDS), 13)
    first, second, third, fourth, fifth, *others = drawn
    prompts = [
        _prompt(f"{name}-{number}", [*others[:4], *two, *others[4:], last], second)
        for name, two, last in (("clean", (first, second), first), ("other", (third, fourth), fifth))
    ]
    return Pair(prompts[0], (prompts[1],), LogitDifference((second,), (others[0],)))


def _prompt(name: str, ids: list[int], answer: int) -> Prompt:
    tokens = (*ids, answer)
    return Prompt(
        id=name,
        name=name,
        token_ids=tokens,
        spans={"answer": (len(ids), len(tokens))},
        prompt_set="planted",
        group=None,
        pair_id=None,
        answer_ids=(answer,),
        foils=(),
        bos_mode="given",
        template=None,
        metadata={},
        pieces=tuple(f"<{token}>" for token in tokens),
        special=(False,) * len(tokens),
    )
