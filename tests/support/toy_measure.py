"""Asks a toy what its test knows the answer to: accuracy, attention at given keys, one layer under a policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import sparselens as sl
from sparselens.analyses.roles.watch import TargetWatch, Watch, watched
from sparselens.kernels.kernel import kernel
from sparselens.kernels.policy import Policy
from sparselens.kernels.selection import Everything
from sparselens.workbench.intervention import Rows, intervention


@sl.policy
def in_layer(call: Any, memory: Any, *, inner: str = "dense", layer: int = 0) -> Any:
    """What `inner` keeps in one layer, everything in the others."""
    return sl.parse_policy(inner).select(call, memory) if call.layer == layer else Everything()


@dataclass(eq=False)
class AskedWatch(TargetWatch):
    """A `TargetWatch` that is told the keys of each prompt: `asked[ids] [tokens, m]`, −1 = nothing asked."""

    asked: Mapping[tuple[int, ...], Tensor] = field(default_factory=dict)

    def begin(self, ids: Tensor) -> None:
        """Look up the prompt's keys."""
        self.layers, self.keys = {}, self.asked[tuple(ids.tolist())]


def prompts_of(session: Any, ids: Tensor) -> list[Any]:
    """Prompts of rows of token ids."""
    return list(session.prompts([{"token_ids": row} for row in ids.tolist()]))


def attention_at(
    session: Any, ids: Tensor, policy: Policy | str = "dense", **keys: Tensor
) -> dict[str, Tensor]:
    """Mean attention `[layers, heads]` to named keys `[n, tokens]` of each row (−1 = row not asked).

    `NAME_reachable` is the share of those keys that the policy keeps.
    """
    asked = {
        tuple(row.tolist()): torch.stack(found, -1) for row, *found in zip(ids, *keys.values(), strict=True)
    }
    names = (*keys, *(f"{name}_reachable" for name in keys))
    return means(session, ids, AskedWatch(names, asked=asked), policy)


def means(session: Any, ids: Tensor, watch: Watch, policy: Policy | str = "dense") -> dict[str, Tensor]:
    """What a watch of `roles` says, each of its numbers `[layers, heads]`, mean over sequences that have one."""
    found = [
        numbers for _, numbers, _ in watched(session, policy, "blocked", prompts_of(session, ids), watch)
    ]
    return dict(zip(watch.names, torch.stack(found).nanmean(0).unbind(-1), strict=True))


def predicted(
    session: Any, ids: Tensor, policy: Policy | str = "dense", ablate: Sequence[tuple[int, int]] = ()
) -> Tensor:
    """Log-probabilities `[n, tokens, vocabulary]` under a policy, with the (layer, head) pairs zero-ablated."""
    editors = [intervention("zero", list(ablate), Rows(), kernel("blocked"))] if ablate else []
    with torch.no_grad(), session.under(policy, editors=editors):
        return torch.log_softmax(session.model(input_ids=ids).logits, -1)


def accuracy(logp: Tensor, labels: Tensor) -> float:
    """Share of the asked rows whose label is the most probable token."""
    asked = labels >= 0
    return float((logp.argmax(-1) == labels)[asked].float().mean())


def loss(logp: Tensor, ids: Tensor, rows: Tensor) -> float:
    """Mean loss (nats) of the tokens after the rows `rows [n, tokens]` (bool; the last has no token after it)."""
    losses = -logp[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    return float(losses[rows[:, :-1]].mean())


@contextmanager
def zeroed(session: Any, layer: int, head: int) -> Iterator[None]:
    """Zero what one head hands to the output projection while the block lasts, by a plain hook."""
    attention = session.model.get_decoder().layers[layer].self_attn
    start = head * attention.head_dim

    def cut(_: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        edited = args[0].clone()
        edited[..., start : start + attention.head_dim] = 0
        return (edited,)

    handle = attention.o_proj.register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()
