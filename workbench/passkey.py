"""Prompts that can only be recited by reading far back: passkeys of random words, hidden in prose, asked for in turn.

After the synthetic data of DuoAttention (arXiv:2410.10819). They are for calibrations: the needle families, on which
policies are tested, share no sentence with them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from sparselens.workbench.encoder import Encoder, token_span
from sparselens.workbench.prose import paragraphs

LABELS = ("answer", "tail")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
DEPTHS = 1000  # places between SHALLOWEST and DEEPEST that a passkey may stand at
SHALLOWEST, DEEPEST = 0.05, 0.95
WORDS = (
    "alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett",
    "kilo", "lima", "mike", "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango",
    "uniform", "victor", "whiskey", "xray", "yankee", "zulu",
)  # fmt: skip
_OPENING = "The rooms below are locked. Between these lines stand the words that open them.\n\n"
_KEY = "Remember that the {ordinal} passkey is: {words}."
_QUESTION = "\n\nWhich words are the {ordinal} passkey?\nThe {ordinal} passkey is:"


@dataclass(frozen=True)
class Recital:
    """Token ids, and the rows whose final hidden states count.

    With labels `answer` these are the rows that predict the passkeys' words, with `tail` all rows from the first
    question on.
    """

    ids: tuple[int, ...]
    rows: tuple[int, ...]


def recital(
    encoder: Encoder, rng: random.Random, *, length: int, passkeys: int, words: int, labels: str = "answer"
) -> Recital:
    """Return a prompt of about `length` tokens with `passkeys` passkeys of `words` words, all recited at its end.

    Raises `ValueError` for labels that do not exist, more passkeys than ordinals, and a length without room for prose.
    """
    if labels not in LABELS:
        raise ValueError(f"labels are {' or '.join(LABELS)}, not {labels!r}")
    if not 1 <= passkeys <= len(ORDINALS) or words < 1:
        raise ValueError(f"there are 1 to {len(ORDINALS)} passkeys of at least one word")
    keys = [" ".join(rng.choices(WORDS, k=words)) for _ in range(passkeys)]
    hidden = [_KEY.format(ordinal=ORDINALS[at], words=key) for at, key in enumerate(keys)]
    tail = "".join(_QUESTION.format(ordinal=ORDINALS[at]) + f" {key}." for at, key in enumerate(keys))
    room = length - len(encoder.encode(_OPENING + "\n\n".join(hidden) + tail)[0])
    body = _OPENING + _hidden(_prose(room, length, encoder.size, rng), hidden, encoder.size, rng)
    ids, offsets = encoder.encode(body + tail)
    if labels == "tail":
        return Recital(
            tuple(ids), tuple(range(token_span(offsets, len(body), len(body + tail))[0], len(ids)))
        )
    rows: list[int] = []
    at = len(body)
    for key in keys:
        at = (body + tail).index(f": {key}.", at) + 1
        start, stop = token_span(offsets, at, at + 1 + len(key))
        rows += range(start - 1, stop - 1)
    return Recital(tuple(ids), tuple(rows))


def _prose(room: int, length: int, count: Callable[[str], int], rng: random.Random) -> list[str]:
    """Return consecutive sentences of at most `room` tokens, from a random one on (the first that fits)."""
    sentences = [sentence for block in paragraphs() for sentence in block]
    first, found = rng.randrange(len(sentences)), []
    for sentence in sentences[first:] + sentences[:first]:
        if count(sentence) <= room:
            found.append(sentence)
            room -= count(sentence)
        elif found:
            break
    if not found:
        raise ValueError(
            f"a length of {length} has no room for prose: ask for fewer passkeys or words, or more tokens"
        )
    return found


def _hidden(prose: list[str], keys: list[str], count: Callable[[str], int], rng: random.Random) -> str:
    """Return the prose with the keys, in order, each at the sentence nearest a random depth."""
    ends = [0, *accumulate(count(sentence) for sentence in prose)]
    step = (DEEPEST - SHALLOWEST) / (DEPTHS - 1)
    depths = sorted(SHALLOWEST + step * place for place in rng.sample(range(DEPTHS), len(keys)))
    pieces, before = [], 0
    for depth, key in zip(depths, keys, strict=True):
        at = min(range(len(ends)), key=lambda place: abs(ends[place] - depth * ends[-1]))
        pieces += [" ".join(prose[before:at]), key]
        before = at
    return "\n\n".join(piece for piece in (*pieces, " ".join(prose[before:])) if piece)
