"""Every policy obeys the laws of a policy, or its case names the law that it breaks and why."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparselens.kernels.kernel import kernel
from sparselens.kernels.policy import Memory, parse, policies
from sparselens.kernels.selection import Everything

from .conftest import difference, make_call
from .policy_case import LAWS, Case, cases, chosen, kept, mask_of

CASES = cases()
REFERENCE, BLOCKED = kernel("reference"), kernel("blocked")
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.text)


def obeying(law: str) -> pytest.MarkDecorator:
    """The cases that a law is about and that do not name it as an exception."""
    return pytest.mark.parametrize(
        "case", [case for case in CASES if case.obeys(law)], ids=lambda case: case.text
    )


def test_every_policy_has_a_case() -> None:
    tested = {parse(case.text).name for case in CASES}
    assert set(policies()) == tested


def test_exceptions_name_laws_and_reasons() -> None:
    for case in CASES:
        assert set(case.exceptions) <= set(LAWS)
        assert all(case.exceptions.values())


@EACH
def test_no_future_key_and_no_empty_row(case: Case) -> None:
    for length in (80, 37, 1):
        mask = mask_of(case.text, make_call(length))
        assert not mask.triu(1).any()
        assert mask.any(-1).all()


@EACH
def test_it_is_sparse_on_the_toy_call(case: Case) -> None:
    call = make_call(80)
    mask = mask_of(case.text, call)
    assert (mask.sum() < kept(Everything(), call).sum()) == (case.text != "dense")


@obeying("padded")
def test_a_padded_sequence_is_treated_as_if_alone(case: Case) -> None:
    padded = make_call(80, pads=[(0, 0), (23, 0), (0, 11)])
    whole = mask_of(case.text, padded)
    for row, queries, keys, one in padded.sequences():
        assert torch.equal(whole[row][:, queries][:, :, keys], mask_of(case.text, one)[0]), row


@EACH
def test_a_native_window_stays_in_force(case: Case) -> None:
    call = make_call(80, window=20)
    mask = mask_of(case.text, call)
    assert not (mask & ~call.allowed.rows(0, 80)).any()
    assert mask.any(-1).all()


@obeying("generous")
def test_a_budget_for_everything_is_dense(case: Case) -> None:
    assert case.generous is not None
    call = make_call(80)
    assert torch.equal(mask_of(case.generous, call), kept(Everything(), call))
    selection = chosen(case.generous, call)
    found, dense = (BLOCKED.attend(call, each) for each in (selection, Everything()))
    assert difference(found.output, dense.output) < 1e-5


@obeying("nested")
def test_a_larger_budget_keeps_a_superset(case: Case) -> None:
    assert case.wider is not None
    call = make_call(80)
    few, many = mask_of(case.text, call), mask_of(case.wider, call)
    assert not (few & ~many).any()
    assert (many & ~few).any()


@obeying("decode")
def test_decoding_keeps_what_the_last_row_of_the_prefill_keeps(case: Case) -> None:
    """For policies that decide row by row; those that act in one phase alone are asked for both."""
    call = make_call(80)
    policy = replace(parse(case.text), phase="both")
    last = replace(
        call,
        query=call.query[:, :, -1:],
        query_positions=call.query_positions[:, -1:],
        allowed=replace(call.allowed, query_index=call.allowed.query_index[-1:]),
        phase="decode",
    )
    whole, one = policy.selection_for(call, Memory()), policy.selection_for(last, Memory())
    assert torch.equal(kept(whole, call)[:, :, -1:], kept(one, last))


@obeying("future")
def test_keys_after_a_query_do_not_matter(case: Case) -> None:
    """Estimators that read the end of the prompt are exempt, and say so (`lookahead`)."""
    call = make_call(80)
    changed = replace(call, query=call.query.clone(), key=call.key.clone())
    changed.query[:, :, 50:] = 5.0
    changed.key[:, :, 50:] = -3.0
    a, b = mask_of(case.text, call), mask_of(case.text, changed)
    assert torch.equal(a[:, :, :50], b[:, :, :50])
    assert not parse(case.text).lookahead


@EACH
def test_what_looks_ahead_says_so(case: Case) -> None:
    assert parse(case.text).lookahead == ("future" in case.exceptions)


@EACH
def test_what_does_not_read_tensors_says_so(case: Case) -> None:
    call = make_call(80)
    other = replace(call, query=torch.randn_like(call.query), key=torch.randn_like(call.key))
    same = torch.equal(mask_of(case.text, call), mask_of(case.text, other))
    assert same != parse(case.text).reads_tensors


@obeying("repeated")
def test_grouped_queries_choose_as_with_repeated_keys(case: Case) -> None:
    call = make_call(80)
    repeated = replace(call, key=call.key.repeat_interleave(3, 1), value=call.value.repeat_interleave(3, 1))
    assert torch.equal(mask_of(case.text, call), mask_of(case.text, repeated))


@EACH
def test_heads_of_a_group_share_where_the_case_says_so(case: Case) -> None:
    call = make_call(80)
    mask = mask_of(case.text, call).unflatten(1, (call.kv_heads, call.group))
    alike = bool((mask == mask[:, :, :1]).all())
    assert alike == case.by_group


@EACH
def test_both_kernels_agree_under_every_policy(case: Case) -> None:
    call = make_call(150)
    selection = chosen(case.text, call)
    if selection.biased:
        with pytest.raises(ValueError, match="changes scores"):
            BLOCKED.attend(call, selection)
        return
    a, b = REFERENCE.attend(call, selection), BLOCKED.attend(call, selection)
    assert difference(a.output, b.output) < 1e-5
    assert difference(a.lse, b.lse) < 1e-5


@EACH
def test_the_density_is_the_share_of_kept_pairs(case: Case) -> None:
    call = make_call(80)
    mask = mask_of(case.text, call)
    expected = mask.sum((-1, -2)).double() / (80 * 81 / 2)
    assert torch.allclose(chosen(case.text, call).density(call), expected, rtol=1e-12)
