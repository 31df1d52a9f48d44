"""What the laws of a policy are tested with: each family of policies lists its cases in a `cases_FAMILY.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policy import Memory, parse
from sparselens.kernels.selection import Selection
from sparselens.kernels.walk import walked

LAWS = ("padded", "generous", "nested", "decode", "future", "repeated")


@dataclass(frozen=True)
class Case:
    """One policy on a toy call: 80 tokens, 6 query and 2 key-value heads of 16, and what holds for it.

    `text`: the call string, sparse on 80 tokens. `generous`: one that keeps everything there. `wider`: one with a
    larger budget, which must keep a superset and more. `row_local`: decoding one token keeps what the last row of the
    prefill keeps. `by_group`: all heads of a group keep the same. `exceptions`: laws (of `LAWS`) that do not hold,
    with the reason in a few words; docs/policies.md says the same. `real`: a call that is sparse on 512 tokens of text.
    """

    text: str
    generous: str | None = None
    wider: str | None = None
    row_local: bool = False
    by_group: bool = False
    real: str | None = None
    exceptions: Mapping[str, str] = field(default_factory=dict)

    def obeys(self, law: str) -> bool:
        """Whether a law is about this case, and the case does not name it as an exception.

        `generous` and `nested` are about policies with a budget, `decode` about those that decide row by row,
        `repeated` about those whose choice does not take the group together.
        """
        about = {
            "generous": self.generous is not None,
            "nested": self.wider is not None,
            "decode": self.row_local,
            "repeated": not (self.by_group and parse(self.text).reads_tensors),
        }
        return about.get(law, True) and law not in self.exceptions


def cases() -> list[Case]:
    """Return the cases of all families."""
    found = []
    for path in sorted(Path(__file__).parent.glob("cases_*.py")):
        found += import_module(f".{path.stem}", __package__).CASES
    return found


def chosen(text: str, call: AttentionCall) -> Selection:
    """What a policy keeps of a call; a policy that acts on decode alone decodes the second half, token by token.

    Of a padded batch each sequence is decoded by itself; `mask_of` puts them together.
    """
    policy = parse(text)
    if policy.phase == "decode" and call.phase == "prefill":
        return walked(policy, call, Memory(), max(1, call.q_len // 2))
    return policy.selection_for(call, Memory())


def kept(selection: Selection, call: AttentionCall) -> Tensor:
    """The mask, bool `[batch, heads, q_len, k_len]`."""
    return selection.kept(call, 0, call.q_len).expand(call.batch, call.heads, -1, -1)


def mask_of(text: str, call: AttentionCall) -> Tensor:
    """The mask of a policy on a call, bool `[batch, heads, q_len, k_len]`; padded rows are empty."""
    if parse(text).phase != "decode" or call.phase == "decode":
        return kept(chosen(text, call), call)
    whole = torch.zeros(call.batch, call.heads, call.q_len, call.k_len, dtype=torch.bool)
    for row, queries, keys, one in call.sequences():
        whole[row, :, queries[:, None], keys] = kept(chosen(text, one), one)[0]
    return whole
