"""An intervention changes the heads and rows it names, as its name says, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_session import small_session
from torch import Tensor

from sparselens.kernels.kernel import kernel
from sparselens.kernels.policy import parse
from sparselens.workbench.intervention import ABLATIONS, RESTORES, Rows, Snapshot, intervention
from sparselens.workbench.projection import output_linear
from sparselens.workbench.session import attention_layers

POLICY = "a_shape(sink=1,window=4)"
HEADS = [(0, 1), (1, 0), (1, 3)]
EVERY = [(layer, head) for layer in range(2) for head in range(4)]
KERNEL = kernel("reference")
BOTH = Rows()


@pytest.fixture(scope="module")
def session() -> Any:
    return small_session()


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(10, 3000, (1, 24), generator=torch.Generator().manual_seed(3))


def logits(session: Any, ids: Tensor, policy: str, *editors: Any, observers: Any = ()) -> Tensor:
    with torch.no_grad(), session.under(policy, kernel=KERNEL, observers=observers, editors=editors):
        found: Tensor = session.model(input_ids=ids, use_cache=False).logits
    return found


def base_of(session: Any, ids: Tensor, policy: str = "dense") -> Snapshot:
    base = Snapshot(parse(policy), frozenset({0, 1}))
    logits(session, ids, policy, observers=[base])
    return base


def test_run_dense_is_the_policy_that_keeps_these_heads_dense(session: Any, ids: Tensor) -> None:
    ours = logits(session, ids, POLICY, intervention("run_dense", HEADS, BOTH, KERNEL))
    theirs = logits(session, ids, f"per_head(default={POLICY},full=[L0H1,L1H0,L1H3])")
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, logits(session, ids, POLICY), atol=1e-2)


def test_every_head_given_its_base_output_gives_the_base(session: Any, ids: Tensor) -> None:
    base = base_of(session, ids)
    ours = logits(session, ids, POLICY, intervention("patch_z", EVERY, BOTH, KERNEL, base=base))
    assert torch.allclose(ours, logits(session, ids, "dense"), atol=1e-5)


def test_every_head_given_its_base_pattern_gives_the_base(session: Any, ids: Tensor) -> None:
    for policy in ("dense", "oracle_topk(k=3)"):
        base = base_of(session, ids, policy)
        ours = logits(session, ids, POLICY, intervention("patch_pattern", EVERY, BOTH, KERNEL, base=base))
        assert torch.allclose(ours, logits(session, ids, policy), atol=1e-5)


def test_a_patched_pattern_weighs_current_values(session: Any, ids: Tensor) -> None:
    """In layer 1 under a policy, against the formula: the base's softmax times the values that arrive."""
    base, seen = base_of(session, ids), Snapshot(parse(POLICY), frozenset({1}))
    values: list[Tensor] = []
    outputs: list[Tensor] = []

    class Look:
        def edit(self, call: Any, selection: Any, output: Tensor) -> Tensor:
            del selection
            if call.layer == 1:
                values.append(call.value)
                outputs.append(output)
            return output

    logits(
        session,
        ids,
        POLICY,
        intervention("patch_pattern", [(1, 3)], BOTH, KERNEL, base=base),
        Look(),
        observers=[seen],
    )
    then = base.layers[1]
    scores = (then.query[0, 3] @ then.key[0, 1].T) * session.head_dim**-0.5
    pattern = torch.softmax(scores.masked_fill(torch.ones(24, 24).triu(1).bool(), -torch.inf), -1)
    assert torch.allclose(outputs[0][0, 3], pattern @ values[0][0, 1], atol=1e-5)
    assert torch.equal(outputs[0][0, :3], seen.layers[1].output[0, :3])


