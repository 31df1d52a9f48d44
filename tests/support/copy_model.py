"""A hand-set Llama that answers by reading: after word w it says word w + 1, if that stands somewhere it may look.

Head L1H0 looks for the next word and copies it; where that is not there it reads the first token, and the model says
`LOST`. All other heads write nothing. Needles are prompts of fillers with three words hidden in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from small_tokenizer import small_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from sparselens.workbench.models import wrap
from sparselens.workbench.prompt import Prompt

START, LOST, FILLER, FIRST_WORD, WORDS = 0, 5, 200, 10, 22
SIZE = 64
MATCH, FALL_BACK = 20.0, 5.0
_CONSTANT, _START, _REST, _SAY_LOST, _SAY = 30, 31, 40, 41, 42


def copy_model() -> Any:
    """Return the model: two layers of two heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=3000, hidden_size=SIZE, head_dim=SIZE, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256, rope_theta=1e30,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        words = FIRST_WORD + torch.arange(WORDS)
        embedding = torch.zeros(3000, SIZE)
        embedding[:, _CONSTANT] = 1
        embedding[START, _START] = 1
        embedding[words, torch.arange(WORDS)] = 1
        embedding[:, _REST] = (4 - embedding.square().sum(1)).sqrt()  # every token has norm 2
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.zero_()
        model.lm_head.weight[words, _SAY + torch.arange(WORDS)] = 1
        model.lm_head.weight[LOST, _SAY_LOST] = 1
        for layer in model.model.layers:
            for weights in (*layer.mlp.parameters(), *layer.self_attn.parameters()):
                weights.zero_()
        head = model.model.layers[1].self_attn
        slow = 4 + torch.arange(WORDS)  # dimensions that rotary position hardly turns
        head.q_proj.weight[slow[1:], torch.arange(WORDS - 1)] = 1
        head.k_proj.weight[slow, torch.arange(WORDS)] = MATCH
        head.q_proj.weight[slow[-1] + 1, _CONSTANT] = 1
        head.k_proj.weight[slow[-1] + 1, _START] = FALL_BACK
        head.v_proj.weight[torch.arange(WORDS), torch.arange(WORDS)] = 1
        head.o_proj.weight[_SAY + torch.arange(WORDS), torch.arange(WORDS)] = 1
        head.v_proj.weight[_START, _START] = 1
        head.o_proj.weight[_SAY_LOST, _START] = 1
    return model


def copy_session() -> Any:
    """Return a session on it."""
    return wrap(copy_model(), small_tokenizer())


def copy_prompts(places: Sequence[tuple[int, int]], *, length: int = 60) -> list[Prompt]:
    """Return needles for pairs of word and place: words w + 1 … w + 3 stand at the place, w ends the question.

    The group is the word; the answer, teacher-forced, is the three words.
    """
    made = []
    for word, place in places:
        ids = [START, *range(FILLER, FILLER + length - 2), FIRST_WORD + word]
        answer = [FIRST_WORD + word + step for step in (1, 2, 3)]
        ids[place : place + 3] = answer
        spans = {"needle": (place - 1, place + 4), "answer": (length, length + 3)}
        tokens = (*ids, *answer)
        made.append(
            Prompt(
                id=f"word-{word:02d}-at-{place:02d}",
                name=f"word {word} at {place}",
                token_ids=tokens,
                spans=spans,
                prompt_set="copies",
                group=f"word {word}",
                pair_id=None,
                answer_ids=tuple(answer),
                foils=(),
                bos_mode="given",
                template=None,
                metadata={},
                pieces=tuple(f"<{token}>" for token in tokens),
                special=(False,) * len(tokens),
            )
        )
    return made
