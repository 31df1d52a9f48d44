"""The text of single tokens, as a reader should see them: joined, they are the prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space


class TokenText:
    """The texts of one tokenizer's tokens; a token that is half a character reads `<0xE2>`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        marked = {int(token) for token, entry in added.items() if getattr(entry, "special", False)}
        self._special = frozenset(tokenizer.all_special_ids) | marked
        self._known: dict[int, str] = {}

    def piece(self, token: int) -> str:
        """The text of one token, its leading space included."""
        if token not in self._known:
            self._known[token] = self._read(token)
        return self._known[token]

    def pieces(self, ids: Iterable[int]) -> tuple[str, ...]:
        """The texts of `ids`, one each."""
        return tuple(self.piece(token) for token in ids)

    def special(self, ids: Iterable[int]) -> tuple[bool, ...]:
        """Whether each id is a special token (BOS, role marks, padding …)."""
        return tuple(token in self._special for token in ids)

    def words(self, *, shortest: int = 2) -> Sequence[int]:
        """Ids of words and word pieces: at least `shortest` letters and nothing else."""
        size = len(self._tokenizer)
        return [
            token
            for token in range(size)
            if token not in self._special
            and (letters := self.piece(token).removeprefix(" ")).isalpha()
            and letters.isascii()
            and len(letters) >= shortest
        ]

    def _read(self, token: int) -> str:
        raw = str(self._tokenizer.convert_ids_to_tokens(token))
        text = str(
            self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )
        if "\N{REPLACEMENT CHARACTER}" in text:
            if raw.startswith("<0x"):
                return raw
            values = _byte_of_character()
            return "".join(f"<0x{values[char]:02X}>" if char in values else char for char in raw)
        if raw.startswith(_BLANK) and not text.startswith(" "):
            return " " + text
        return text


@cache
def _byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level BPE stands for (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(0x100) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    table.update({chr(0x100 + place): byte for place, byte in enumerate(rest)})
    return table
