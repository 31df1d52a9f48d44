"""A pass taken up at a layer is the whole pass, a forced walk the forced text, a widened policy as wide as wanted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_session import small_session
from torch import Tensor

from sparselens.kernels.kernel import kernel
from sparselens.kernels.policy import Policy, parse
from sparselens.workbench.generation import walked
from sparselens.workbench.intervention import Rows, intervention
from sparselens.workbench.passage import recorded, resumed
from sparselens.workbench.session import decoder_layers
from sparselens.workbench.widen import density_of, widened

POLICY = "a_shape(sink=1,window=6)"


@pytest.fixture(scope="module")
def session() -> Any:
    return small_session()


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(10, 3000, (1, 24), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_a_pass_taken_up_at_a_layer_is_the_whole_pass(session: Any, ids: Tensor) -> None:
    layers = decoder_layers(session.model)
    cut = intervention("zero", [(1, 2)], Rows(), kernel("blocked"))
    with session.under(POLICY) as execution, recorded(layers, execution) as passage:
        session.model(input_ids=ids, use_cache=False)
    with session.under(POLICY, editors=[cut]):
        whole = session.model(input_ids=ids, use_cache=False).logits
    with session.under(POLICY, editors=[cut]) as execution, resumed(passage, 1, execution):
        taken_up = session.model(input_ids=ids, use_cache=False).logits
    assert execution.calls == execution.skipped == 1
    assert torch.equal(whole, taken_up)
    assert all("forward" not in layer.__dict__ for layer in layers)


class _Remembering(Policy):
    """Leaves something behind in every layer."""

    name = "remembering"

    def select(self, call: Any, memory: Any) -> Any:
        memory.set(call.layer, "seen", True)
        return parse(POLICY).select(call, memory)


@torch.no_grad()
def test_a_policy_that_remembers_runs_all_its_layers(session: Any, ids: Tensor) -> None:
    layers = decoder_layers(session.model)
    with session.under(_Remembering()) as execution, recorded(layers, execution) as passage:
        session.model(input_ids=ids, use_cache=False)
    with session.under(_Remembering()) as execution, resumed(passage, 1, execution):
        session.model(input_ids=ids, use_cache=False)
    assert execution.skipped == 0
    assert execution.calls == 2


def test_a_forced_walk_produces_the_forced_text_and_sees_it(session: Any, ids: Tensor) -> None:
    phases = []

    class Look:
        def want(self, call: Any) -> Any:
            if call.layer == 0:
                phases.append((call.phase, call.q_len, call.k_len))
            from sparselens.kernels.statistics import NOTHING

            return NOTHING

        def saw(self, *_: Any) -> None:
            pass

    with session.under("dense", observers=[Look()]):
        assert walked(session, ids, forced=[7, 8, 9]) == [7, 8, 9]
    assert phases == [("prefill", 24, 24), ("decode", 1, 25), ("decode", 1, 26)]
    free = session.generate(ids, max_new_tokens=4)
    with session.under("dense"):
        assert walked(session, ids, max_new_tokens=4) == free
        assert walked(session, ids, forced=free[:2], max_new_tokens=4) == free
        assert walked(session, ids, max_new_tokens=4, stop=[free[1]]) == free[: free.index(free[1]) + 1]


@pytest.mark.parametrize("text", ["a_shape(sink=1,window=4)", "oracle_topk(k=3)", "random(density=0.2)"])
def test_a_widened_policy_has_the_wanted_density(session: Any, text: str) -> None:
    prompts = session.prompts([{"token_ids": list(range(10, 110))}, {"token_ids": list(range(50, 150))}])
    policy = parse(text)
    wanted = 2 * density_of(session, policy, "reference", prompts)
    wider, density = widened(session, policy, "reference", prompts, wanted)
    assert density == pytest.approx(wanted, rel=0.05)  # a window of whole keys on 100 tokens
    assert density_of(session, wider, "reference", prompts) == pytest.approx(density, rel=1e-9)
    assert type(wider) is type(policy)


def test_density_is_counted_pair_by_pair(session: Any) -> None:
    prompts = session.prompts([{"token_ids": list(range(10, 40))}])
    kept = sum(min(row + 1, 4) + (row >= 4) for row in range(30))
    assert density_of(session, parse("a_shape(sink=1,window=4)"), "blocked", prompts) == kept / (30 * 31 / 2)
    assert density_of(session, parse("dense"), "blocked", prompts) == 1.0


def test_a_policy_without_a_budget_is_not_widened(session: Any) -> None:
    with pytest.raises(ValueError, match="says no budget"):
        widened(session, parse("dense"), "blocked", [], 0.5)
    assert parse("random(density=0.6)").wider(3.0) == parse("random(density=1.0)")
