"""MInference's search finds the template that a head was made for, and its plan is what the policy runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_session import small_session

from sparselens.kernels.call import Allowed, AttentionCall
from sparselens.kernels.plan import Plan
from sparselens.kernels.policies.a_shape import AShape
from sparselens.kernels.policies.block_sparse import BlockSparse
from sparselens.kernels.policies.minference import MInference as Policy
from sparselens.kernels.policies.vertical_slash import VerticalSlash
from sparselens.kernels.policy import Memory, parse
from sparselens.workbench.calibration import calibration
from sparselens.workbench.calibrations import minference as module
from sparselens.workbench.calibrations.minference import Candidate, MInference, Scoring, candidates, searched

N = 96
SHORT = [
    AShape(2, 12),
    VerticalSlash(3, 10, 16, 1, 3, 1, 1, tile=0),
    BlockSparse(2, 8),
]


def call_of(targets: list[list[int]]) -> AttentionCall:
    """A call whose heads attend from query `q` to key `targets[head][q]` alone (weight above 0.99)."""
    key = torch.eye(N) * 40
    index = torch.arange(N)
    return AttentionCall(
        query=torch.stack([torch.eye(N)[target] for target in targets])[None] * 40,
        key=key.expand(1, len(targets), N, N),
        value=torch.zeros(1, len(targets), N, N),
        query_positions=index[None],
        key_positions=index[None],
        allowed=Allowed(index, index),
        scale=N**-0.5,
    )


def made_for() -> list[list[int]]:
    """Heads made for a window, a column, a diagonal, and blocks that are neither."""
    blocks = torch.randperm(12, generator=torch.Generator().manual_seed(3)).tolist()
    return [
        [max(0, q - 5) for q in range(N)],
        [min(40, q) for q in range(N)],
        [max(0, q - 50) for q in range(N)],
        [blocks[q // 8] % (q // 8) * 8 + q * 5 % 8 if q >= 8 else q for q in range(N)],
    ]


def scored(first: int, call: AttentionCall) -> Scoring:
    scoring = Scoring(SimpleNamespace(n_layers=1, n_heads=call.heads), SHORT, first)  # type: ignore[arg-type]
    scoring.saw(call, None, None)  # type: ignore[arg-type]
    return scoring


def test_heads_get_the_template_that_they_were_made_for() -> None:
    recall = scored(56, call_of(made_for())).recall[0]
    assert recall.argmax(-1).tolist() == [0, 1, 1, 2]
    assert all(float(recall[head, best]) > 0.99 for head, best in enumerate([0, 1, 1, 2]))
    assert float(recall[1, 0]) < 0.01  # a window does not see the column
    assert float(recall[3, :2].max()) < 0.9  # nor do stripes hold the blocks


def test_recall_and_density_are_means_over_the_scored_rows() -> None:
    """For the A-shape in loops: the share of weight and of pairs at k < 2 or q - k < 12, in rows from 30 on."""
    call = call_of([[q // 2 for q in range(N)]])
    found = scored(30, replace(call, query=call.query / 20))
    weights = torch.softmax(call.scores(0, N) / 20, -1)[0, 0].double()
    mass, pairs = 0.0, 0
    for q in range(30, N):
        kept = [k for k in range(q + 1) if k < 2 or q - k < 12]
        mass += sum(float(weights[q, k]) for k in kept)
        pairs += len(kept)
    assert float(found.recall[0, 0, 0]) == pytest.approx(mass / (N - 30), abs=1e-6)
    assert found.density[0] == pytest.approx(pairs / sum(range(31, N + 1)), rel=1e-5)


def test_candidates_are_the_papers_from_6144_tokens_on_and_shrink_below() -> None:
    scored = [str(each.scored) for each in candidates(6144)]
    assert scored[0] == "a_shape(sink=100,window=800)"
    assert [(each.scored.vertical, each.scored.slash) for each in candidates(30_000)[1:5]] == [  # type: ignore[attr-defined]
        (30, 800),
        (100, 750),
        (500, 700),
        (3500, 100),
    ]
    assert scored[:5] == [str(each.scored) for each in candidates(30_000)[:5]]
    assert str(candidates(30_000)[5].scored) == "block_sparse(k=117,block=32)"
    half = [each.scored for each in candidates(3072)]
    assert half[0] == AShape(50, 400)
    assert half[4] == VerticalSlash(1750, 50, 64, 15, 15, 1, 1, tile=0)
    assert half[5] == BlockSparse(12, 32)


def test_what_runs_forces_what_the_forward_pass_forces() -> None:
    runs = [each.runs for each in candidates(6144)]
    assert runs[1] == VerticalSlash(30, 800)
    assert runs[0] == AShape(100, 800)
    assert runs[5] == BlockSparse(24, 32)


def test_remapping_leaves_vertical_slash_alone() -> None:
    runs = [each.runs for each in candidates(8000, remap=True)]
    assert runs[0] == VerticalSlash(100, 800)
    assert runs[5] == VerticalSlash()
    assert all(isinstance(each, VerticalSlash) for each in runs)


@pytest.fixture(scope="module")
def found() -> tuple[Any, dict[str, Any], dict[str, Any], list[str]]:
    session, said = small_session(), []
    ids = torch.randint(3, 3000, (2, N), generator=torch.Generator().manual_seed(5)).tolist()
    content, data = searched(session, ids, [Candidate(each, each) for each in SHORT], said.append)
    return session, content, data, said


def test_every_head_has_its_choice_and_the_recall_of_every_candidate(
    found: tuple[Any, dict[str, Any], dict[str, Any], list[str]],
) -> None:
    _, content, data, said = found
    names = {f"L{layer}H{head}" for layer in range(2) for head in range(4)}
    assert set(content["heads"]) == set(content["recall"]) == set(content["choice"]) == names
    for name, recalls in content["recall"].items():
        assert max(recalls) == recalls[content["choice"][name]]
        assert content["heads"][name] == content["candidates"][content["choice"][name]]["runs"]
        assert all(0 < each <= 1 for each in recalls)
    assert data["tokens"] == [N, N]
    assert all(0 < each < 1 for each in data["density"])
    assert said[0] == f"prompt 1/2 · {N} tokens"


def test_the_policy_runs_what_the_plan_says(
    found: tuple[Any, dict[str, Any], dict[str, Any], list[str]], tmp_path: Path
) -> None:
    session, content, _, _ = found
    weights = session.provenance.weight_hash
    plan = Plan("minference", session.provenance.name, weights, 2, 4, 2, {}, content)
    file = plan.write(tmp_path / "plan.json")
    policy = Policy(plan=str(file), tile=0)
    for layer in range(2):
        for head in range(4):
            assert policy.template(layer, head) == parse(content["heads"][f"L{layer}H{head}"])
    with session.under(policy) as running, torch.no_grad():
        session.model(input_ids=torch.arange(3, 60)[None], use_cache=False)
    assert running.dense_calls == 0


def test_the_answer_is_not_part_of_what_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    session, seen = small_session(), []

    def watched(session: Any, prompts: Any, *_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        seen.extend(prompts)
        return {}, {}

    monkeypatch.setattr(module, "searched", watched)
    _, data = MInference(length=200, n=2).measure(session, lambda _: None)
    prompts = session.prompts("needles(length=200,n=2)")
    assert [tuple(ids) for ids in seen] == [
        prompt.token_ids[: prompt.spans["answer"][0]] for prompt in prompts
    ]
    assert data["prompts"] == [prompt.name for prompt in prompts]


def test_the_selection_of_a_scored_candidate_is_the_policys_own() -> None:
    call = call_of(made_for())
    scoring, memory = scored(0, call), Memory()
    kept = [int(policy.select(call, memory).kept(call, 0, N).expand(1, 4, N, N).sum()) for policy in SHORT]
    shares: list[float] = (torch.tensor(kept) / (4 * N * (N + 1) / 2)).tolist()
    assert scoring.density == pytest.approx(shares, rel=1e-5)


@pytest.mark.parametrize("text", ["minference(n=0)", "minference(length=0)"])
def test_bad_arguments_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="length and n are at least 1"):
        calibration(text)
