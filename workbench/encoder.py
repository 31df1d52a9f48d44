"""Turns the fields of a prompt into token ids and token spans: the one place that tokenises."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sparselens.workbench.prompt import FIELDS, Prompt
from sparselens.workbench.provenance import template_hash, tokenizer_hash
from sparselens.workbench.token_text import TokenText

_SOURCES = ("text", "messages", "token_ids")


@dataclass(frozen=True)
class _Encoded:
    """The tokens of a prompt with its answer: ids, character offsets (None without text), answer's start."""

    ids: list[int]
    offsets: list[tuple[int, int]] | None
    text: str | None
    answer_start: int
    bos_mode: str
    template: str | None
    notes: dict[str, str] = field(default_factory=dict)


BOS = {"default": None, "added": True, "left out": False}
"""How raw text begins, by name, as `Encoder` takes it."""


class Encoder:
    """Turns the fields of a prompt into a `Prompt` with one tokenizer.

    `bos` True puts the BOS token first, False leaves every special token out, None is the tokenizer's own
    default; `max_tokens` is the longest prompt the model takes, None for no limit.
    """

    def __init__(self, tokenizer: Any, *, bos: bool | None = None, max_tokens: int | None = None) -> None:
        if bos and tokenizer.bos_token_id is None:
            raise ValueError("this tokenizer has no BOS token to put first")
        self.tokenizer = tokenizer
        self.bos = bos
        self.max_tokens = max_tokens
        self.hash = tokenizer_hash(tokenizer)
        self.template = template_hash(tokenizer)
        self.texts = TokenText(tokenizer)
        self._sizes: dict[str, int] = {}

    @property
    def bos_mode(self) -> str:
        """How raw text begins: default, added or left out."""
        return next(mode for mode, bos in BOS.items() if bos is self.bos)

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of raw text with their character spans, special tokens at the start as `bos` says."""
        out = self.tokenizer(text, add_special_tokens=self.bos is None, return_offsets_mapping=True)
        ids, offsets = list(out["input_ids"]), [(int(a), int(b)) for a, b in out["offset_mapping"]]
        if self.bos:
            ids, offsets = [self.tokenizer.bos_token_id, *ids], [(0, 0), *offsets]
        return ids, offsets

    def rendered(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of text that a chat template has rendered, with their character spans."""
        out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(out["input_ids"]), [(int(a), int(b)) for a, b in out["offset_mapping"]]

    def plain(self, text: str) -> list[int]:
        """The ids of text that stands inside a prompt: no special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def size(self, sentence: str) -> int:
        """How many tokens a sentence has inside a prompt, after a space; remembered."""
        if sentence not in self._sizes:
            self._sizes[sentence] = len(self.plain(" " + sentence))
        return self._sizes[sentence]

    def opening(self) -> list[int]:
        """The special tokens that raw text begins with."""
        return [] if self.bos is False else self.encode("")[0]

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of a conversation, up to where the model would answer.

        Raises ValueError for a tokenizer without a chat template and messages it cannot take.
        """
        from jinja2 import TemplateError

        if self.template is None:
            raise ValueError("this model has no chat template for `messages`; give `text`")
        try:
            return str(
                self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise ValueError(f"the chat template does not take these messages: {error}") from error

    def prompt(
        self,
        fields: Mapping[str, Any],
        *,
        name: str,
        prompt_set: str,
        bos_mode: str | None = None,
        template: str | None = None,
    ) -> Prompt:
        """The prompt that `fields` (see `FIELDS`) describe; `name` where they give no `id`.

        `bos_mode` and `template` say how given `token_ids` were made, where the caller made them from text.

        `spans` map a name to `[start, stop)`: characters of the text (or of the rendered messages, or a
        string that occurs once in it), tokens when `token_ids` are given. Raises ValueError, in one line.
        """
        unknown = sorted(set(fields) - set(FIELDS))
        if unknown:
            raise ValueError(f"unknown field {unknown[0]!r}; there are {', '.join(FIELDS)}")
        encoded = self._tokens(fields)
        ids = encoded.ids
        if encoded.answer_start == 0:
            raise ValueError("empty prompt: it has no tokens")
        if self.max_tokens is not None and len(ids) > self.max_tokens:
            raise ValueError(f"the prompt has {len(ids)} tokens, the model's context {self.max_tokens}")
        spans = self._spans(fields.get("spans") or {}, encoded)
        answer = tuple(ids[encoded.answer_start :])
        return Prompt(
            id=self.identity(ids),
            name=str(fields.get("id") or name),
            token_ids=tuple(ids),
            spans=spans,
            prompt_set=prompt_set,
            group=_text_or_none(fields, "group"),
            pair_id=_text_or_none(fields, "pair_id"),
            answer_ids=answer,
            foils=self._foils(fields, encoded, answer),
            bos_mode=bos_mode or encoded.bos_mode,
            template=template or encoded.template,
            metadata={**_metadata(fields), **encoded.notes},
            pieces=self.texts.pieces(ids),
            special=self.texts.special(ids),
        )

    def identity(self, ids: Sequence[int]) -> str:
        """Hash of token ids and tokenizer, 16 hex digits: equal for equal prompts on every machine."""
        return hashlib.sha256(f"{self.hash} {' '.join(map(str, ids))}".encode()).hexdigest()[:16]

    def _tokens(self, fields: Mapping[str, Any]) -> _Encoded:
        given = [source for source in _SOURCES if fields.get(source) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"a prompt has one of {', '.join(_SOURCES)}; here: {found}")
        answer = fields.get("answer")
        if given[0] == "token_ids":
            return self._given(fields["token_ids"], answer)
        if answer is not None and not isinstance(answer, str):
            raise ValueError("`answer` is a text where the prompt is one")
        if given[0] == "text":
            text, template = fields["text"], None
            if not isinstance(text, str):
                raise ValueError(f"`text` is a {type(text).__name__}, not a text")
            ids, offsets = self.encode(text)
            if not text.strip():
                raise ValueError("empty prompt: its text has no characters")
        else:
            text, template = self.render(fields["messages"]), self.template
            ids, offsets = self.rendered(text)
        mode = self.bos_mode if template is None else "template"
        tail, exact = self.continuation(text, ids, answer or "", raw=template is None)
        notes = {} if exact else {"answer_encoding": "separate"}
        return _Encoded(ids + tail, offsets, text, len(ids), mode, template, notes)

    def _given(self, token_ids: Any, answer: Any) -> _Encoded:
        ids = _ids(token_ids, "token_ids", len(self.tokenizer))
        if not ids:
            raise ValueError("empty prompt: `token_ids` has none")
        if answer is None:
            tail = []
        elif isinstance(answer, str):
            tail = self.plain(answer)
        else:
            tail = _ids(answer, "answer", len(self.tokenizer))
        return _Encoded(ids + tail, None, None, len(ids), "given", None)

    def continuation(self, text: str, ids: list[int], more: str, *, raw: bool) -> tuple[list[int], bool]:
        """The tokens of `more` after `text`, whose tokens are `ids`, and whether they are the joint ones.

        They are those a tokenizer writes when it reads both in one go; where that would change `ids`, those
        of `more` on its own (False). `raw` False: the text is a rendered conversation.
        """
        joint = (self.encode if raw else self.rendered)(text + more)[0]
        if joint[: len(ids)] == ids:
            return joint[len(ids) :], True
        return self.plain(more), False

    def _foils(
        self, fields: Mapping[str, Any], encoded: _Encoded, answer: tuple[int, ...]
    ) -> tuple[int, ...]:
        """The first token of each wrong answer; ValueError when one begins like the answer."""
        given = fields.get("foils")
        if given is None:
            return ()
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise ValueError("`foils` is a list of texts or token ids")
        first: list[int] = []
        for foil in given:
            if isinstance(foil, str) and encoded.text is not None:
                ids = encoded.ids[: encoded.answer_start]
                tokens = self.continuation(encoded.text, ids, foil, raw=encoded.template is None)[0]
            else:
                tokens = (
                    self.plain(foil) if isinstance(foil, str) else _ids([foil], "foils", len(self.tokenizer))
                )
            if not tokens:
                raise ValueError("an empty foil")
            if answer and tokens[0] == answer[0]:
                raise ValueError(f"foil {foil!r} begins with the same token as the answer")
            first.append(tokens[0])
        return tuple(first)

    def _spans(self, given: Any, encoded: _Encoded) -> dict[str, tuple[int, int]]:
        if not isinstance(given, Mapping):
            raise ValueError("`spans` maps names to [start, stop]")
        spans: dict[str, tuple[int, int]] = {}
        for name, where in given.items():
            if name == "answer" and encoded.answer_start < len(encoded.ids):
                raise ValueError(
                    "the span `answer` is set by the field `answer`; name the other one differently"
                )
            spans[str(name)] = _span(str(name), where, encoded)
        if encoded.answer_start < len(encoded.ids):
            spans["answer"] = (encoded.answer_start, len(encoded.ids))
        ordered = sorted(spans.items(), key=lambda item: item[1])
        for (left, (_, stop)), (right, (start, _)) in pairwise(ordered):
            if start < stop:
                raise ValueError(f"overlapping spans: {left!r} and {right!r} share token {start}")
        return spans


def _span(name: str, where: Any, encoded: _Encoded) -> tuple[int, int]:
    """A token span from characters, a string that occurs once, or (where ids were given) tokens."""
    if isinstance(where, str):
        if encoded.text is None:
            raise ValueError(f"span {name!r} is a text, but the prompt is token ids: give [start, stop]")
        if not where or encoded.text.count(where) != 1:
            raise ValueError(f"span {name!r}: {where!r} occurs {encoded.text.count(where)} times, not once")
        start = encoded.text.index(where)
        stop = start + len(where)
    else:
        pair = list(where) if isinstance(where, Sequence) else []
        if len(pair) != 2 or not all(isinstance(at, int) and not isinstance(at, bool) for at in pair):
            raise ValueError(f"span {name!r} is [start, stop], two whole numbers")
        start, stop = pair
    size = encoded.answer_start if encoded.text is None else len(encoded.text)
    unit = "tokens" if encoded.text is None else "characters"
    if not 0 <= start < stop <= size:
        raise ValueError(f"span {name!r} [{start}, {stop}) is empty or outside the prompt's {size} {unit}")
    if encoded.offsets is None:
        return start, stop
    try:
        return token_span(encoded.offsets, start, stop)
    except ValueError as error:
        raise ValueError(f"span {name!r}: {error}") from error


def token_span(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> tuple[int, int]:
    """The tokens that hold any of the characters `[start, stop)`; ValueError when none does."""
    inside = [at for at, (a, b) in enumerate(offsets) if a < stop and b > start and b > a]
    if not inside:
        raise ValueError(f"the characters [{start}, {stop}) are in no token")
    return inside[0], inside[-1] + 1


def _ids(given: Any, name: str, vocabulary: int) -> list[int]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ValueError(f"`{name}` is a list of token ids")
    for token in given:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary:
            raise ValueError(f"`{name}`: {token!r} is no token id; they go from 0 to {vocabulary - 1}")
    return list(given)


def _text_or_none(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return None if value is None else str(value)


def _metadata(fields: Mapping[str, Any]) -> dict[str, Any]:
    value = fields.get("metadata")
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError("`metadata` is an object")
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`metadata` cannot be written as JSON: {error}") from error
    return dict(value)
