"""The numbers a head can be shown by: where they are stored, how they are drawn, what they mean.

Meanings are the schema's own sentences, so a tooltip and `docs/schema.md` cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparselens.storage import schema

DIFF_METRICS = (
    "write_error",
    "kept_mass",
    "kept_mass_nosink",
    "js",
    "top8_overlap",
    "out_cosine",
    "sink_change",
    "entropy_change",
)
SIGNED = ("sink_change", "entropy_change")
SHARES = ("kept_mass", "kept_mass_nosink", "top8_overlap", "out_cosine")
STATS = (
    "entropy",
    "entropy_norm",
    "sink_mass",
    "previous_mass",
    "local_mass",
    "distance",
    "density",
    "density_computed",
    "kept_mass",
    "kept_mass_nosink",
    "write_norm",
)


@dataclass(frozen=True)
class Metric:
    """A column of `diffs`: its scale kind (`seq` or `div`) and whether its scale ends at 1."""

    name: str
    meaning: str
    signed: bool
    share: bool


def metric(name: str) -> Metric:
    """The metric of that name; ValueError lists the metrics there are."""
    if name not in DIFF_METRICS:
        raise ValueError(f"no metric {name!r}; metrics are {', '.join(DIFF_METRICS)}")
    return Metric(name, meaning("diffs", name), name in SIGNED, name in SHARES)


def meaning(table: str, column: str) -> str:
    """What a column means, with its unit, as the schema says it."""
    found = schema.TABLES[table][column]
    return f"{found.meaning} ({found.unit})" if found.unit else found.meaning
