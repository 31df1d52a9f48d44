"""StreamingLLM: sink tokens and a window in a cache whose positions are numbered anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.rope import Rope
from sparselens.kernels.selection import Band, Biased, Selection


@dataclass(frozen=True)
class StreamingLLM(Policy):
    """Keeps a cache of the first `sink` tokens and the last `recent`, the query among them, at cache positions.

    A text is streamed token by token: before each, what no longer fits leaves for good. The query stands at its place
    in the cache, at most `sink + recent - 1`, and each key at its own. Distances within the window stay as they are;
    those to the sinks do not: their scores are of the query turned to its place in the cache.
    """

    sink: int = 4
    recent: int = 512

    name: ClassVar[str] = "streaming_llm"
    budget: ClassVar[tuple[str, ...]] = ("recent",)
    source: ClassVar[str] = "StreamingLLM, arXiv:2309.17453; mit-han-lab/streaming-llm 2e50426"
    card: ClassVar[str] = (
        "Changes the scores of the sinks, so it needs `--kernel reference` and a model with rotary positions, and no"
        " padding. Masking the same keys at their own positions is a_shape; the two agree while the text fits the"
        " cache. The authors' scripts use recent 2000. A prompt is streamed as if token by token, which is how they"
        " measure perplexity; phase=decode prefills it densely. Evictions are in the table `removals`."
    )
    short_input: ClassVar[str] = "dense, at original positions, up to sink + recent tokens"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.sink >= 0, f"sink is 0 or more, not {self.sink}")
        self.require(self.recent >= 1, f"recent is 1 or more, not {self.recent}")

    @property
    def reads_tensors(self) -> bool:
        """Positions alone decide which keys are kept."""
        return False

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the band, with what the new positions add to the scores of the sinks.

        Raises `ValueError` on a model without rotary positions, and on a padded batch.
        """
        band = Band(self.sink, self.recent)
        if call.batch == 1:
            self._log(call, memory)
        if self.sink == 0 or int(call.query_positions.max()) < self.sink + self.recent:
            return band
        rope = call.rope
        if rope is None:
            raise ValueError(
                f"{self.name}: it numbers rotary positions anew, and this call has none (a model without them, or a"
                " padded batch); a_shape keeps the same keys at their own positions"
            )
        columns = torch.arange(self.sink, device=call.device)
        return Biased(band, columns, self._added(call, rope))

    def _added(self, call: AttentionCall, rope: Rope) -> Tensor:
        """Return new − old scores of the sinks: `[batch, heads, q_len, sink]`; 0 where a row does not see one."""
        position = call.query_positions[0]
        placed = position.clamp(max=self.sink + self.recent - 1)
        sinks = (call.key_positions[0] < self.sink).nonzero()[:, 0]
        moved = rope.turn(rope.undo(call.query, position), placed).where(
            (placed < position)[:, None], call.query
        )
        old, new = (_scores(call, query, sinks) for query in (call.query, moved))
        added = (new - old).masked_fill(~call.allowed.rows(0, call.q_len)[..., sinks], 0.0)
        whole = added.new_zeros(*added.shape[:3], self.sink)
        whole[..., call.key_positions[0, sinks]] = added
        return whole

    def _log(self, call: AttentionCall, memory: Memory) -> None:
        """Log what had to leave before this call's last token came, and was not logged."""
        last = int(call.query_positions[0, -1])
        gone = max(self.sink, last - self.recent + 1)
        before = memory.get(call.layer, "streaming_llm.gone", self.sink)
        step = max(call.step - 1, 0)
        for head in range(call.kv_heads):
            memory.remove(call.layer, head, step, torch.arange(before, gone, device=call.device))
        memory.set(call.layer, "streaming_llm.gone", gone)


def _scores(call: AttentionCall, query: Tensor, keys: Tensor) -> Tensor:
    """Return the scores of some keys, softcap included: `[batch, heads, q_len, n]`."""
    key = call.key[:, :, keys].to(call.accumulate).repeat_interleave(call.group, 1)
    scores = query.to(call.accumulate) @ key.transpose(-1, -2) * call.scale
    return scores if call.softcap is None else call.softcap * torch.tanh(scores / call.softcap)


POLICY = StreamingLLM
