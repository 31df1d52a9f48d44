"""Built-in sets: exact lengths, spans on the right words, the same prompts from the same call."""

from __future__ import annotations

import random
from typing import Any

import pytest
from small_tokenizer import small_tokenizer

from sparselens.workbench.encoder import Encoder
from sparselens.workbench.needle_family import FAMILIES
from sparselens.workbench.prompt import Prompt, built_in, read_prompts
from sparselens.workbench.prompt_set import is_call, parse, prompt_sets
from sparselens.workbench.prose import exact_fill, paragraphs


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_tokenizer()


def words(prompt: Prompt, span: str) -> str:
    return "".join(prompt.pieces[slice(*prompt.spans[span])]).strip()


@pytest.mark.parametrize(
    "call",
    [
        "needles(length=[256,300],depths=[0.25],families=[passkey,pet],n=3,chat=False,seed=2)",
        "repeats(length=64,gap=[0,7],n=2)",
        "ioi(n=4,corrupt=swap)",
        "prose()",
    ],
)
def test_a_call_is_printed_and_parsed_to_the_same_set(call: str) -> None:
    assert str(parse(call)) == call
    assert parse(str(parse(call))) == parse(call)


def test_the_shorthand_is_the_call() -> None:
    assert parse("prose:length=64,n=2") == parse("prose(length=64, n=2)")
    assert is_call("prose")
    assert is_call("anything(n=2)")
    assert not is_call("prompts.jsonl")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("needls(n=2)", "unknown prompt set 'needls'; did you mean 'needles'"),
        ("nothing()", "there are code, .*ioi, .*prose, repeats"),
        ("prose(size=2)", "no parameter 'size'; it has length, n, seed"),
        ("prose(n=many)", "n is a int"),
        ("prose(3)", "name=value"),
        ("prose(n=)", "cannot be read"),
        ("prose(n=open('x'))", "is no value"),
        ("needles(families=[none_such])", "no family"),
        ("needles(depths=[2])", "from 0 to 1"),
        ("needles(length=40)", "no room for prose"),
        ("repeats(length=6,gap=4)", "no room for two halves"),
        ("ioi(corrupt=x)", "it has abc, swap"),
        ("prose(n=0)", "at least 1"),
    ],
)
def test_a_wrong_call_is_refused_in_one_line(call: str, message: str, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        built_in(call, tokenizer)
    assert "\n" not in str(caught.value)


RARE_WORDS = {"facts", "letters"}
"""Sets whose words are no single tokens of the small tokenizer: `test_fact_prompts` asks the same of them."""


@pytest.mark.parametrize("name", sorted(set(prompt_sets()) - RARE_WORDS))
def test_the_same_call_gives_the_same_prompts_and_another_seed_others(name: str, tokenizer: Any) -> None:
    first, again = (read_prompts(f"{name}(n=2)", tokenizer) for _ in range(2))
    assert first == again
    other = read_prompts(f"{name}(n=2,seed=1)", tokenizer)
    assert {prompt.id for prompt in first}.isdisjoint(prompt.id for prompt in other)
    assert all(prompt.prompt_set == name for prompt in first)


@pytest.mark.parametrize("chat", [True, False])
def test_needles_have_exactly_the_asked_length_and_copyable_answers(chat: bool, tokenizer: Any) -> None:
    prompts = built_in(f"needles(length=[256,400],n=32,depths=[0.0,0.5,1.0],chat={chat})", tokenizer)
    assert {len(prompt) for prompt in prompts} == {256, 400}
    assert {prompt.group for prompt in prompts} == set(FAMILIES)
    for prompt in prompts:
        assert prompt.spans["answer"][1] == len(prompt)
        assert words(prompt, "answer").strip('" ') in words(prompt, "needle")
        assert words(prompt, "question").endswith("?")
        value = slice(*prompt.metadata["value"])
        assert words(prompt, "answer") in "".join(prompt.pieces[value])
        assert prompt.text.count(words(prompt, "needle")) == 1
        assert (prompt.bos_mode == "template") is chat
        assert (prompt.template is not None) is chat


def test_needles_are_one_tokenisation_of_their_text(tokenizer: Any) -> None:
    for prompt in built_in("needles(length=300,n=8)", tokenizer):
        text = prompt.text
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == list(prompt.token_ids)


def test_every_family_is_seen_at_every_depth(tokenizer: Any) -> None:
    prompts = built_in("needles(length=256)", tokenizer)
    seen = {(prompt.group, prompt.metadata["depth"]) for prompt in prompts}
    assert len(prompts) == len(seen) == 3 * len(FAMILIES)
    for prompt in prompts:
        body = prompt.spans["question"][0]
        assert prompt.spans["needle"][0] / body == pytest.approx(prompt.metadata["depth"], abs=0.35)


def test_the_needle_stands_between_sentences(tokenizer: Any) -> None:
    (prompt,) = built_in("needles(length=400,n=1,depths=[0.5],families=[passkey])", tokenizer)
    before = "".join(prompt.pieces[: prompt.spans["needle"][0]])
    assert before.rstrip()[-1] in ".!?"


@pytest.mark.parametrize("gap", [0, 1, 30])
def test_repeats_repeat(gap: int, tokenizer: Any) -> None:
    for prompt in built_in(f"repeats(length=101,gap={gap},n=3)", tokenizer, bos=True):
        first, second = (prompt.token_ids[slice(*prompt.spans[name])] for name in ("first", "second"))
        assert first == second
        assert len(prompt) == 101
        assert prompt.token_ids[0] == tokenizer.bos_token_id
        assert len(set(prompt.token_ids)) == len(prompt) - len(first)
        assert not any(prompt.special[1:])
        period = prompt.metadata["period"]
        assert prompt.spans["second"][0] - prompt.spans["first"][0] == period
        assert prompt.spans["second"][0] - prompt.spans["first"][1] in {gap, gap + 1}


@pytest.mark.parametrize("corrupt", ["abc", "swap"])
@pytest.mark.parametrize("filler", [0, 40])
def test_ioi_pairs_have_equal_length_and_spans(corrupt: str, filler: int, tokenizer: Any) -> None:
    prompts = built_in(f"ioi(n=16,corrupt={corrupt},filler={filler})", tokenizer)
    for clean, other in zip(prompts[::2], prompts[1::2], strict=True):
        assert clean.pair_id == other.pair_id
        assert (clean.metadata["role"], other.metadata["role"]) == ("clean", "corrupt")
        assert len(clean) == len(other)
        assert clean.spans == other.spans
        assert (clean.answer_ids, clean.foils) == (other.answer_ids, other.foils)
        assert words(clean, "S1") == words(clean, "S2") != words(clean, "IO")
        assert words(clean, "answer") == words(clean, "IO")
        assert clean.foils == (clean.token_ids[clean.spans["S2"][0]],)
        assert clean.spans["END"][1] == clean.spans["answer"][0]
        names = {words(other, span) for span in ("IO", "S1", "S2")}
        if corrupt == "abc":
            assert names.isdisjoint({words(clean, "IO"), words(clean, "S1")})
        else:
            assert words(other, "S2") == words(clean, "IO")
    assert {prompt.metadata["order"] for prompt in prompts} == {"BABA", "ABBA"}


def test_prose_is_exact_and_plain(tokenizer: Any) -> None:
    prompts = built_in("prose(length=200,n=3)", tokenizer)
    assert {len(prompt) for prompt in prompts} == {200}
    assert not any(prompt.spans for prompt in prompts)


def test_the_prose_has_no_markup_and_no_repeats() -> None:
    sentences = [sentence for block in paragraphs() for sentence in block]
    assert sum(map(len, sentences)) > 40_000
    assert len(set(sentences)) == len(sentences)
    assert not any(mark in sentence for sentence in sentences for mark in ("  ", "::", ">>>", "*", "|", "_"))


@pytest.mark.parametrize("size", [7, 40, 333, 1500])
def test_exact_fill_comes_to_the_token(size: int) -> None:
    def count(sentence: str) -> int:
        return len(sentence.split())

    found = exact_fill(size, count, random.Random(3))
    assert sum(map(count, found)) == size


def test_exact_fill_refuses_what_no_sentence_fits() -> None:
    with pytest.raises(ValueError, match="exactly 1 tokens"):
        exact_fill(1, lambda sentence: len(sentence.split()), random.Random(0))


def test_prompt_objects_pass_through(tokenizer: Any) -> None:
    prompts = built_in("prose(length=50,n=2)", tokenizer)
    assert read_prompts(prompts, tokenizer) == prompts
    assert Encoder(tokenizer).identity(prompts[0].token_ids) == prompts[0].id


@pytest.mark.model
@pytest.mark.slow
def test_the_default_model_answers_most_needles(smollm2: Any) -> None:
    import torch

    prompts = smollm2.prompts("needles(length=512,n=16)")
    right = 0
    for prompt in prompts:
        with torch.no_grad():
            logits = smollm2.model(torch.tensor([prompt.token_ids])).logits[0]
        start, stop = prompt.spans["answer"]
        right += logits[start - 1 : stop - 1].argmax(-1).tolist() == list(prompt.answer_ids)
    assert right >= 12
