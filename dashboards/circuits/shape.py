"""Where the nodes of a model's graph stand, and which head a receiver is of."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sparselens.dashboards.query import Source

SHAPE = """
SELECT (SELECT max(layer) + 1 FROM circuit_nodes WHERE circuit = $a) AS layers,
       (SELECT max(head) + 1 FROM circuit_nodes WHERE circuit = $a) AS heads,
       (SELECT max(TRY_CAST(regexp_extract(receiver, '^L[0-9]+G([0-9]+)[.]', 1) AS INTEGER)) + 1
        FROM circuit_edges WHERE circuit = $a) AS kv_heads
"""
_NODE = re.compile(r"L(\d{1,4})H(\d{1,4})|M(\d{1,4})")
_READER = re.compile(r"L(\d{1,4})(H|G)(\d{1,4})\.([qkv])|M(\d{1,4})\.in")


@dataclass(frozen=True)
class Shape:
    """Layers, query heads and key-value heads of the model that a circuit is of."""

    layers: int
    heads: int
    kv_heads: int

    @classmethod
    def of(cls, source: Source, circuit: str) -> Shape:
        """The shape, from the circuit's nodes and edges; of key-value heads the least number that fits."""
        found = source.first(SHAPE, a=circuit)
        heads = found["heads"] or 1
        seen = min(found["kv_heads"] or 1, heads)
        fits = next(count for count in range(seen, heads + 1) if heads % count == 0)
        return cls(found["layers"] or 1, heads, fits)

    @property
    def group(self) -> int:
        """Query heads that share a key-value head."""
        return self.heads // self.kv_heads

    def node(self, name: str) -> tuple[float, float] | None:
        """Where a sender or `logits` stands: layers down, heads across, MLPs right; None for other names."""
        if name in ("input", "logits"):
            return (self.heads - 1) / 2, -1.0 if name == "input" else float(self.layers)
        found = _NODE.fullmatch(name)
        if found is None:
            return None
        layer, head, mlp = found.groups()
        return (self.heads + 0.2, int(mlp) + 0.25) if mlp is not None else (float(head), float(layer))

    def reader(self, name: str) -> tuple[float, float] | None:
        """Where a receiver stands: queries at their head, keys and values above the heads that share them."""
        if name == "logits":
            return self.node(name)
        found = _READER.fullmatch(name)
        if found is None:
            return None
        layer, kind, place, part, mlp = found.groups()
        if mlp is not None:
            return self.node(f"M{mlp}")
        if kind == "H":
            return float(place), float(layer)
        middle = int(place) * self.group + (self.group - 1) / 2
        return middle + (-0.14 if part == "k" else 0.14), int(layer) - 0.3

    def head_of(self, receiver: str) -> tuple[int, int, int] | None:
        """Layer and head that a receiver is of, the first of those that share it, and how many share it."""
        found = _READER.fullmatch(receiver)
        if found is None or found[1] is None:
            return None
        layer, kind, place = int(found[1]), found[2], int(found[3])
        return (layer, place, 1) if kind == "H" else (layer, place * self.group, self.group)

    def reads(self, node: str) -> list[str]:
        """The receivers of a node."""
        found = _NODE.fullmatch(node)
        if found is None:
            return [node]
        layer, head, mlp = found.groups()
        if mlp is not None:
            return [f"M{mlp}.in"]
        group = int(head) // self.group
        return [f"L{layer}H{head}.q", f"L{layer}G{group}.k", f"L{layer}G{group}.v"]
