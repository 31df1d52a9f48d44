"""Double Sparsity's channels are those whose products are largest on the calibration's own tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.statistics import NOTHING
from sparselens.workbench.calibration import calibration
from sparselens.workbench.calibrations.double_sparsity import DoubleSparsity


class Taken:
    """Queries and keys of every layer, as they are."""

    def __init__(self) -> None:
        self.layers: dict[int, list[AttentionCall]] = {}

    def want(self, call: AttentionCall) -> Any:
        return NOTHING

    def saw(self, call: AttentionCall, selection: Any, attended: Any) -> None:
        self.layers.setdefault(call.layer, []).append(call)


@pytest.mark.parametrize("statistic", ["qk", "q", "k"])
def test_channels_are_ranked_by_their_mean_over_all_tokens(small: Any, statistic: str) -> None:
    prompts = "prose(length=60,n=2)"
    plan = DoubleSparsity(prompts=prompts, statistic=statistic).plan(small)
    taken = Taken()
    for prompt in small.prompts(prompts):
        with torch.no_grad(), small.under("dense", observers=[taken]):
            small.model(input_ids=torch.tensor([prompt.token_ids]))
    for layer, ranked in enumerate(plan.content["channels"]):
        for head in range(4):
            total = torch.zeros(8, dtype=torch.float64)
            for call in taken.layers[layer]:
                query, key = call.query[0, head].double(), call.key[0, head // 2].double()
                for token in range(call.q_len):
                    parts = {"qk": query[token] * key[token], "q": query[token], "k": key[token]}
                    total += parts[statistic].abs()
            assert sorted(ranked[head]) == list(range(8))
            found = total[ranked[head]]
            assert (found.diff() <= 1e-9 * found[0]).all()


def test_the_plan_runs_the_policy_and_says_how_it_was_made(small: Any, tmp_path: Path) -> None:
    made = calibration('double_sparsity(prompts="prose(length=40,n=1)")').plan(small)
    path = made.write(tmp_path / "plan.json")
    assert made.data["tokens"] == 40
    assert made.data["arguments"] == {"prompts": "prose(length=40,n=1)", "statistic": "qk"}
    policy = f'double_sparsity(plan="{path}",heavy=5,group_factor=2,dense_layers=0)'
    runs = small.capture(
        "prose(length=60,n=1)", policy, tmp_path / "t", decode=20, verify=True, progress=False
    )
    assert str(runs[1].verdict) == "verified 3/3"
    density = runs[1].sql(
        "SELECT avg(density) FROM head_stats WHERE rows = 'affected' AND pattern = 'executed'"
    )
    assert 0 < density.rows[0][0] < 0.2


def test_another_statistic_is_refused() -> None:
    with pytest.raises(ValueError, match="qk, q, k"):
        calibration("double_sparsity(statistic=v)")
