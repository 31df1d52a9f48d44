"""What goes into a bundle, asked of the trace: numbers of every head, texts, run cards, the heads that get a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sparselens.dashboards.choice import Settled
from sparselens.dashboards.compare.change import change
from sparselens.dashboards.compare.grid import grid_figure
from sparselens.dashboards.compare.grid_panel import holding_zero
from sparselens.dashboards.compare.loss import HEADLINE, RUN, TEXT, TEXT_RANGE, text_figure
from sparselens.dashboards.export.asked import HEAD, listed
from sparselens.dashboards.export.caption import PROMPT, over_caption, run_of
from sparselens.dashboards.heads import finder
from sparselens.dashboards.metric import DIFF_METRICS, SIGNED, meaning
from sparselens.dashboards.query import Source, SourceError, records
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.span import SPANS
from sparselens.dashboards.verdict import verdict, verified

ALL = "all"
Made = TypeVar("Made")
FACTS = (
    *(
        "model",
        "model_revision",
        "quantisation",
        "policy",
        "phase",
        "kernel",
        "dtype",
        "device",
        "seed",
        "prompt_set",
    ),
    *("n_prompts", "n_tokens", "created_at", "seconds", "status", "run_id", "weight_hash", "tokenizer_hash"),
    *("template_hash", "policy_hash", "packages", "command"),
)


@dataclass(frozen=True)
class Numbers:
    """The numbers of every head over all prompts, or over one: `frame` as of Compare's grid, None where there are none.

    `place` names it in the page's data; `caption` says what the numbers are over, or why there are none.
    """

    place: str
    label: str
    settled: Settled
    frame: Any
    caption: str
    unsure: frozenset[tuple[int, int]] = frozenset()

    def grid(self, metric: str, roles: dict[tuple[int, int], str]) -> dict[str, Any]:
        """The grid of a metric as plain data."""
        return grid_figure(
            self.frame,
            metric,
            self.settled.shape,
            self.settled.group,
            roles,
            self.unsure if metric == "write_error" else (),
        )

    def values(self, metric: str) -> list[float | None]:
        """The numbers of a metric, layer 0 first, to six digits."""
        return _digits(self.grid(metric, {})["values"])

    def plain(self, metrics: Sequence[str]) -> dict[str, Any]:
        """Place, caption, numbers and the ends of their scales, by metric, for the page's script."""
        grids = {name: self.grid(name, {}) for name in metrics}
        return {
            "place": self.place,
            "caption": self.caption,
            "values": {name: _digits(drawn["values"]) for name, drawn in grids.items()},
            "ends": {name: (drawn["low"], drawn["high"]) for name, drawn in grids.items()},
        }


def _digits(numbers: list[float | None]) -> list[float | None]:
    return [None if value is None else float(f"{value:.6g}") for value in numbers]


@dataclass(frozen=True)
class Text:
    """One prompt: its tokens and losses as the pages draw them; `place` numbers it in the names of files."""

    place: int
    selection: Selection
    name: str
    n_tokens: int
    drawn: dict[str, Any]
    spans: list[dict[str, Any]]


def attempt(make: Callable[[], Made]) -> tuple[Made | None, str]:
    """What `make` returns, or None and why the trace could not answer."""
    try:
        return make(), ""
    except SourceError as problem:
        return None, str(problem)


def over_all(source: Source, settled: Settled) -> Numbers:
    """The numbers over all prompts that both runs have."""
    return _numbers(
        source, replace(settled, selection=replace(settled.selection, over=ALL)), ALL, "All prompts"
    )


def over_prompt(source: Source, settled: Settled, prompt: str, place: int) -> Numbers:
    """The numbers over one prompt."""
    selection = replace(settled.selection, over="prompt", prompt=prompt)
    name = source.first(PROMPT, prompt=prompt).get("name") or prompt
    return _numbers(source, replace(settled, selection=selection), str(place), str(name))


def _numbers(source: Source, settled: Settled, place: str, label: str) -> Numbers:
    selection = settled.selection
    found, why = attempt(lambda: change(source, selection))
    if found is None or found.frame.empty:
        why = (
            f"No numbers of scope {selection.scope} over rows {selection.rows} are stored."
            if place != ALL or not why
            else why
        )
        return Numbers(place, label, settled, None, why)
    rows = records(found.frame[["n_prompts", "n_rows"]])
    prompts, n_rows = (max(row[name] or 0 for row in rows) for name in ("n_prompts", "n_rows"))
    unsure, _ = attempt(lambda: holding_zero(source, replace(selection, metric="write_error")))
    caption = over_caption(selection, prompts, n_rows)
    return Numbers(place, label, settled, found.frame, caption, frozenset(unsure or ()))


