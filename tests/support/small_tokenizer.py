"""A small byte-level BPE tokenizer trained on the manual's prose: no download, a second to make."""

from __future__ import annotations

from functools import cache
from typing import Any

TEMPLATE = (
    "{% for message in messages %}<|role|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|role|>assistant\n{% endif %}"
)


@cache
def _trained(bos: bool) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    from sparselens.workbench.needle_family import FAMILIES
    from sparselens.workbench.prompt_sets.ioi import _NAMES
    from sparselens.workbench.prose import paragraphs

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = [" ".join(block) for block in paragraphs()] + [f"Then {name} said" for name in _NAMES.split()] * 40
    text += [family.needle for family in FAMILIES.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=["<|bos|>", "<|role|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.token_to_id("<|bos|>"))]
        )
    return str(tokenizer.to_str())


def small_tokenizer(*, bos: bool = False, chat: bool = True) -> Any:
    """A fresh tokenizer; `bos` adds one to raw text by default, `chat` gives it a chat template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(bos)), bos_token="<|bos|>", eos_token="<|end|>"
    )
    made.chat_template = TEMPLATE if chat else None
    return made
