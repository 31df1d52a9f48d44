"""Text to train on, as windows of tokens in an order that a seed fixes.

The default is what every machine with Python has: the modules of its standard library, which are code with prose in
docstrings and comments, and its manual. Anything else is a file, a folder of text files, or a list of texts.
"""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sparselens.workbench.prose import paragraphs

TEXT = (".txt", ".md", ".rst", ".py")
OWN = "python"
APART = 16
"""One text in so many is not trained on."""
_PASSAGE = 60  # paragraphs of the manual in one document


def documents(source: str | Path | Sequence[str] = OWN, *, held_out: bool = False) -> list[str]:
    """Return the texts of `source`: `python`, a file or folder of text (`.txt`, `.md`, `.rst`, `.py`), or the texts.

    One text in `APART` is held out: what is trained on the others is tested on those. Raises `ValueError` where there
    is nothing to read.
    """
    if not isinstance(source, str | Path):
        found = [text for text in source if text.strip()]
    elif str(source) == OWN:
        found = list(_python())
    else:
        path = Path(source).expanduser()
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        found = [
            file.read_text(encoding="utf-8", errors="replace")
            for file in files
            if file.is_file() and (file == path or file.suffix in TEXT)
        ]
        found = [text for text in found if text.strip()]
    found = [text for place, text in enumerate(found) if (place % APART == APART - 1) is held_out]
    if not found:
        part = "held out of" if held_out else "in"
        raise ValueError(
            f"no text {part} {source!r}: give a file, a folder with {', '.join(TEXT)}, or 'python'"
        )
    return found


@cache
def _python() -> tuple[str, ...]:
    """Return the modules of the standard library (no tests, no tables of data) and its manual, in passages."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {
        "test",
        "tests",
        "idlelib",
        "turtledemo",
        "encodings",
        "pydoc_data",
        "site-packages",
        "lib2to3",
    }
    files = [file for file in sorted(root.rglob("*.py")) if not left_out & set(file.relative_to(root).parts)]
    modules = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    manual = [" ".join(sentences) for sentences in paragraphs()]
    passages = ["\n\n".join(manual[at : at + _PASSAGE]) for at in range(0, len(manual), _PASSAGE)]
    return tuple(text for text in [*modules, *passages] if text.strip())


def windows(texts: Iterable[str], tokenizer: Any, length: int, seed: int = 0) -> Iterator[list[int]]:
    """Yield windows of `length` tokens over all texts, again and again, in another order each time.

    Texts are shuffled, joined with the tokenizer's end-of-text token, and cut; what is left at the end of a round is
    not used. No special token is put in front of a window. Raises `ValueError` where all texts make no window.
    """
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    if sum(len(ids) + len(end) for ids in whole) < length:
        raise ValueError(f"the text has fewer than {length} tokens: give more text or a shorter context")
    round_ = 0
    while True:
        order = list(range(len(whole)))
        random.Random(f"{seed} {round_}").shuffle(order)
        rest: list[int] = []
        for place in order:
            rest += whole[place] + end
            while len(rest) >= length:
                yield rest[:length]
                rest = rest[length:]
        round_ += 1
