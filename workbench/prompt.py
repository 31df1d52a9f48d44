"""A prompt is token ids with spans over them; this file says what one is and reads many of them.

`sparselens.workbench.encoder` tokenises, once; nothing later does. Sources: a JSONL file, `-` for stdin, a
Parquet file, a list of texts or dicts, a data frame, a Hugging Face dataset, or a built-in set as a call.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIELDS = (
    "id",
    "text",
    "messages",
    "token_ids",
    "answer",
    "foils",
    "spans",
    "group",
    "pair_id",
    "metadata",
)


@dataclass(frozen=True)
class Prompt:
    """One prompt: the ids that are run, and what is known about their positions.

    `id` is the hash of ids and tokenizer. `spans` are token spans `[start, stop)`; the span `answer` covers
    the answer's own tokens, which end the prompt (teacher-forced), so the rows that predict it are
    `start - 1 … stop - 2`. `answer_ids` are those tokens, `foils` the first tokens of wrong answers.
    `bos_mode` is default, added, left out, template or given; `template` the hash of the chat template used.
    `pieces` are the texts of the tokens, `special` marks those that are no text.
    """

    id: str
    name: str
    token_ids: tuple[int, ...]
    spans: dict[str, tuple[int, int]]
    prompt_set: str
    group: str | None
    pair_id: str | None
    answer_ids: tuple[int, ...]
    foils: tuple[int, ...]
    bos_mode: str
    template: str | None
    metadata: dict[str, Any]
    pieces: tuple[str, ...]
    special: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def text(self) -> str:
        """The tokens' texts joined, for reading; ids are the truth."""
        return "".join(self.pieces)


def read_prompts(
    source: Any, tokenizer: Any, *, bos: bool | None = None, max_tokens: int | None = None
) -> list[Prompt]:
    """The prompts of a source, tokenised once; an iterable may mix texts, dicts of `FIELDS` and `Prompt`s.

    `bos` and `max_tokens` are those of `Encoder`. Raises FileNotFoundError for a missing file and ValueError
    for whatever cannot be a prompt: one line that names the line or the place in the list.
    """
    from sparselens.workbench.encoder import Encoder
    from sparselens.workbench.prompt_set import is_call, parse

    encoder = Encoder(tokenizer, bos=bos, max_tokens=max_tokens)
    if isinstance(source, str) and is_call(source) and not Path(source).exists():
        return distinct((f"{prompt.name} of {source}", prompt) for prompt in parse(source).prompts(encoder))
    label, rows = _rows(source)
    found: list[tuple[str, Prompt]] = []
    for number, (where, row) in enumerate(rows):
        try:
            if isinstance(row, Prompt):  # noqa: SIM108
                prompt = row
            else:
                prompt = encoder.prompt(row, name=f"{label}-{number}", prompt_set=label)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        found.append((where, prompt))
    if not found:
        raise ValueError(f"{label}: no prompts in it")
    return distinct(found)


def built_in(
    call: str, tokenizer: Any, *, bos: bool | None = None, max_tokens: int | None = None
) -> list[Prompt]:
    """The prompts of a built-in set written as a call, such as `needles(length=1024,depths=[0.1,0.9])`.

    Raises ValueError for an unknown set or parameter, listing what there is.
    """
    from sparselens.workbench.encoder import Encoder
    from sparselens.workbench.prompt_set import parse

    return parse(call).prompts(Encoder(tokenizer, bos=bos, max_tokens=max_tokens))


def distinct(prompts: Iterable[tuple[str, Prompt]]) -> list[Prompt]:
    """The prompts, refused when two have the same tokens or the same name: a trace keeps one row of each."""
    ids: dict[str, str] = {}
    names: dict[str, str] = {}
    kept = []
    for where, prompt in prompts:
        if prompt.id in ids:
            raise ValueError(f"{where} has the same tokens as {ids[prompt.id]}")
        if prompt.name in names:
            raise ValueError(f"{where} has the same id {prompt.name!r} as {names[prompt.name]}")
        ids[prompt.id] = names[prompt.name] = where
        kept.append(prompt)
    return kept


_Row = Mapping[str, Any] | Prompt


def _rows(source: Any) -> tuple[str, Iterator[tuple[str, _Row]]]:
    """A source's label and its rows, each with the words that say where it stood."""
    if isinstance(source, str | Path):
        return _file(str(source))
    if isinstance(source, Prompt):
        return source.prompt_set, iter([("prompt 0", source)])
    if isinstance(source, Mapping):
        raise ValueError("one prompt is given as a list of one dict")
    to_dict = getattr(source, "to_dict", None)
    if to_dict is not None and hasattr(source, "columns"):
        return "frame", _numbered("row", (_without_gaps(row) for row in to_dict("records")))
    if hasattr(source, "column_names"):
        return "dataset", _numbered("row", (_without_gaps(row) for row in source))
    if isinstance(source, Iterable):
        return "list", _numbered("prompt", (_fields(row) for row in source))
    raise ValueError(f"prompts cannot be read from a {type(source).__name__}")


def _file(name: str) -> tuple[str, Iterator[tuple[str, _Row]]]:
    if name == "-":
        return "stdin", _jsonl("stdin", sys.stdin)
    path = Path(name).expanduser()
    if path.suffix == ".parquet":
        from pyarrow import ArrowInvalid, parquet

        try:
            rows = parquet.read_table(path).to_pylist()
        except ArrowInvalid as error:
            raise ValueError(f"{path} is not a Parquet file: {error}") from error
        return path.stem, _numbered(f"{path} row", (_without_gaps(row) for row in rows))
    if path.suffix in {".jsonl", ".ndjson", ".json"}:
        return path.stem, _jsonl(str(path), path.read_text(encoding="utf-8").splitlines())
    from sparselens.workbench.prompt_set import prompt_sets

    raise ValueError(
        f"{name!r} is no prompt source; there are a .jsonl or .parquet file, - for stdin, and the sets "
        f"{', '.join(prompt_sets())}"
    )


def _jsonl(label: str, lines: Iterable[str]) -> Iterator[tuple[str, _Row]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{label} line {number} is not JSON: {error.msg} at column {error.colno}"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"{label} line {number} is a {type(row).__name__}, not an object")
        yield f"{label} line {number}", row


def _numbered(kind: str, rows: Iterable[_Row]) -> Iterator[tuple[str, _Row]]:
    return ((f"{kind} {number}", row) for number, row in enumerate(rows))


def _fields(row: Any) -> _Row:
    if isinstance(row, str):
        return {"text": row}
    if isinstance(row, Mapping | Prompt):
        return row
    raise ValueError(f"a prompt is a text, a dict of fields or a Prompt, not a {type(row).__name__}")


def _without_gaps(row: Mapping[str, Any]) -> dict[str, Any]:
    """A table's row as fields: empty cells left out, arrays as lists (also inside a struct)."""
    return {str(name): plain for name, value in row.items() if (plain := _plain(value)) is not None}


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return _without_gaps(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