def metrics_of(numbers: Sequence[Numbers]) -> list[dict[str, Any]]:
    """The metrics that have a number anywhere (else the first), with meaning, and whether they can be negative."""
    frames = [each.frame for each in numbers if each.frame is not None]
    there = [name for name in DIFF_METRICS if any(frame[name].notna().any() for frame in frames)]
    return [
        {"name": name, "meaning": meaning("diffs", name), "signed": name in SIGNED}
        for name in (there or DIFF_METRICS[:1])
    ]


def chosen_heads(numbers: Numbers, heads: str) -> list[str]:
    """The heads that get a page: so many of the most changed, or the named ones (`L18H6,L17H3`).

    Raises ValueError for what is neither, and for a head that the model does not have.
    """
    layers, across = numbers.settled.shape
    there = [f"L{layer}H{head}" for layer in range(layers) for head in range(across)]
    if heads.strip().isdecimal():
        ranked = there
        if numbers.frame is not None:
            rows = records(numbers.frame[["head_name", "write_error"]])
            rows.sort(key=lambda row: -(row["write_error"] if row["write_error"] is not None else -1.0))
            ranked = [row["head_name"] for row in rows if row["head_name"] in set(there)]
        return ranked[: int(heads)]
    names = [name.strip() for name in heads.split(",") if name.strip()]
    for name in names:
        if not HEAD.fullmatch(name):
            raise ValueError(
                f"{name[:20]!r} is not a head; give a number of heads, or names like L18H6,L17H3"
            )
        if name not in there:
            raise ValueError(f"no head {name}: these runs have {layers} layers of {across} heads")
    if not names:
        raise ValueError("no heads were named: give a number, or names like L18H6,L17H3")
    return list(dict.fromkeys(names))


def text_of(source: Source, selection: Selection, place: int) -> Text:
    """A prompt's tokens with the loss of A, of B, and the change."""
    about = source.first(PROMPT, prompt=selection.prompt)
    asked = {"a": selection.a, "b": selection.b, "prompt": selection.prompt}
    limits = source.first(TEXT_RANGE, **asked)
    spans = source.records(SPANS, prompt=selection.prompt)
    drawn = text_figure(
        source.frame(TEXT, **asked), limits.get("loss") or 1.0, limits.get("diff") or 1.0, spans
    )
    name = str(about.get("name") or selection.prompt)
    return Text(place, selection, name, int(about.get("n_tokens") or 0), drawn, spans)


def headline(source: Source, selection: Selection) -> tuple[str, str]:
    """The sentence of Compare, and what it is over."""
    asked = {"a": selection.a, "b": selection.b, "prompt": selection.prompt, "over": selection.over}
    loss = source.first(HEADLINE, **asked)
    run = source.first(RUN, b=selection.b, prompt=selection.prompt, over=selection.over)
    n = loss.get("n_prompts") or 0
    over = "this prompt" if selection.over == "prompt" else f"{n} prompts, weighted equally"
    return verdict(loss, run), f"Nats a token, over {over}."


def card(source: Source, selection: Selection, side: str) -> dict[str, Any]:
    """A run: name, policy, density, checks, and where its numbers come from."""
    row = run_of(source, selection, side)
    facts = [(name.replace("_", " "), str(row[name])) for name in FACTS if row.get(name) not in {None, ""}]
    return {
        "side": side.upper(),
        "name": str(row.get("name") or row.get("run_id")),
        "policy": str(row.get("policy") or "not said"),
        "model": str(row.get("model") or "not said"),
        "density": row.get("density"),
        "verified": verified(row),
        "off_label": bool(row.get("off_label")),
        "facts": facts,
    }


def roles_of(source: Source, run: str) -> dict[tuple[int, int], str]:
    """Role labels by layer and head, none where they cannot be told."""
    return attempt(lambda: finder.roles(source, run))[0] or {}


def prompts_asked(settled: Settled, named: Sequence[str]) -> list[str]:
    """The prompts that a bundle holds: the named ones, else the one that the pages open with."""
    found = list(dict.fromkeys(named)) or [settled.selection.prompt]
    if not found[0]:
        raise ValueError(
            f"these runs have no prompt in common; prompts of A and B: {listed(settled.prompts)}"
        )
    return found
