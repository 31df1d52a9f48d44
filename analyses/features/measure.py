"""The features of one prompt in two runs: what is active, what wrote it, and what differs. Numbers of one prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.analyses.features.source import Attention, Reader, Watch
from sparselens.kernels.kernel import Kernel
from sparselens.kernels.policy import Policy
from sparselens.workbench.probe import span_rows
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.sae import Sae
from sparselens.workbench.session import Session

WORSE = 1.25
"""A token is compared while the SAE's error in B is at most so many times its error in A."""
_PAIRS = 256


@dataclass(frozen=True)
class Ask:
    """What is kept of a prompt: the `top` features a token, of the best `sourced` of them the `keys` largest parts."""

    top: int = 32
    sourced: int = 2
    keys: int = 8


@dataclass(frozen=True, eq=False)
class Encoded:
    """One run of a prompt at an SAE's site.

    `vectors` `[tokens, width]`, `codes` `[tokens, features]`, `error` ‖x − x̂‖ `[tokens]`, the layer's `attention`.
    """

    vectors: Tensor
    codes: Tensor
    error: Tensor
    attention: Attention

    @staticmethod
    @torch.no_grad()
    def of(
        session: Session, sae: Sae, prompt: Prompt, policy: Policy, kernel: Kernel, decode: int | None = None
    ) -> Encoded:
        """Run a prompt under a policy and encode every token at the SAE's site."""
        watch, found = Watch(sae.site.layer), []
        ids = torch.tensor([prompt.token_ids], device=session.device)
        with (
            session.under(policy, kernel=kernel, observers=[watch], decode=decode),
            sae.site.edited(session, lambda vectors: found.append(vectors[0].float())),
        ):
            session.model.get_decoder()(input_ids=ids, use_cache=False)
        codes = sae.encode(found[0])
        error = torch.linalg.vector_norm(found[0] - sae.decode(codes), dim=-1)
        return Encoded(found[0], codes, error, watch.attention)

    def lost(self, other: Encoded, reader: Reader) -> Tensor:
        """Return the part of every pre-activation that comes from keys which `other` drops: `[tokens, features]`."""
        call, parts = self.attention.call, []
        value = call.value[0].float().repeat_interleave(call.group, 0)
        for start, stop in call.row_blocks():
            rows = torch.arange(start, stop)
            gone = self.attention.pattern(rows) * other.attention.dropped(rows)
            parts.append(torch.einsum("hrs,hsd,hdf->rf", gone, value, reader.weights))
        return torch.cat(parts)


def token_numbers(one: Encoded, ask: Ask) -> dict[str, Any]:
    """Return what is stored of each token: arrays of `feature_tokens`, and of `features` (`top_…`)."""
    tokens = len(one.codes)
    best = one.codes.topk(min(ask.top, one.codes.shape[1]), -1)
    there = best.values > 0
    total = one.codes.sum(-1)
    return {
        "n_active": (one.codes > 0).sum(-1),
        "activation_sum": total,
        "unstored_sum": (total - (best.values * there).sum(-1)).clamp(min=0),
        "norm": torch.linalg.vector_norm(one.vectors, dim=-1),
        "error": one.error,
        "top_pos": torch.arange(tokens)[:, None].expand_as(best.indices)[there],
        "top_feature": best.indices[there],
        "top_activation": best.values[there],
    }


def source_numbers(one: Encoded, other: Encoded | None, reader: Reader, ask: Ask) -> dict[str, Any]:
    """Return the largest parts of each token's best features: arrays of `feature_sources`.

    `dropped` marks keys that `other` drops; None: the run itself is not compared.
    """
    best = one.codes.topk(min(ask.sourced, one.codes.shape[1]), -1)
    place = (best.values > 0).nonzero()
    rows, features = place[:, 0], best.indices[place[:, 0], place[:, 1]]
    found: dict[str, list[Tensor]] = {
        name: [] for name in ("pos", "feature", "head", "k_pos", "value", "dropped", "pre", "unstored")
    }
    for at in range(0, len(rows), _PAIRS):
        row, feature = rows[at : at + _PAIRS], features[at : at + _PAIRS]
        parts = reader.by_source(one.attention, row, feature)
        gone = (
            torch.zeros_like(parts, dtype=torch.bool)
            if other is None
            else other.attention.dropped(row).transpose(0, 1)
        )
        largest = parts.abs().flatten(1).topk(min(ask.keys, parts[0].numel()), -1).indices
        value = parts.flatten(1).gather(1, largest)
        tokens = parts.shape[-1]
        shape = largest.shape
        whole = parts.flatten(1).sum(1)
        columns = {
            "pos": row[:, None].expand(shape),
            "feature": feature[:, None].expand(shape),
            "head": largest // tokens,
            "k_pos": largest % tokens,
            "value": value,
            "dropped": gone.flatten(1).gather(1, largest),
            "pre": (whole + reader.bias[feature])[:, None].expand(shape),
            "unstored": (whole - value.sum(1))[:, None].expand(shape),
        }
        for name, column in columns.items():
            found[name].append(column[value != 0])
    return {name: torch.cat(columns) if columns else torch.zeros(0) for name, columns in found.items()}


