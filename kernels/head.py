"""Names of heads: `L18H6` is head 6 of layer 18, both from 0."""

from __future__ import annotations

import re
from collections.abc import Iterable

_HEAD = re.compile(r"L(\d+)H(\d+)")

Head = tuple[int, int]
"""A layer and a query head of it, from 0."""


def parse_head(name: str) -> Head:
    """Return the layer and head that a name such as `L18H6` means; `ValueError` on anything else."""
    match = _HEAD.fullmatch(name)
    if match is None:
        raise ValueError(f"heads are written L18H6, not {name!r}")
    return int(match[1]), int(match[2])


def head_name(head: Head) -> str:
    """Return the name of a head."""
    return f"L{head[0]}H{head[1]}"


def by_layer(heads: Iterable[Head]) -> dict[int, tuple[int, ...]]:
    """Return the heads of each layer, ascending."""
    found: dict[int, set[int]] = {}
    for layer, head in heads:
        found.setdefault(layer, set()).add(head)
    return {layer: tuple(sorted(found[layer])) for layer in sorted(found)}
