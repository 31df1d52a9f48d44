"""A tokenizer of a few made-up words, one token each: `<s>` is 0, the words `aa`, `ab` … follow."""

from __future__ import annotations

from string import ascii_lowercase
from typing import Any

BOS = 0


def toy_tokenizer(size: int, *, bos: bool = True) -> Any:
    """A tokenizer of `size` tokens; `bos` puts `<s>` before raw text. Any other word is read as `<s>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [a + b for a in ascii_lowercase for b in ascii_lowercase][: size - 1]
    if len(words) < size - 1:
        raise ValueError(f"a toy vocabulary has at most {1 + len(ascii_lowercase) ** 2} tokens, not {size}")
    vocabulary = {word: number for number, word in enumerate(["<s>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<s>")