def row_sets(prompt: Prompt, base: Encoded, run: Encoded) -> dict[str, Tensor]:
    """Return the rows that are compared, by name: bool `[tokens]` of `all`, `affected` and `span:NAME`.

    `affected` are the rows in which some head of the SAE's layer drops a key that the base keeps. The first token is
    in none: no policy can change it, and SAEs are not trained on it.
    """
    tokens = len(base.codes)
    every = torch.arange(tokens) > 0
    dropped = torch.cat(
        [run.attention.dropped(rows).any(0).any(-1) for rows in torch.split(torch.arange(tokens), 256)]
    )
    sets = {"all": every, "affected": every & dropped}
    for name in prompt.spans:
        start, stop = span_rows(prompt, name)
        sets[f"span:{name}"] = every & (torch.arange(tokens) >= start) & (torch.arange(tokens) < stop)
    return {name: rows for name, rows in sets.items() if rows.any()}


def compared(base: Encoded, run: Encoded) -> Tensor:
    """Return the tokens on which features are compared: bool `[tokens]`, by the SAE's error relative to ‖x‖."""
    before, after = relative_error(base), relative_error(run)
    fair: Tensor = after <= WORSE * before
    return fair


def relative_error(one: Encoded) -> Tensor:
    """Return ‖x − x̂‖ ÷ ‖x‖ of every token: `[tokens]`."""
    norm: Tensor = torch.linalg.vector_norm(one.vectors, dim=-1)
    return one.error / norm.clamp(min=torch.finfo(norm.dtype).tiny)


def difference(base: Encoded, run: Encoded, rows: Tensor) -> dict[str, float]:
    """Return the numbers of `feature_diffs` over some rows bool `[tokens]`; NaN where no token is compared."""
    both = rows & compared(base, run)
    a, b = base.codes[both], run.codes[both]
    active_a, active_b = a > 0, b > 0
    either = (active_a | active_b).sum(-1)
    jaccard = torch.where(either > 0, (active_a & active_b).sum(-1) / either.clamp(min=1), 1.0)
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1)
    cosine = torch.where(either > 0, cosine, 1.0)
    return {
        "n_rows": int(rows.sum()),
        "n_compared": int(both.sum()),
        "jaccard": float(jaccard.mean()),
        "cosine": float(cosine.mean()),
        "l0_a": float(active_a.sum(-1).float().mean()),
        "l0_b": float(active_b.sum(-1).float().mean()),
        "error_a": float(relative_error(base)[rows].mean()),
        "error_b": float(relative_error(run)[rows].mean()),
    }


def changes(base: Encoded, run: Encoded, rows: Tensor, lost: Tensor | None) -> dict[str, Any]:
    """Return what became of each feature over the compared rows: arrays `[features]` of `feature_changes`.

    `lost` as `Encoded.lost` gives it, None where it is not known.
    """
    both = rows & compared(base, run)
    a, b = base.codes[both], run.codes[both]
    active_a, active_b = a > 0, b > 0
    found = {
        "n_a": active_a.sum(0),
        "n_b": active_b.sum(0),
        "n_both": (active_a & active_b).sum(0),
        "sum_a": a.sum(0),
        "sum_b": b.sum(0),
        "dropped": torch.full((a.shape[1],), float("nan"))
        if lost is None
        else (lost[both] * active_a).sum(0),
    }
    return {"n_compared": np.full(a.shape[1], int(both.sum()))} | {
        key: value.numpy() for key, value in found.items()
    }


def prompt_numbers(
    base: Encoded, run: Encoded, prompt: Prompt, sae: Sae, session: Session, ask: Ask
) -> dict[str, Any]:
    """Return everything about one prompt as arrays by name.

    `a_…` and `b_…` are the token numbers of base and run, `a_source_…` and `b_source_…` the parts (none for an SAE on
    the residual stream); `diff|ROWS|…` and `change|ROWS|…` the comparison over each set of rows.
    """
    reader = Reader.of(sae, session) if sae.site.kind in ("hook_z", "hook_attn_out") else None
    found: dict[str, Any] = {}
    for side, one, other in (("a", base, run), ("b", run, None)):
        found |= {f"{side}_{name}": value for name, value in token_numbers(one, ask).items()}
        if reader is not None:
            parts = source_numbers(one, other, reader, ask)
            found |= {f"{side}_source_{name}": value for name, value in parts.items()}
    lost = None if reader is None else base.lost(run, reader)
    for name, rows in row_sets(prompt, base, run).items():
        found |= {f"diff|{name}|{key}": value for key, value in difference(base, run, rows).items()}
        found |= {f"change|{name}|{key}": value for key, value in changes(base, run, rows, lost).items()}
    return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in found.items()}
