"""MInference's search: which template recalls the most of each head's attention on a prompt with a needle.

arXiv:2407.02490 and the authors' code (microsoft/MInference, fb56c91; `search_pattern`). Candidates: an A-shape, four
vertical-slash budgets and a block-sparse one. A candidate's score is the share of the true attention that it keeps, a
mean over rows; the best wins. The authors take one key-value retrieval prompt of about 30,000 tokens, all rows from
2,500 on, and no account of what a candidate costs: their widest one keeps four times the keys of the narrowest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.policies.a_shape import AShape
from sparselens.kernels.policies.block_sparse import BlockSparse
from sparselens.kernels.policies.vertical_slash import VerticalSlash
from sparselens.kernels.policy import Memory, Policy
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.workbench.calibration import Calibration, Say
from sparselens.workbench.session import Session

FULL = 6144  # tokens from which on the paper's numbers are taken as they are; all of them are sparse there
STRIPES = ((30, 800), (100, 750), (500, 700), (3500, 100))
FIRST_ROW = 2500


@dataclass(frozen=True)
class Candidate:
    """What is `scored`, token-exact, and what `runs` in a head that chooses it."""

    scored: Policy
    runs: Policy

    def to_json(self) -> dict[str, str]:
        """Return both as call strings."""
        return {"scored": str(self.scored), "runs": str(self.runs)}


def candidates(length: int, remap: bool = False) -> list[Candidate]:
    """Return the paper's candidates for prompts of `length` tokens: below `FULL` all numbers shrink in proportion.

    A vertical-slash candidate is scored as in the authors' search, with 30 diagonals forced, and runs as in their
    forward pass, with 100. Block-sparse keeps an eighth of the blocks of 32 in both. `remap`: what runs is always
    vertical-slash, of the A-shape's numbers or (1000, 6096) for blocks, as in the authors' plans.
    """
    scale = min(1.0, length / FULL)

    def sized(number: int) -> int:
        return max(1, round(number * scale))

    def stripes(vertical: int, slash: int) -> VerticalSlash:
        return VerticalSlash(
            sized(vertical), sized(slash), 64, sized(30), sized(100), sized(30), min_slash=sized(50)
        )

    shape = AShape(sized(100), sized(800))
    made = [Candidate(shape, stripes(100, 800) if remap else shape)]
    for vertical, slash in STRIPES:
        scored = VerticalSlash(sized(vertical), sized(slash), 64, sized(30), sized(30), 1, 1, tile=0)
        made.append(Candidate(scored, stripes(vertical, slash)))
    blocks = BlockSparse(max(1, -(-length // 32) // 8), 32)
    return [*made, Candidate(blocks, stripes(1000, 6096) if remap else blocks)]


class Scoring:
    """An observer that sums, per layer and head, what each candidate keeps of the attention in rows from `first` on.

    `recalled` float64 `[layers, heads, candidates]` is mass, `kept` int64 likewise pairs, `rows` and `allowed` what
    they are shares of.
    """

    def __init__(self, session: Session, policies: Sequence[Policy], first: int) -> None:
        self.policies, self.first = policies, first
        shape = (session.n_layers, session.n_heads, len(policies))
        self.recalled = torch.zeros(shape, dtype=torch.float64)
        self.kept = torch.zeros(shape, dtype=torch.int64)
        self.rows, self.allowed = 0, 0

    def want(self, call: AttentionCall) -> Want:
        """Return nothing: the kernel need not reduce anything."""
        del call
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Add one layer of one prompt."""
        del selection, attended
        chosen = [policy.select(call, Memory()) for policy in self.policies]
        for start in range(self.first, call.q_len, call.row_step):
            self._add(call, chosen, start, min(start + call.row_step, call.q_len))

    def _add(self, call: AttentionCall, chosen: list[Selection], start: int, stop: int) -> None:
        weights = torch.softmax(call.scores(start, stop), -1)[0]
        if call.layer == 0:
            self.rows += stop - start
            self.allowed += int(call.allowed.rows(start, stop).sum())
        for place, each in enumerate(chosen):
            kept = each.kept(call, start, stop)[0]
            self.recalled[call.layer, :, place] += (weights * kept).sum((-1, -2)).cpu().double()
            self.kept[call.layer, :, place] += kept.sum((-1, -2)).cpu()

    @property
    def recall(self) -> Tensor:
        """The mean recalled share over rows: float64 `[layers, heads, candidates]`."""
        return self.recalled / self.rows

    @property
    def density(self) -> list[float]:
        """The share of allowed pairs that each candidate keeps in the scored rows, a mean over heads."""
        return [_short(each) for each in self.kept.double().mean((0, 1)) / self.allowed]


@dataclass(frozen=True)
class MInference(Calibration):
    """Score the candidates on `n` prompts of `needles(length=…)` without their answers; `remap` as in `candidates`."""

    length: int = 2048
    n: int = 4
    seed: int = 0
    remap: bool = False

    method: ClassVar[str] = "minference"
    summary: ClassVar[str] = (
        "the template that recalls most of each head's attention on prompts with a needle"
    )

    def __post_init__(self) -> None:
        if self.n < 1 or self.length < 1:
            raise ValueError("minference: length and n are at least 1")

    def measure(self, session: Session, say: Say) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return each head's choice and the recall of every candidate; 20 s a prompt on one thread by default."""
        source = f"needles(length={self.length},n={self.n},seed={self.seed})"
        prompts = session.prompts(source)
        asked = [prompt.token_ids[: prompt.spans["answer"][0]] for prompt in prompts]
        content, data = searched(session, asked, candidates(self.length, self.remap), say)
        return content, {"prompt_set": source, "prompts": [prompt.name for prompt in prompts], **data}


def searched(
    session: Session, prompts: Sequence[Sequence[int]], found: Sequence[Candidate], say: Say
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the best candidate of each head over the prompts (token ids); the first of equals.

    Rows are scored from 2,500 on, for prompts shorter than `FULL` in proportion.
    """
    longest = max(len(ids) for ids in prompts)
    first = round(FIRST_ROW * min(1.0, longest / FULL))
    scoring = Scoring(session, [each.scored for each in found], first)
    decoder: Any = session.model.get_decoder()
    with torch.no_grad(), session.under("dense", observers=[scoring]):
        for number, ids in enumerate(prompts):
            decoder(input_ids=torch.tensor([list(ids)], device=session.device), use_cache=False)
            say(f"prompt {number + 1}/{len(prompts)} · {len(ids)} tokens")
    best = scoring.recall.argmax(-1)
    names = [(layer, head) for layer in range(session.n_layers) for head in range(session.n_heads)]
    for place, count in Counter(best.flatten().tolist()).most_common():
        say(f"{count} heads · {found[place].runs}")
    content = {
        "candidates": [each.to_json() for each in found],
        "heads": {f"L{layer}H{head}": str(found[int(best[layer, head])].runs) for layer, head in names},
        "choice": {f"L{layer}H{head}": int(best[layer, head]) for layer, head in names},
        "recall": {
            f"L{layer}H{head}": [_short(each) for each in scoring.recall[layer, head]]
            for layer, head in names
        },
    }
    return content, {"tokens": [len(ids) for ids in prompts], "first_row": first, "density": scoring.density}


def _short(value: Tensor) -> float:
    """Return a number to six digits."""
    return float(f"{float(value):.6g}")


CALIBRATION = MInference
