"""Maps whose scores are known on paper, and TransformerLens' own detection patterns against our targets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformer_lens.head_detector import (
    compute_head_attention_similarity_score,
    get_duplicate_token_head_detection_pattern,
    get_induction_head_detection_pattern,
    get_previous_token_head_detection_pattern,
)

from sparselens.analyses.pattern_scores import TARGETS, entropy_share, mean_on_targets, targets
from sparselens.analyses.roles.labels import labels
from sparselens.kernels.call import Allowed, AttentionCall
from sparselens.kernels.statistics import Pools, Want, empty_statistics, reduce_rows

T = 64
PATTERNS = dict(
    zip(
        TARGETS,
        (
            get_previous_token_head_detection_pattern,
            get_duplicate_token_head_detection_pattern,
            get_induction_head_detection_pattern,
        ),
        strict=True,
    )
)


def reduced(weights: Tensor, names: set[str]) -> dict[str, Tensor]:
    """What a kernel would report of one map `[T, T]`: each statistic `[T]`."""
    index = torch.arange(T)
    tensors = torch.zeros(1, 1, T, 4)
    call = AttentionCall(tensors, tensors, tensors, index[None], index[None], Allowed(index, index), 1.0)
    want = Want(frozenset(names), local=64)
    statistics = empty_statistics(call, want)
    reduce_rows(statistics, weights[None, None].float(), call, 0, want, Pools.of(call, 8))
    return {name: value[0, 0] for name, value in statistics.items()}


def shifted() -> Tensor:
    """Each row attends to the row before, the first to itself."""
    weights = torch.zeros(T, T)
    weights[torch.arange(T), (torch.arange(T) - 1).clamp(min=0)] = 1
    return weights


def uniform() -> Tensor:
    """Each row attends to all keys that it sees alike."""
    return torch.tril(torch.ones(T, T)) / torch.arange(1, T + 1)[:, None]


def repeated_ids() -> Tensor:
    """Random ids, each at most twice, the second half in the order of the first."""
    half = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[: T // 2]
    return torch.cat([half, half])


@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_the_cells_of_transformer_lens_patterns(name: str) -> None:
    ids = repeated_ids()
    asked = targets(ids)[:, TARGETS.index(name)]
    cells = torch.zeros(T, T)
    cells[asked >= 0, asked[asked >= 0]] = 1
    assert torch.equal(cells, PATTERNS[name](ids[None]).float())


def test_a_score_over_rows_that_have_a_target_is_not_one_over_all_attention() -> None:
    """A previous-token map scores 1 here; TransformerLens' `mul` counts the first row's own attention too."""
    ids = torch.arange(T)
    asked = targets(ids)[:, :1]
    at = shifted().gather(1, asked.clamp(min=0))[None]
    assert mean_on_targets(at, asked).item() == 1
    pattern = PATTERNS["previous_token"](ids[None])
    share = {
        left_out: compute_head_attention_similarity_score(
            shifted(), pattern, exclude_bos=False, exclude_current_token=left_out, error_measure="mul"
        )
        for left_out in (False, True)
    }
    assert share[False] == pytest.approx((T - 1) / T)
    assert share[True] == pytest.approx(1)


@pytest.mark.parametrize("name", TARGETS)
def test_the_uniform_map_scores_what_its_rows_share_out(name: str) -> None:
    ids = repeated_ids()
    asked = targets(ids)[:, TARGETS.index(name)][:, None]
    rows = (asked[:, 0] >= 0).nonzero()[:, 0]
    at = uniform().gather(1, asked.clamp(min=0))[None]
    expected = sum(1 / (int(row) + 1) for row in rows) / len(rows)
    assert mean_on_targets(at, asked).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("sink", [0.0, 0.5, 0.9, 1.0])
def test_a_head_that_rests_on_the_first_key_is_dormant(sink: float) -> None:
    weights = (1 - sink) * torch.eye(T)
    weights[:, 0] += sink
    mass = float(reduced(weights, {"sink_mass"})["sink_mass"][1:].mean())
    assert mass == pytest.approx(sink)
    assert labels({"sink_mass": mass, "sink_mass_code": mass}) == (["dormant head"] if sink > 0.8 else [])
    found = labels({"sink_mass": mass, "sink_mass_code": 0.0})
    assert found == (["active–dormant head (dormant on prose)"] if sink > 0.3 else [])


@pytest.mark.parametrize("window", [1, 2, 8, 40])
def test_entropy_is_a_share_of_what_the_kept_keys_allow(window: int) -> None:
    """Uniform over a window: entropy ln(kept), share 1, distance (kept − 1) ÷ 2 in every row."""
    index = torch.arange(T)
    keep = torch.tril(torch.ones(T, T)) * (index[:, None] - index < window)
    kept = keep.sum(-1)
    found = reduced(keep / kept[:, None], {"entropy", "distance"})
    assert torch.allclose(found["entropy"], kept.log(), atol=1e-5)
    assert torch.allclose(found["distance"], (kept - 1) / 2, atol=1e-5)
    share = entropy_share(found["entropy"], kept)
    assert torch.equal(torch.isnan(share), kept <= 1)
    assert torch.allclose(share[kept > 1], torch.ones(int((kept > 1).sum())), atol=1e-5)
