"""English prose that is on every machine: the paragraphs of Python's own manual (`pydoc_data.topics`).

Used as haystack and filler, so that prompt sets need no download. The text is that of the running Python,
so the same seed gives the same prompts on one Python version; a prompt's id is that of its tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import cycle

_MARKUP = re.compile(r"[|=<>{}\[\]*_\\^~#@$%&/+`…]|::|->|\.\.\.|--|(?:in|since|of) (?:version|Python) \d")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_BROKEN = re.compile(r"(?<=\w)- (?=\w)")
_MIN_WORDS, _MAX_WORDS = 4, 45


@cache
def paragraphs() -> tuple[tuple[str, ...], ...]:
    """Every paragraph of plain prose as its sentences, in the manual's order of topics, without repeats.

    Code, tables, headings, lists and sentences full of markup are left out.
    """
    from pydoc_data.topics import topics

    found: dict[tuple[str, ...], None] = {}
    for name in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[name]):
            sentences = tuple(_sentences(block))
            if sentences:
                found[sentences] = None
    seen: set[str] = set()
    kept = []
    for block_sentences in found:
        fresh = tuple(sentence for sentence in block_sentences if sentence not in seen)
        seen.update(fresh)
        if fresh:
            kept.append(fresh)
    return tuple(kept)


def _sentences(block: str) -> list[str]:
    """The plain sentences of one block of text; none when it is a list, code or a heading."""
    lines = block.strip("\n").splitlines()
    if not lines or any(line.startswith((" " * 4, "*", "-", "+")) for line in lines):
        return []
    text = " ".join(" ".join(lines).split()).replace("’", "'").replace("“", '"').replace("”", '"')
    text = _BROKEN.sub("-", text)
    return [sentence for sentence in _SENTENCE.split(text) if _is_plain(sentence)]


def _is_plain(sentence: str) -> bool:
    words = sentence.split()
    if not _MIN_WORDS <= len(words) <= _MAX_WORDS or sentence[-1] not in ".!?" or not sentence[0].isupper():
        return False
    if _MARKUP.search(sentence) or not sentence.isascii():
        return False
    odd = sum(not word.strip(".,;:!?()'\"").replace("-", "").replace("'", "").isalpha() for word in words)
    return odd <= 1 and sentence.count('"') <= 4


def exact_fill(
    tokens: int, count: Callable[[str], int], rng: random.Random, *, tries: int = 200
) -> list[str]:
    """Whole consecutive sentences that come to exactly `tokens` tokens, the last one chosen by its length.

    `count` gives the tokens of one sentence as it will stand in the prompt (with its leading space).
    Raises ValueError when `tokens` is too small for any sentence.
    """
    blocks = paragraphs()
    by_length = _by_length(tuple(sentence for block in blocks for sentence in block), count)
    for _ in range(tries):
        start = rng.randrange(len(blocks))
        chosen: list[str] = []
        left = tokens
        for sentence in cycle(_from(blocks, start)):
            size = count(sentence)
            if size > left:
                break
            chosen.append(sentence)
            left -= size
        while chosen or left == tokens:
            if left == 0 and chosen:
                return chosen
            ending = by_length.get(left, [])
            ending = [sentence for sentence in ending if sentence not in chosen] or ending
            if ending:
                return [*chosen, rng.choice(ending)]
            if not chosen:
                break
            left += count(chosen.pop())
    raise ValueError(f"no whole sentences come to exactly {tokens} tokens; the shortest has {min(by_length)}")


def _from(blocks: Sequence[tuple[str, ...]], start: int) -> list[str]:
    """All sentences in order, from block `start` round to the block before it."""
    return [sentence for block in [*blocks[start:], *blocks[:start]] for sentence in block]


def _by_length(sentences: Sequence[str], count: Callable[[str], int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for sentence in sentences:
        found.setdefault(count(sentence), []).append(sentence)
    return found
