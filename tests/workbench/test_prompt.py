"""Prompts: ids are the truth, spans are over them, and what cannot be a prompt is refused in one line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from small_tokenizer import small_tokenizer

from sparselens.workbench.encoder import Encoder, token_span
from sparselens.workbench.prompt import Prompt, read_prompts
from sparselens.workbench.token_text import TokenText

TEXT = "The value of the object is returned."


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_tokenizer()


def one(fields: dict[str, Any] | str, tokenizer: Any, **options: Any) -> Prompt:
    (prompt,) = read_prompts([fields], tokenizer, **options)
    return prompt


def test_token_ids_are_those_of_the_tokenizer_and_the_texts_join_to_the_prompt(tokenizer: Any) -> None:
    prompt = one(TEXT, tokenizer)
    assert list(prompt.token_ids) == tokenizer(TEXT)["input_ids"]
    assert prompt.text == TEXT
    assert prompt.bos_mode == "default"
    assert prompt.template is None


def test_raw_text_begins_as_asked() -> None:
    tokenizer = small_tokenizer(bos=True)
    bos = tokenizer.bos_token_id
    default, added, without = (one(TEXT, tokenizer, bos=mode) for mode in (None, True, False))
    assert default.token_ids[0] == added.token_ids[0] == bos
    assert default.token_ids == added.token_ids == (bos, *without.token_ids)
    assert default.special[:2] == (True, False)
    assert [p.bos_mode for p in (default, added, without)] == ["default", "added", "left out"]


def test_bos_is_added_where_the_tokenizer_would_not(tokenizer: Any) -> None:
    assert one(TEXT, tokenizer, bos=True).token_ids == (
        tokenizer.bos_token_id,
        *one(TEXT, tokenizer).token_ids,
    )


def test_messages_use_the_template_and_record_its_hash(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": TEXT}]
    prompt = one({"messages": messages, "spans": {"object": "the object"}}, tokenizer)
    assert prompt.text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt.bos_mode == "template"
    assert prompt.template == Encoder(tokenizer).template
    start, stop = prompt.spans["object"]
    assert "".join(prompt.pieces[start:stop]).strip() == "the object"


def test_messages_without_a_template_are_refused() -> None:
    with pytest.raises(ValueError, match="no chat template"):
        one({"messages": [{"role": "user", "content": "a"}]}, small_tokenizer(chat=False))


def test_the_answer_ends_the_prompt_with_its_joint_tokens(tokenizer: Any) -> None:
    prompt = one({"text": "The value of the", "answer": " object is"}, tokenizer)
    joint = tokenizer("The value of the object is")["input_ids"]
    assert list(prompt.token_ids) == joint
    start, stop = prompt.spans["answer"]
    assert stop == len(joint)
    assert prompt.answer_ids == prompt.token_ids[start:stop]
    assert "".join(prompt.pieces[start:stop]) == " object is"
    assert "answer_encoding" not in prompt.metadata


def test_an_answer_that_would_change_the_prompts_tokens_is_encoded_on_its_own_and_says_so(
    tokenizer: Any,
) -> None:
    prompt = one({"text": "The val", "answer": "ue"}, tokenizer)
    head = tokenizer("The val")["input_ids"]
    assert tokenizer("The value")["input_ids"][: len(head)] != head
    assert list(prompt.token_ids[: len(head)]) == head
    assert "".join(prompt.pieces) == "The value"
    assert prompt.metadata["answer_encoding"] == "separate"


def test_character_spans_cover_the_tokens_that_hold_them(tokenizer: Any) -> None:
    start = TEXT.index("object")
    prompt = one({"text": TEXT, "spans": {"noun": [start, start + 6]}}, tokenizer)
    assert "".join(prompt.pieces[slice(*prompt.spans["noun"])]) == " object"


def test_spans_count_the_opening_tokens(tokenizer: Any) -> None:
    plain = one({"text": TEXT, "spans": {"noun": "object"}}, tokenizer)
    opened = one({"text": TEXT, "spans": {"noun": "object"}}, tokenizer, bos=True)
    assert opened.spans["noun"] == tuple(at + 1 for at in plain.spans["noun"])


def test_given_ids_are_taken_as_they_are_with_token_spans(tokenizer: Any) -> None:
    prompt = one({"token_ids": [5, 6, 7, 8], "answer": [9, 10], "spans": {"middle": [1, 3]}}, tokenizer)
    assert prompt.token_ids == (5, 6, 7, 8, 9, 10)
    assert prompt.spans == {"middle": (1, 3), "answer": (4, 6)}
    assert prompt.bos_mode == "given"


def test_foils_are_the_first_token_of_each_wrong_answer(tokenizer: Any) -> None:
    prompt = one(
        {"text": "The value of the", "answer": " object", "foils": [" class", " function"]}, tokenizer
    )
    assert prompt.foils == tuple(tokenizer(text)["input_ids"][0] for text in (" class", " function"))


def test_the_id_is_that_of_tokens_and_tokenizer(tokenizer: Any) -> None:
    assert one(TEXT, tokenizer).id == one({"text": TEXT, "id": "other"}, small_tokenizer()).id
    assert one(TEXT, tokenizer).id != one(TEXT + " No.", tokenizer).id
    assert one(TEXT, tokenizer).id != one(TEXT, small_tokenizer(bos=True), bos=False).id


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": ""}, "empty prompt"),
        ({"text": "  "}, "empty prompt"),
        ({"token_ids": []}, "empty prompt"),
        ({}, "one of text, messages, token_ids; here: none"),
        ({"text": "a", "token_ids": [1]}, "text and token_ids"),
        ({"txt": "a"}, "unknown field 'txt'; there are id, text"),
        ({"text": 3}, "not a text"),
        ({"text": "abc", "spans": {"a": [0, 9]}}, "outside the prompt's 3 characters"),
        ({"text": "abc", "spans": {"a": [2, 2]}}, "empty or outside"),
        ({"text": "abc", "spans": {"a": [-1, 2]}}, "empty or outside"),
        ({"text": "abc", "spans": {"a": "x"}}, "occurs 0 times"),
        ({"text": "abc", "spans": {"a": [0.5, 2]}}, "two whole numbers"),
        ({"token_ids": [1, 2], "spans": {"a": [0, 3]}}, "outside the prompt's 2 tokens"),
        ({"text": "of the object", "spans": {"a": [0, 6], "b": [3, 13]}}, "overlapping spans: 'a' and 'b'"),
        (
            {"text": "of the", "answer": " object", "spans": {"answer": [0, 2]}},
            "`answer` is set by the field",
        ),
        ({"token_ids": [10**9]}, "is no token id"),
        ({"text": "a", "answer": " b", "foils": [" b"]}, "same token as the answer"),
        ({"text": "a", "foils": " b"}, "`foils` is a list"),
        ({"text": "a", "metadata": {"a": {1}}}, "cannot be written as JSON"),
        ({"text": "word " * 40}, "context 20"),
    ],
)
def test_what_cannot_be_a_prompt_is_refused_in_one_line(fields: Any, message: str, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_prompts([fields], tokenizer, max_tokens=20)
    assert str(caught.value).startswith("prompt 0: ")
    assert "\n" not in str(caught.value)


def test_a_prompt_that_is_too_long_says_both_numbers(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"has 30 tokens, the model's context 29"):
        read_prompts([{"token_ids": list(range(30))}], tokenizer, max_tokens=29)


def test_an_unreadable_line_is_named_by_its_number(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b"\n')
    with pytest.raises(ValueError, match=r"prompts\.jsonl line 3 is not JSON"):
        read_prompts(path, tokenizer)
    path.write_text('{"text": "a"}\n[1]\n')
    with pytest.raises(ValueError, match=r"line 2 is a list, not an object"):
        read_prompts(path, tokenizer)
    path.write_text('{"text": "a"}\n{"text": ""}\n')
    with pytest.raises(ValueError, match=r"line 2: empty prompt"):
        read_prompts(path, tokenizer)


def test_every_source_gives_the_same_prompts(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"id": "a", "text": TEXT, "answer": " No.", "spans": {"noun": [17, 23]}, "metadata": {"n": 1}},
        {"id": "b", "text": "Another one.", "group": "g", "foils": [" x"]},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "p.jsonl").write_text(lines)
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "p.parquet")
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    expected = read_prompts(rows, tokenizer)
    from datasets import Dataset

    sources = [
        str(tmp_path / "p.jsonl"),
        tmp_path / "p.parquet",
        frame,
        "-",
        Dataset.from_pandas(frame),
        iter(rows),
    ]
    for source in sources:
        found = read_prompts(source, tokenizer)
        assert [p.id for p in found] == [p.id for p in expected]
        assert [(p.name, p.spans, p.group, p.foils, p.metadata) for p in found] == [
            (p.name, p.spans, p.group, p.foils, p.metadata) for p in expected
        ]


def test_equal_prompts_and_equal_names_are_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="prompt 1 has the same tokens as prompt 0"):
        read_prompts([TEXT, TEXT], tokenizer)
    with pytest.raises(ValueError, match="same id 'a'"):
        read_prompts([{"id": "a", "text": "b"}, {"id": "a", "text": "c"}], tokenizer)


def test_an_unknown_source_lists_what_there_is(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"\.jsonl or \.parquet file, - for stdin, and the sets code, copying, facts, .* needles",
    ):
        read_prompts("prompts.txt", tokenizer)
    with pytest.raises(FileNotFoundError):
        read_prompts(tmp_path / "absent.jsonl", tokenizer)
    with pytest.raises(ValueError, match="no prompts"):
        read_prompts([], tokenizer)
    with pytest.raises(ValueError, match="a list of one dict"):
        read_prompts({"text": "a"}, tokenizer)


def test_half_a_character_reads_as_its_bytes(tokenizer: Any) -> None:
    texts = TokenText(tokenizer)
    ids = tokenizer("é🙂 a")["input_ids"]
    pieces = texts.pieces(ids)
    assert pieces[0] == "<0xC3>"
    assert pieces[-1] == " a"
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_words_are_letters_only(tokenizer: Any) -> None:
    texts = TokenText(tokenizer)
    words = texts.words()
    assert len(words) > 500
    assert all(
        texts.piece(token).strip().isalpha() and len(texts.piece(token).strip()) > 1 for token in words
    )
    assert not any(texts.special(words))


def test_token_span_needs_a_token() -> None:
    assert token_span([(0, 0), (0, 3), (3, 6)], 2, 4) == (1, 3)
    with pytest.raises(ValueError, match="in no token"):
        token_span([(0, 0), (0, 3), (4, 6)], 3, 4)
