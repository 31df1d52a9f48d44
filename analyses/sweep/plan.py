"""What a sweep runs: methods, densities, prompts, and the references beside every point."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparselens.kernels.policies.oracle_of import OracleOf
from sparselens.kernels.policies.random_of import RandomOf
from sparselens.kernels.policy import Policy
from sparselens.kernels.policy import parse as parse_policy
from sparselens.workbench.decode import decode_option, decoded_tokens, require_decode
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import Session

CLOSE = 0.02
"""A point is at its density when the measured one is within this share of it."""


@dataclass(frozen=True)
class Sweep:
    """Every policy of `policies` at every density of `densities`, on `prompts`, against `base`.

    Beside each: the oracles and `seeds` random selections of the same shape. These run through the model on
    `references` of the prompts, spread evenly over the set (0: on all); recalled mass needs no run of their own and
    is measured on all. `decode`: how many last tokens come one at a time (a number or `answer`; empty: none).
    `sources` is filled in: a hash of the policies' code, so that a changed policy is measured anew.
    """

    policies: tuple[str, ...] = ("a_shape(sink=4,window=64)",)
    densities: tuple[float, ...] = (0.1, 0.2, 0.4)
    prompts: str = "needles(length=512,n=16)"
    seeds: int = 3
    references: int = 0
    decode: str = ""
    base: str = "dense"
    kernel: str = "blocked"
    sources: str = ""

    def __post_init__(self) -> None:
        parsed = sorted((parse_policy(text) for text in self.policies), key=str)
        object.__setattr__(self, "policies", tuple(str(policy) for policy in parsed))
        object.__setattr__(self, "base", str(parse_policy(self.base)))
        object.__setattr__(self, "densities", tuple(sorted(set(self.densities))))
        code = "".join(policy.hash for policy in parsed)
        object.__setattr__(self, "sources", hashlib.sha256(code.encode()).hexdigest()[:12])
        if len(set(self.policies)) < len(self.policies):
            raise ValueError("sweep: a policy is given twice")
        for density in self.densities:
            if not 0 < density <= 1:
                raise ValueError(f"sweep: densities lie in (0, 1], not {density}")
        if self.seeds < 1 or self.references < 0:
            raise ValueError("sweep: seeds is 1 or more, references is 0 (all prompts) or more")
        decode_option(self.decode or None)

    @property
    def decoding(self) -> int | str | None:
        """`decode` as a capture takes it."""
        return decode_option(self.decode or None)


@dataclass(frozen=True)
class Point:
    """One method at one density: `policy` is the method with the budget that was found, `reached` if within 2 %.

    `density` is the mean over prompts of what was measured end to end, NaN before that.
    """

    method: str
    target: float
    policy: Policy
    density: float = float("nan")

    @property
    def reached(self) -> bool:
        """Whether the measured density is within 2 % of the target."""
        return abs(self.density - self.target) <= CLOSE * self.target


ORACLE, ORACLE_MASS, RANDOM = "oracle", "oracle_mass", "random"


def references_of(policy: Policy, seeds: int) -> dict[str, Policy]:
    """Return the policies that run beside a point, by role: `oracle`, `random_0` and so on."""
    return {ORACLE: OracleOf(policy), **{f"{RANDOM}_{seed}": RandomOf(policy, seed) for seed in range(seeds)}}


def read_prompts(session: Session, chosen: Sweep) -> list[Prompt]:
    """Return the prompts; `ValueError` where one cannot be decoded so, or a policy would never act."""
    prompts = session.prompts(chosen.prompts)
    policies = [parse_policy(text) for text in chosen.policies]
    require_decode(policies, prompts, chosen.decoding)
    return prompts


def spread(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """Return `n` of the prompts (all: 0), evenly over their clusters, in their order."""
    if not n or n >= len(prompts):
        return list(prompts)
    turns: dict[str, int] = {}
    order = []
    for place, prompt in enumerate(prompts):
        turn = turns.get(cluster(prompt), 0)
        turns[cluster(prompt)] = turn + 1
        order.append((turn, place))
    if len(turns) == len(prompts):  # every prompt is a cluster of its own
        return [prompts[number * len(prompts) // n] for number in range(n)]
    return [prompts[place] for place in sorted(place for _, place in sorted(order)[:n])]


def cluster(prompt: Prompt) -> str:
    """Return what a prompt is drawn with: its group, itself where it has none."""
    return prompt.group or prompt.id


def acting_rows(policy: Policy, prompt: Prompt, decode: int | str | None) -> Tensor:
    """Return the rows in which a policy may drop keys: bool `[tokens]`."""
    tokens = len(prompt)
    decoded = torch.arange(tokens) >= tokens - decoded_tokens(prompt, decode)
    if decode is None:
        return ~decoded
    if policy.decodes_only:
        return decoded
    return ~decoded if policy.phase == "prefill" else torch.ones(tokens, dtype=torch.bool)


def phase_of(policy: Policy, decode: int | str | None) -> str:
    """Return the phase that a point is compared in: without `decode` every row is prefill."""
    if decode is None:
        return "prefill"
    return "decode" if policy.decodes_only else policy.phase
