"""MInference: each head has one of three templates, found once by a search; its indices are estimated per input."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar

import torch

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.plan import Plan, read_plan
from sparselens.kernels.policies.a_shape import AShape
from sparselens.kernels.policies.block_sparse import BlockSparse
from sparselens.kernels.policies.vertical_slash import VerticalSlash
from sparselens.kernels.policy_text import parse
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Mixture, Selection


@dataclass(frozen=True)
class MInference(Policy):
    """Keeps, in each head, what its template keeps: `a_shape`, `vertical_slash` or `block_sparse`.

    `plan`: the file of `sparselens calibrate minference`; heads that it does not list, and all heads without one, use
    `vertical_slash(vertical=1000,slash=6096)`, as in the authors' code. `ratio` multiplies the budgets of all
    templates, `tile` is that of the diagonals (see `vertical_slash`; 0 = token-exact).
    """

    plan: str = ""
    ratio: float = 1.0
    tile: int = 64
    phase: str = field(default="prefill", kw_only=True)

    name: ClassVar[str] = "minference"
    lookahead: ClassVar[bool] = True
    source: ClassVar[str] = "MInference, arXiv:2407.02490; microsoft/MInference fb56c91"
    short_input: ClassVar[str] = "none; the default keeps everything below about 6,100 tokens"
    card: ClassVar[str] = (
        "Prefill only. The authors' plans hold vertical_slash alone: before writing one they turn an A-shape into "
        "vertical_slash of the same numbers, and block-sparse into vertical_slash(1000,6096); calibrate "
        "minference(remap=true) does so too. Their search scores token-exact masks that force the last 30 diagonals; "
        "what runs loads whole tiles and forces 100. Their ratio scales columns and diagonals; here blocks as well. "
        "Budgets are numbers, not shares: a plan made on short prompts is sparser on long ones."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.ratio > 0, f"ratio is positive, not {self.ratio}")
        self.require(self.tile >= 0, f"tile is 0 or more, not {self.tile}")

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan, where one is given."""
        return (read_plan(self.plan, self.name),) if self.plan else ()

    def wider(self, factor: float) -> Policy:
        """Return the policy with `ratio` times `factor`."""
        return replace(self, ratio=self.ratio * factor)

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the mixture of the layer's templates, or the one that all its heads share."""
        owners: dict[Policy, list[int]] = {}
        for head in range(call.heads):
            owners.setdefault(self.template(call.layer, head), []).append(head)
        if len(owners) == 1:
            return next(iter(owners)).select(call, memory)
        return Mixture(
            [
                (
                    tuple(heads),
                    template.select(call, memory).of_heads(torch.tensor(heads, device=call.device)),
                )
                for template, heads in owners.items()
            ]
        )

    def template(self, layer: int, head: int) -> Policy:
        """Return what a head runs under; raises `ValueError` where the plan names something else than a template."""
        listed = self.plans[0].content.get("heads", {}) if self.plan else {}
        found = _template(str(listed.get(f"L{layer}H{head}", VerticalSlash())))
        return _scaled(found, self.ratio, self.tile)


@lru_cache(maxsize=256)
def _template(text: str) -> AShape | VerticalSlash | BlockSparse:
    policy = parse(text)
    if not isinstance(policy, (AShape, VerticalSlash, BlockSparse)):
        raise ValueError(f"minference: a template is a_shape, vertical_slash or block_sparse, not {text!r}")
    return policy


@lru_cache(maxsize=256)
def _scaled(template: AShape | VerticalSlash | BlockSparse, ratio: float, tile: int) -> Policy:
    """Return a template with its budgets times `ratio`, rounded down."""
    match template:
        case AShape():
            return replace(
                template, sink=int(template.sink * ratio), window=max(1, int(template.window * ratio))
            )
        case BlockSparse():
            return replace(template, k=max(1, int(template.k * ratio)))
    vertical, slash = int(template.vertical * ratio), int(template.slash * ratio)
    return replace(template, vertical=vertical, slash=slash, tile=tile)


POLICY = MInference
