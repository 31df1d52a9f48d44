"""A selection that also changes the scores of a few keys: `Biased`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection_type import Selection, TileMap


@dataclass(frozen=True, eq=False)
class Biased(Selection):
    """What `kept` keeps, with `bias` added to the scores of the keys at `columns`, after the model's softcap.

    `columns` int64 `[n]`, absolute positions; `bias` `[batch or 1, heads or 1, q_len, n]`. Fits calls of the same
    shape. Kernels that cannot change scores refuse it (`Selection.biased`).
    """

    kept_keys: Selection
    columns: Tensor
    bias: Tensor
    kind = "biased"

    @property
    def biased(self) -> bool:
        """True: it changes scores."""
        return True

    def unbiased(self) -> Selection:
        """Return the same keys with their scores as they are."""
        return self.kept_keys

    def bias_rows(self, call: AttentionCall, start: int, stop: int) -> Tensor:
        """Return what is added to the scores of queries `start:stop`, as `Selection.bias_rows`."""
        return spread(self.bias[:, :, start:stop], self.columns, call)

    def rows(self, call: AttentionCall, start: int, stop: int) -> Tensor:
        """Return what is kept, as `Selection.rows`."""
        return self.kept_keys.rows(call, start, stop)

    def counts(self, call: AttentionCall) -> Tensor:
        """Return how many keys each query keeps, as `Selection.counts`."""
        return self.kept_keys.counts(call)

    def tiles(self, call: AttentionCall, block: int) -> TileMap:
        """Return the touched and the full tiles, as `Selection.tiles`."""
        return self.kept_keys.tiles(call, block)

    def told_apart(self, heads: int) -> int:
        """Return how many heads the keys or the bias tell apart."""
        return max(self.kept_keys.told_apart(heads), self.bias.shape[1])

    def sequence(self, row: int, queries: Tensor, keys: Tensor) -> Selection:
        """Return the part of one sequence, as `Selection.sequence`."""
        bias = self.bias if self.bias.shape[0] == 1 else self.bias[row : row + 1]
        return Biased(self.kept_keys.sequence(row, queries, keys), self.columns, bias[:, :, queries])

    def of_heads(self, heads: Tensor) -> Selection:
        """Return the part of some heads, as `Selection.of_heads`."""
        bias = self.bias if self.bias.shape[1] == 1 else self.bias[:, heads]
        return Biased(self.kept_keys.of_heads(heads), self.columns, bias)


def spread(bias: Tensor, columns: Tensor, call: AttentionCall) -> Tensor:
    """Return `bias` `[batch, heads, rows, n]` of the keys at `columns` over all keys, 0 elsewhere: `[…, k_len]`."""
    at = call.key_positions[0, :, None] == columns
    return bias.to(call.accumulate) @ at.T.to(call.accumulate)


def stacked_bias(selections: list[Selection], call: AttentionCall) -> Biased | None:
    """Return the bias of one-row selections of growing calls as one over `call`'s last rows; None where there is none.

    Of the result only `columns` and `bias` count: `bias` `[1, heads, rows, n]`, `n` the columns of all.
    """
    parts = [part for part in selections if isinstance(part, Biased)]
    if len(parts) < sum(part.biased for part in selections):
        raise ValueError(
            "of decoded tokens' selections only `Biased` itself may change scores, not a mixture of it"
        )
    if not parts:
        return None
    listed = sorted({column for part in parts for column in part.columns.tolist()})
    columns = torch.tensor(listed, device=call.device)
    heads = max(part.bias.shape[1] for part in parts)
    rows = torch.zeros(1, heads, len(selections), len(columns), dtype=call.accumulate, device=call.device)
    for row, part in enumerate(selections):
        if isinstance(part, Biased):
            rows[:, :, row, torch.searchsorted(columns, part.columns)] = part.bias[:, :, 0].to(rows.dtype)
    return Biased(parts[0].kept_keys, columns, rows)
