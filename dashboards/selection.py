"""The one selection that drives every panel, and its spelling as a URL query string.

Reload, back and a shared link work because a page holds no other state: what is not in `Selection` is
not remembered. Unset fields are filled from the trace by `choice.resolve`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

MOST_HEADS = 600  # that a link lists
MOST_RUNS = 8  # that are compared with one base at once
_HEAD = re.compile(r"L(\d{1,3})H(\d{1,3})", re.ASCII)
SIDES = ("a", "b", "diff")
CHOICES: dict[str, tuple[str, ...]] = {
    "over": ("prompt", "all"),
    "shade": ("diff", "a", "b"),
    "way": ("reads", "readers"),
    "side": ("a", "b", "diff"),
    "weigh": ("attention", "value"),
    "scale": ("sqrt", "linear", "log"),
    "hide": ("0", "1"),
    "whose": SIDES,
    "x_whose": SIDES,
    "y_whose": SIDES,
    "order": ("high", "low"),
    "strip": ("received", "norm"),
    "among": ("any", "layer"),
    "show": ("table", "chart", "heads"),
    "needle": ("nll", "answered"),
    "outcome": ("change", "answer_nll", "whole_answer", "first_token"),
    "near": ("all", "node"),
}
SHOWS_SETTLED = (
    *("a", "b", "prompt", "scope", "rows", "metric", "layer", "head"),
    *("score", "whose", "x", "x_whose", "y", "y_whose", "study"),
    *("sae", "feature"),
)


@dataclass(frozen=True)
class Window:
    """A half-open range of positions, `start <= pos < stop`; written `12-40` in the URL."""

    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.start}-{self.stop}"

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read `12-40`; raises ValueError for anything else and for an empty range."""
        start, dash, stop = text.partition("-")
        if not (dash and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
            raise ValueError(f"{text!r} is not a range like 12-40")
        return cls(int(start), int(stop))

    def clip(self, length: int) -> Window:
        """The part of this range inside `[0, length)`, never empty for a positive length."""
        start = min(self.start, max(length - 1, 0))
        return Window(start, max(min(self.stop, length), start + 1))

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Box:
    """A rectangle of a scatter plot, `low <= value <= high` on both axes; written `0.1~0.5~-2~3` in the URL."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def __str__(self) -> str:
        return "~".join(f"{value:.6g}" for value in (self.x_low, self.x_high, self.y_low, self.y_high))

    @classmethod
    def parse(cls, text: str) -> Box:
        """Read `0.1~0.5~-2~3`; raises ValueError for anything else and for an empty rectangle."""
        try:
            found = cls(*(float(part) for part in text.split("~")))
        except (TypeError, ValueError):
            raise ValueError(f"{text[:40]!r} is not a rectangle like 0.1~0.5~-2~3") from None
        if not (-inf < found.x_low <= found.x_high < inf and -inf < found.y_low <= found.y_high < inf):
            raise ValueError(f"{text[:40]!r} is an empty rectangle")
        return found


@dataclass(frozen=True)
class Heads:
    """Heads by layer and number, each once, in the order given; written `L18H6,L20H1` in the URL."""

    places: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return ",".join(self.names)

    @property
    def names(self) -> list[str]:
        """`L18H6` and so on."""
        return [f"L{layer}H{head}" for layer, head in self.places]

    @classmethod
    def parse(cls, text: str) -> Heads:
        """Read `L18H6,L20H1`; raises ValueError for anything else and for more heads than a URL carries."""
        words = text.split(",")
        found = [_HEAD.fullmatch(word.strip()) for word in words[: MOST_HEADS + 1]]
        if len(words) > MOST_HEADS:
            raise ValueError(f"it lists {len(words)} heads, a link carries up to {MOST_HEADS}")
        if not all(found):
            raise ValueError(f"{words[found.index(None)][:20]!r} is not a head like L18H6")
        return cls(tuple(dict.fromkeys((int(each[1]), int(each[2])) for each in found if each)))


@dataclass(frozen=True)
class Selection:
    """What is looked at. `None` or an empty text means "not chosen yet"."""

    a: str = ""
    b: str = ""
    prompt: str = ""
    over: str = "prompt"
    scope: str = ""
    rows: str = ""
    metric: str = ""
    layer: int | None = None
    head: int | None = None
    q: int | None = None
    brush: Window | None = None
    runs: str = ""
    picked: Heads | None = None
    qs: Window | None = None
    ks: Window | None = None
    shade: str = "diff"
    way: str = "reads"
    side: str = "b"
    weigh: str = "attention"
    hide: str = "0"
    scale: str = "sqrt"
    sql: str = ""
    show: str = "table"
    cx: str = ""
    cy: str = ""
    score: str = ""
    whose: str = ""
    x: str = ""
    x_whose: str = ""
    y: str = ""
    y_whose: str = ""
    top: int = 20
    order: str = "high"
    box: Box | None = None
    only: Heads | None = None
    strip: str = "received"
    among: str = "any"
    needle: str = "nll"
    study: str = ""
    outcome: str = "change"
    sae: str = ""
    feature: int | None = None
    task: str = ""
    circuit_a: str = ""
    circuit_b: str = ""
    size: int = 100
    near: str = "all"
    node: str = ""
    edge: str = ""

    @classmethod
    def parse(cls, search: str) -> tuple[Selection, list[str]]:
        """Read a URL query string; returns the selection and one line for each value that was ignored."""
        values: dict[str, Any] = {}
        complaints: list[str] = []
        for name, text in parse_qsl(search.removeprefix("?"), keep_blank_values=False):
            if name not in READERS:
                complaints.append(f"The link names {name[:40]!r}; known are {', '.join(READERS)}.")
                continue
            try:
                values[name] = READERS[name](text)
            except ValueError as problem:
                complaints.append(f"The link's {name} was ignored: {problem}.")
        return cls(**values), complaints

    @classmethod
    def of(cls, part: dict[str, str | None]) -> Selection:
        """The selection of a panel's part store: fields in their URL spelling, absent ones None."""
        return cls(**{name: READERS[name](text) for name, text in part.items() if text is not None})

    def spelled(self) -> dict[str, str | None]:
        """Every field in its URL spelling, None where nothing is chosen."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: None if value in (None, "") else str(value) for name, value in values.items()}

    def search(self, **changes: Any) -> str:
        """The query string, with changes; defaults are left out, what settles the view is always there."""
        chosen = replace(self, **changes)
        pairs = [
            (field.name, str(getattr(chosen, field.name)))
            for field in fields(chosen)
            if getattr(chosen, field.name) not in (None, "")
            and (field.name in SHOWS_SETTLED or getattr(chosen, field.name) != field.default)
        ]
        return "?" + urlencode(pairs, quote_via=quote, safe=":,()") if pairs else ""

    @property
    def head_name(self) -> str:
        """`L18H6`, or an empty text before a head is chosen."""
        return "" if self.layer is None or self.head is None else f"L{self.layer}H{self.head}"


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(f"{text[:20]!r} is not a whole number")
    return int(text)


def _runs(text: str) -> str:
    """Read `ID,ID,…`, each id once; raises ValueError for more than are compared at once."""
    found = list(dict.fromkeys(word for word in text.split(",") if word))
    if len(found) > MOST_RUNS:
        raise ValueError(f"it lists {len(found)} runs, up to {MOST_RUNS} are compared at once")
    return ",".join(found)


def _one_of(name: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in CHOICES[name]:
            raise ValueError(f"{text[:20]!r} is none of {', '.join(CHOICES[name])}")
        return text

    return read


_PARSERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("layer", "head", "q", "top", "feature", "size"), _number),
    **dict.fromkeys(("qs", "ks", "brush"), Window.parse),
    "runs": _runs,
    "picked": Heads.parse,
    "box": Box.parse,
    "only": Heads.parse,
    **{name: _one_of(name) for name in CHOICES},
}
READERS: dict[str, Callable[[str], Any]] = {
    field.name: _PARSERS.get(field.name, str) for field in fields(Selection)
}