def test_zero_ablation_is_a_zeroed_slice_before_the_projection(session: Any, ids: Tensor) -> None:
    ours = logits(session, ids, "dense", intervention("zero", HEADS, BOTH, KERNEL))
    handles = []
    for layer, module in enumerate(attention_layers(session.model)):

        def cut(_: Any, args: Any, layer: int = layer) -> Any:
            z = args[0].clone()
            for at, head in HEADS:
                if at == layer:
                    z[..., head * session.head_dim : (head + 1) * session.head_dim] = 0
            return (z,)

        handles.append(output_linear(module).register_forward_pre_hook(cut))
    theirs = logits(session, ids, "dense")
    for handle in handles:
        handle.remove()
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("kind", ["uniform", "mean"])
def test_an_ablated_head_writes_an_average(session: Any, ids: Tensor, kind: str) -> None:
    means = torch.randn(2, 4, session.head_dim, generator=torch.Generator().manual_seed(0))
    found: list[tuple[Tensor, Tensor]] = []

    class Look:
        def edit(self, call: Any, selection: Any, output: Tensor) -> Tensor:
            del selection
            if call.layer == 0:
                found.append((call.value[0, 0], output[0, 1]))
            return output

    logits(session, ids, POLICY, intervention(kind, [(0, 1)], BOTH, KERNEL, means=means), Look())
    values, output = found[0]
    for row in range(24):
        expected = values[: row + 1].mean(0) if kind == "uniform" else means[0, 1]
        assert torch.allclose(output[row], expected, atol=1e-6)


@pytest.mark.parametrize("kind", [*RESTORES, *ABLATIONS])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_only_the_rows_of_the_phase_are_edited(session: Any, ids: Tensor, kind: str, phase: str) -> None:
    base, means = base_of(session, ids), torch.ones(2, 4, session.head_dim)
    rows = Rows(phase, answer=20)
    outputs: list[Tensor] = []

    class Look:
        def edit(self, call: Any, selection: Any, output: Tensor) -> Tensor:
            del call, selection
            outputs.append(output)
            return output

    edit = intervention(kind, [(0, 2)], rows, KERNEL, base=base, means=means)
    logits(session, ids, POLICY, Look(), edit, Look())
    changed = (outputs[0][0] != outputs[1][0]).any(-1)
    late = torch.arange(24) >= 20
    assert not changed[[0, 1, 3]].any()
    assert not changed[2, late if phase == "prefill" else ~late].any()
    assert changed[2, ~late if phase == "prefill" else late].any()


def test_the_answers_first_row_belongs_to_the_prompt(session: Any) -> None:
    (prompt,) = session.prompts([{"text": "the river and the", "answer": " river"}])
    rows = Rows.of(prompt, "decode")
    assert rows.answer == len(prompt) - len(prompt.answer_ids) == prompt.spans["answer"][0]
    with pytest.raises(ValueError, match="has no answer"):
        Rows.of(session.prompts(["the river"])[0], "decode")
    assert Rows.of(session.prompts(["the river"])[0], "both").phase == "both"


def test_nothing_is_left_behind(session: Any, ids: Tensor) -> None:
    before = session.model(input_ids=ids).logits
    logits(session, ids, POLICY, intervention("zero", EVERY, BOTH, KERNEL))
    with pytest.raises(ValueError, match="there is no L1H9"):
        logits(session, ids, "dense", intervention("zero", [(1, 9)], BOTH, KERNEL))
    assert torch.equal(before, session.model(input_ids=ids).logits)


def test_gradients_pass_through_an_intervention(session: Any, ids: Tensor) -> None:
    embedded = session.model.get_input_embeddings()(ids).detach().requires_grad_()
    for editor in (None, intervention("zero", EVERY, BOTH, KERNEL)):
        with session.under("dense", editors=[] if editor is None else [editor]):
            session.model(inputs_embeds=embedded, use_cache=False).logits[0, -1].sum().backward()
        moved = embedded.grad.norm(dim=-1)[0] > 0
        assert moved[-1]
        assert moved[:-1].all() if editor is None else not moved[:-1].any()
        embedded.grad = None


def test_unknown_kinds_and_missing_parts_are_refused(session: Any) -> None:
    with pytest.raises(ValueError, match="interventions are run_dense"):
        intervention("cut", HEADS, BOTH, KERNEL)
    with pytest.raises(ValueError, match="takes from a base run"):
        intervention("patch_z", HEADS, BOTH, KERNEL)
    with pytest.raises(ValueError, match="needs the means"):
        intervention("mean", HEADS, BOTH, KERNEL)
    with pytest.raises(ValueError, match="phase is one of"):
        replace(BOTH, phase="late")
