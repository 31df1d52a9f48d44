"""The sets `facts` and `letters`: pairs of equal length, spans that say what they name, one-token answers."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
from small_tokenizer import small_tokenizer

from sparselens.workbench.fact_relation import RELATIONS
from sparselens.workbench.prompt import Prompt, built_in
from sparselens.workbench.prompt_sets import letters as letters_set
from sparselens.workbench.prose import paragraphs


@cache
def words() -> Any:
    """A tokenizer of whole words, signs and newlines: every answer is one token."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    texts = [part for relation in RELATIONS.values() for part in (relation.head, relation.tail)]
    texts += [word for relation in RELATIONS.values() for fact in relation.facts for word in fact]
    texts += [
        *letters_set._WORDS.split(),
        *letters_set._LETTERS,
        "Options: Question: Which option is the word?\nAnswer:",
    ]
    texts += [sentence for block in paragraphs() for sentence in block]
    known = dict.fromkeys(piece for text in texts for piece in re.findall(r"\w+|\n|[^\w\s]", text))
    vocabulary = {piece: number for number, piece in enumerate(["<s>", *known])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\w+|\n|[^\w\s]"), "isolated"),
            pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<s>")


def text_of(prompt: Prompt, span: str) -> str:
    start, stop = prompt.spans[span]
    return words().decode(prompt.token_ids[start:stop]).strip()


def pairs(call: str) -> list[tuple[Prompt, Prompt]]:
    made = built_in(call, words())
    assert [prompt.metadata["role"] for prompt in made] == ["clean", "corrupt"] * (len(made) // 2)
    return list(zip(made[::2], made[1::2], strict=True))


@pytest.mark.parametrize(
    "call", ["facts(n=5,filler=40)", "facts(n=0)", "letters(n=3,filler=30)", "letters(n=3,layout=after)"]
)
def test_pairs_share_length_answer_foils_and_spans_and_differ_in_one_word(call: str) -> None:
    for clean, corrupt in pairs(call):
        assert len(clean) == len(corrupt)
        assert (clean.answer_ids, clean.foils, clean.spans) == (
            corrupt.answer_ids,
            corrupt.foils,
            corrupt.spans,
        )
        assert clean.pair_id == corrupt.pair_id
        assert clean.group == corrupt.group
        assert len(clean.answer_ids) == 1
        assert clean.answer_ids[0] not in clean.foils
        changed = [one != two for one, two in zip(clean.token_ids, corrupt.token_ids, strict=True)]
        assert sum(changed) == 1
        assert clean.spans["END"] == (len(clean) - 2, len(clean) - 1)


@pytest.mark.parametrize("name", ["facts", "letters"])
def test_the_same_call_gives_the_same_prompts_and_another_seed_others(name: str) -> None:
    first, again = (built_in(f"{name}(n=2)", words()) for _ in range(2))
    assert first == again
    assert {prompt.id for prompt in first} != {
        prompt.id for prompt in built_in(f"{name}(n=2,seed=1)", words())
    }
    assert all(prompt.prompt_set == name for prompt in first)


def test_the_answer_is_the_subjects_and_the_foil_the_other_subjects() -> None:
    for clean, corrupt in pairs("facts(n=0)"):
        known = dict(RELATIONS[str(clean.group)].facts)
        assert text_of(clean, "answer") == known[text_of(clean, "subject")]
        assert words().decode(clean.foils) == known[text_of(corrupt, "subject")]
        assert clean.metadata["subject"] == text_of(clean, "subject")


def test_no_subject_is_asked_for_twice_in_a_relation() -> None:
    for relation in RELATIONS.values():
        subjects = [subject for subject, _ in relation.facts]
        assert len(set(subjects)) == len(subjects)
    made = [clean.name for clean, _ in pairs("facts(n=0)")]
    assert len(set(made)) == len(made)


def test_the_relation_is_the_question_without_its_last_token() -> None:
    for clean, _ in pairs("facts(relations=[capital],n=3,filler=25)"):
        assert text_of(clean, "relation") == "The capital of that country is the city"
        assert text_of(clean, "END") == "of"


def test_filler_moves_the_subject_away_by_so_many_tokens() -> None:
    near, far = (built_in(f"facts(n=1,filler={filler})", words())[0] for filler in (0, 64))
    assert len(far) - len(near) == 64
    assert near.spans["subject"] == far.spans["subject"]
    assert far.spans["relation"][0] - near.spans["relation"][0] == 64


@pytest.mark.parametrize("layout", ["before", "after"])
def test_the_right_option_is_the_word_that_is_asked_for(layout: str) -> None:
    for clean, corrupt in pairs(f"letters(n=6,options=5,layout={layout})"):
        assert text_of(clean, "question") == text_of(clean, "right_text")
        assert text_of(clean, "right") == text_of(clean, "answer")
        wrong = {text_of(clean, f"wrong{number}") for number in range(1, 5)}
        assert wrong | {text_of(clean, "answer")} == set("ABCDE")
        assert {words().decode([foil]) for foil in clean.foils} == wrong
        other = text_of(corrupt, "question")
        assert other in {text_of(corrupt, f"wrong{number}_text") for number in range(1, 5)}
        for name in ("right_end", "wrong4_end"):
            start, stop = clean.spans[name]
            assert clean.text[slice(*_characters(clean, start, stop))] == "\n"


def _characters(prompt: Prompt, start: int, stop: int) -> tuple[int, int]:
    before = "".join(prompt.pieces[:start])
    return len(before), len(before) + len("".join(prompt.pieces[start:stop]))


def test_orders_of_a_question_differ_and_share_its_words() -> None:
    found: dict[str, list[list[str]]] = {}
    for clean, _ in pairs("letters(n=4,permutations=3)"):
        found.setdefault(str(clean.group), []).append(clean.metadata["order"])
    for orders in found.values():
        assert len({tuple(order) for order in orders}) == 3
        assert len({frozenset(order) for order in orders}) == 1


def test_what_cannot_be_had_is_refused() -> None:
    for call, said in (
        ("facts(relations=[colour])", "no relation 'colour'; it has capital"),
        ("facts(n=-1)", "not negative"),
        ("letters(options=1)", "options are 2 to 26"),
        ("letters(layout=beside)", "it has before, after"),
        ("letters(options=2,permutations=3)", "2 options have 2 orders, not 3"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            built_in(call, words())
    with pytest.raises(ValueError, match="answers of capital are one token in this tokenizer, 4 are needed"):
        built_in("facts(relations=[capital])", small_tokenizer())
