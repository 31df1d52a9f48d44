"""Prompt sets of tasks with references: equal lengths, the right tokens in the right places, several references."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from small_tokenizer import small_tokenizer

from sparselens.workbench.prompt import Prompt, built_in


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_tokenizer()


def pairs(call: str, tokenizer: Any, **how: Any) -> list[list[Prompt]]:
    """The prompts by pair, clean first."""
    found: dict[str | None, list[Prompt]] = {}
    for prompt in built_in(call, tokenizer, **how):
        found.setdefault(prompt.pair_id, []).append(prompt)
    return list(found.values())


def words(prompt: Prompt, span: str) -> str:
    return "".join(prompt.pieces[slice(*prompt.spans[span])]).strip()


@pytest.mark.parametrize("filler", [0, 40])
@pytest.mark.parametrize("name", ["ioi", "greater_than", "copying"])
def test_references_have_the_length_and_places_of_the_clean_prompt(
    name: str, filler: int, tokenizer: Any
) -> None:
    for clean, *references in pairs(f"{name}(n=6,references=3,filler={filler})", tokenizer, bos=True):
        assert len(references) == 3
        assert len({prompt.id for prompt in (clean, *references)}) == 4
        for other in references:
            assert len(other) == len(clean)
            assert other.spans == clean.spans
            assert (other.answer_ids, other.foils) == (clean.answer_ids, clean.foils)
            assert other.token_ids[slice(*clean.spans["END"])] == clean.token_ids[slice(*clean.spans["END"])]
            assert clean.metadata["role"] == "clean" != other.metadata["role"]


@pytest.mark.parametrize("name", ["ioi", "greater_than", "copying"])
def test_filler_is_the_same_prose_of_exactly_so_many_tokens(name: str, tokenizer: Any) -> None:
    short = pairs(f"{name}(n=4)", tokenizer)
    long = pairs(f"{name}(n=4,filler=50)", tokenizer)
    for (brief, _), (clean, corrupt) in zip(short, long, strict=True):
        assert len(clean) - len(brief) == 50
        differ = [a != b for a, b in zip(clean.token_ids, corrupt.token_ids, strict=True)]
        assert 1 <= sum(differ) <= 12


def test_the_first_pairs_do_not_depend_on_how_many_references_there_are(tokenizer: Any) -> None:
    one = pairs("ioi(n=4)", tokenizer)
    four = pairs("ioi(n=4,references=4)", tokenizer)
    assert [[prompt.id for prompt in each] for each in one] == [
        [prompt.id for prompt in each[:2]] for each in four
    ]
    for clean, *references in four:
        used = [words(prompt, span) for prompt in references for span in ("IO", "S1", "S2")]
        assert len(set(used)) == 12
        assert {words(clean, "IO"), words(clean, "S1")}.isdisjoint(used)


def test_the_digits_above_are_right_and_those_below_are_wrong(tokenizer: Any) -> None:
    for clean, corrupt in pairs("greater_than(n=12)", tokenizer):
        tens = clean.metadata["tens"]
        digit = [int(tokenizer.decode([token])) for token in clean.metadata["right"]]
        assert digit == list(range(tens + 1, 10))
        assert [int(tokenizer.decode([token])) for token in clean.foils] == list(range(tens))
        assert int(words(clean, "tens")) == tens
        assert (words(corrupt, "tens"), words(corrupt, "unit")) == ("0", "1")
        century = "".join(clean.pieces[slice(*clean.spans["century"])]).strip()
        assert clean.text.count(century) == 2
        assert "".join(clean.pieces[: clean.spans["END"][1]]).endswith(century)
        assert 2 <= tens <= 7


def test_what_is_copied_stood_once_before_and_in_no_reference(tokenizer: Any) -> None:
    for clean, corrupt in pairs("copying(n=8,again=2,filler=30)", tokenizer):
        a, b, end = (clean.spans[name][0] for name in ("A", "B", "END"))
        ids = clean.token_ids
        assert b == a + 1
        assert ids[a - 1 : a + 1] == ids[end - 1 : end + 1]
        assert clean.answer_ids == (ids[b],)
        assert ids.count(ids[b]) == 2  # where it stood, and the answer
        assert corrupt.token_ids.count(ids[b]) == 1
        assert corrupt.token_ids.count(ids[end]) == 1
        assert ids[b] not in clean.foils
        assert len(clean.foils) == 11
        assert all(first != second for first, second in pairwise(ids[:12]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("greater_than(n=0)", "at least 1"),
        ("greater_than(references=11)", "references is 1 to 10"),
        ("copying(again=12)", "less than words"),
        ("copying(references=0)", "at least 1"),
        ("ioi(references=2,corrupt=swap)", "corrupt=abc alone"),
        ("ioi(references=40)", "too few for 40 references"),
    ],
)
def test_a_wrong_call_is_refused_in_one_line(call: str, message: str, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        built_in(call, tokenizer)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_joins_digits_is_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<unk>", "The", "year", "17", "1742", "."])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    joined = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    with pytest.raises(ValueError, match="each digit as a token of its own"):
        built_in("greater_than(n=1)", joined)
