"""Importance and residual states are those of the plain model, walked head by head and window by window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sparselens.analyses.measured import Measured
from sparselens.analyses.roles.ground import Ground
from sparselens.analyses.roles.importance import on_ablation
from sparselens.analyses.roles.labels import labels
from sparselens.analyses.roles.plan import Roles, planned
from sparselens.analyses.roles.state import on_states
from sparselens.workbench.progress import Progress
from sparselens.workbench.projection import output_linear
from sparselens.workbench.session import attention_layers, decoder_layers

CHOSEN = Roles(parts=("states", "importance"), windows=3, window=40, importance=3)


def ground_of(session: Any, chosen: Roles = CHOSEN, order: int = 1) -> Ground:
    plan = planned(session, chosen)
    plan = replace(plan, windows=replace(plan.windows, prompts=plan.windows.prompts[::order]))
    with Progress(0, 0, enabled=False) as bar:
        return Ground(session, chosen, plan, "blocked", bar)


def by_name(found: list[Measured]) -> dict[str, Measured]:
    return {each.metric: each for each in found}


@torch.no_grad()
def plain_loss(session: Any, ids: list[int], cut: tuple[int, int] | None = None) -> float:
    """The Hugging Face model's own loss of one window, one head's slice zeroed before the projection."""
    handle = None
    if cut is not None:

        def zeroed(_: Any, args: Any) -> Any:
            z = args[0].clone()
            z[..., cut[1] * session.head_dim : (cut[1] + 1) * session.head_dim] = 0
            return (z,)

        module = attention_layers(session.model)[cut[0]]
        handle = output_linear(module).register_forward_pre_hook(zeroed)
    tokens = torch.tensor([ids])
    loss = session.model(input_ids=tokens, labels=tokens, use_cache=False).loss
    if handle is not None:
        handle.remove()
    return float(loss)


def test_importance_is_the_plain_models_loss_without_the_head(small: Any) -> None:
    ground = ground_of(small)
    found = by_name(on_ablation(ground))["importance"]
    windows = [list(prompt.token_ids) for prompt in ground.plan.windows.prompts]
    for number in range(8):
        rises = [plain_loss(small, ids, divmod(number, 4)) - plain_loss(small, ids) for ids in windows]
        assert found.mean[number] == pytest.approx(np.mean(rises), abs=2e-5)
    assert (found.n, found.n_clusters) == (3, 3)
    assert (found.low <= found.mean + 1e-9).all()


def test_importance_does_not_depend_on_the_batch_or_its_order(small: Any) -> None:
    together = by_name(on_ablation(ground_of(small)))
    backwards = by_name(on_ablation(ground_of(small, order=-1)))
    alone = []
    for number in range(3):
        ground = ground_of(small)
        windows = replace(ground.plan.windows, prompts=ground.plan.windows.prompts[number : number + 1])
        ground.plan = replace(ground.plan, windows=windows)
        alone.append(by_name(on_ablation(ground)))
    for metric in ("importance", "importance_estimate"):
        assert together[metric].mean.tolist() == pytest.approx(backwards[metric].mean.tolist(), abs=1e-6)
        single = np.mean([each[metric].mean for each in alone], axis=0)
        assert together[metric].mean.tolist() == pytest.approx(single.tolist(), abs=1e-5)


def test_the_estimate_is_exact_for_a_head_that_hardly_writes(small: Any) -> None:
    """Zeroing is linear in what is zeroed once that is small: scale every head's values down."""
    from small_session import small_session

    session = small_session()
    with torch.no_grad():
        for layer in decoder_layers(session.model):
            layer.self_attn.o_proj.weight *= 2e-4  # type: ignore[union-attr, operator]
    found = by_name(on_ablation(ground_of(session)))
    exact, guessed = found["importance"].mean, found["importance_estimate"].mean
    assert guessed.tolist() == pytest.approx(exact.tolist(), abs=2e-6)  # what is left is of second order
    assert np.abs(exact).max() > 1e-4


def test_states_are_those_of_the_hidden_states(small: Any) -> None:
    ground = ground_of(small)
    found = by_name(on_states(ground))
    largest, ratio, peak = [], [], []
    for prompt in ground.plan.windows.prompts:
        with torch.no_grad():
            out = small.model(input_ids=torch.tensor([prompt.token_ids]), output_hidden_states=True)
        hidden = out.hidden_states[:2]  # the inputs of both layers
        largest.append([float(each.abs().max()) for each in hidden])
        ratio.append([float(each.abs().max() / each.abs().median()) for each in hidden])
        norms = [each[0].norm(dim=-1) for each in hidden]
        peak.append([float(norm[0] / norm[1:].mean()) for norm in norms])
    for metric, values in (("massive", largest), ("massive_ratio", ratio), ("residual_peak", peak)):
        assert found[metric].mean.tolist() == pytest.approx(np.mean(values, axis=0).tolist(), rel=1e-4), (
            metric
        )
        assert set(found[metric].columns(2)["head"]) == {None}
    assert len(found["value_drain"].mean) == 8


def test_a_planted_massive_activation_is_found(small: Any) -> None:
    from small_session import small_session

    session = small_session()
    first = planned(session, CHOSEN).windows.prompts
    with torch.no_grad():
        for prompt in first:
            session.model.get_input_embeddings().weight[prompt.token_ids[0], 5] = 5000.0
    found = by_name(on_states(ground_of(session)))
    assert found["massive"].mean.tolist() == pytest.approx([5000.0] * 2, rel=0.01)
    assert found["massive_dimension"].mean.tolist() == [5, 5]
    assert found["massive_first"].mean.tolist() == [1, 1]
    assert found["massive_ratio"].mean.min() > 1000


def test_dormant_heads_sleep_on_both_texts_active_dormant_ones_on_one() -> None:
    assert labels({"sink_mass": 0.9, "sink_mass_code": 0.85}) == ["dormant head"]
    assert labels({"sink_mass": 0.9, "sink_mass_code": 0.2}) == ["active–dormant head (dormant on prose)"]
    assert labels({"sink_mass": 0.1, "sink_mass_code": 0.6}) == ["active–dormant head (dormant on code)"]
    assert labels({"sink_mass": 0.7, "sink_mass_code": 0.6}) == []
    assert labels({"sink_mass": 0.9}) == []
    assert labels({"retrieval": 0.6}) == ["retrieval head (strong)"]
    assert labels({"retrieval": 0.1}) == []
