"""The set `code`: source of the standard library, exact in length, without prose in it."""

from __future__ import annotations

import ast
import sys
from typing import Any

import pytest
from small_tokenizer import small_tokenizer

from sparselens.workbench.prompt import built_in
from sparselens.workbench.prompt_sets import code
from sparselens.workbench.prompt_sets.code import MODULES, definitions


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_tokenizer()


def test_code_has_exactly_the_asked_length_and_begins_with_a_definition(tokenizer: Any) -> None:
    prompts = built_in("code(length=300,n=5)", tokenizer)
    assert {len(prompt) for prompt in prompts} == {300}
    assert len({prompt.id for prompt in prompts}) == 5
    assert all(prompt.text.startswith(("def ", "class ", "@")) for prompt in prompts)
    assert not any(prompt.spans or prompt.answer_ids for prompt in prompts)


def test_a_bos_token_counts_in_the_length(tokenizer: Any) -> None:
    (plain,) = built_in("code(length=100,n=1)", tokenizer)
    (opened,) = built_in("code(length=100,n=1)", tokenizer, bos=True)
    assert opened.token_ids == (tokenizer.bos_token_id, *plain.token_ids[:-1])


def test_every_definition_is_python_without_docstrings() -> None:
    assert len(definitions()) > 200
    for text in definitions():
        (node,) = ast.parse(text).body
        assert isinstance(node, ast.FunctionDef | ast.ClassDef)
        for inner in ast.walk(node):
            if isinstance(inner, ast.FunctionDef | ast.ClassDef) and len(inner.body) > 1:
                assert ast.get_docstring(inner) is None


def test_every_module_is_written_in_python_and_gives_definitions() -> None:
    assert set(MODULES) - {"json.decoder"} <= sys.stdlib_module_names
    assert all(code._blocks(code._source(name)) for name in MODULES)


def test_what_cannot_be_had_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="n is at least 1"):
        built_in("code(n=0)", tokenizer)
    with pytest.raises(ValueError, match="no source of its module sys"):
        code._source("sys")
    monkeypatch.setattr(code, "definitions", lambda: ("def short(): pass",))
    with pytest.raises(ValueError, match="tokens of it, length is 512"):
        built_in("code(n=1)", tokenizer)
