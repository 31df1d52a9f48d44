"""The selection and its URL."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparselens.dashboards.selection import CHOICES, MOST_HEADS, Heads, Selection, Window

texts = st.text(min_size=1, max_size=30).filter(lambda text: "\0" not in text)
numbers = st.none() | st.integers(0, 10**6)
windows = st.none() | st.builds(lambda a, n: Window(a, a + n), st.integers(0, 9999), st.integers(1, 9999))


@given(
    a=texts,
    b=texts,
    prompt=texts,
    rows=texts,
    layer=numbers,
    head=numbers,
    q=numbers,
    qs=windows,
    ks=windows,
    sql=st.text(max_size=60),
    way=st.sampled_from(CHOICES["way"]),
    scale=st.sampled_from(CHOICES["scale"]),
)
def test_a_link_brings_back_exactly_the_selection(**fields: object) -> None:
    selection = Selection(**fields)  # type: ignore[arg-type]
    again, complaints = Selection.parse(selection.search())
    assert again == selection
    assert complaints == []


def test_a_part_store_brings_back_the_selection() -> None:
    selection = Selection(a="run", layer=3, head=0, qs=Window(4, 9), sql="SELECT 1")
    assert Selection.of(selection.spelled()) == selection


@pytest.mark.parametrize(
    "search",
    [
        "?layer=abc",
        "?layer=-1",
        "?qs=9-4",
        "?qs=9",
        "?way=up",
        "?nonsense=1",
        "?q=1e9",
        "?only=L1",
        "?only=L1H2;",
        "?only=" + ",".join(["L1H2"] * (MOST_HEADS + 1)),
    ],
)
def test_bad_values_are_ignored_with_one_line_each(search: str) -> None:
    selection, complaints = Selection.parse(search)
    assert selection == Selection()
    assert len(complaints) == 1
    assert "\n" not in complaints[0]


def test_listed_heads_are_each_there_once_in_the_order_given() -> None:
    selection, _ = Selection.parse("?only=L3H1,L0H2,L3H1")
    assert selection.only == Heads(((3, 1), (0, 2)))
    assert selection.search() == "?only=L3H1,L0H2"


def test_a_window_outside_the_prompt_is_clipped_and_never_empty() -> None:
    assert Window(5, 400).clip(60) == Window(5, 60)
    assert Window(300, 400).clip(60) == Window(59, 60)
