"""The figures there are, each of one settled selection: grid, heads, map, layer, text, reads, strip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparselens.dashboards.choice import Settled
from sparselens.dashboards.compare.change import change
from sparselens.dashboards.compare.grid import HOLDS_ZERO, UNDER, grid_figure
from sparselens.dashboards.compare.grid_panel import holding_zero
from sparselens.dashboards.compare.loss import TEXT, TEXT_RANGE, text_figure
from sparselens.dashboards.export.caption import (
    cells_caption,
    over_caption,
    pair_title,
    policy_of,
    prompt_caption,
    runs_caption,
    shorten,
)
from sparselens.dashboards.export.draw_grid import grid_bar, grid_drawing
from sparselens.dashboards.export.draw_layer import layer_figure, strip_figure
from sparselens.dashboards.export.draw_map import maps_drawing
from sparselens.dashboards.export.draw_reads import head_reads
from sparselens.dashboards.export.draw_text import Token, text_drawing
from sparselens.dashboards.export.figure import Figure
from sparselens.dashboards.export.sheet import Bar, sheet
from sparselens.dashboards.head.heatmap import maps
from sparselens.dashboards.head.panel import SINKS
from sparselens.dashboards.heads import finder
from sparselens.dashboards.heads.score import Score
from sparselens.dashboards.heads.score_value import values
from sparselens.dashboards.query import Source, SourceError, records
from sparselens.dashboards.verdict import number


def grid(source: Source, settled: Settled, theme: str = "light") -> Figure:
    """The layer × head grid of a metric of what B changed, as on Compare. SourceError where nothing is stored."""
    selection = settled.selection
    found = change(source, selection)
    metric = found.metric(selection.metric)
    named, unsure = finder.roles(source, selection.a), holding_zero(source, selection)
    means = found.meaning(metric)
    drawn = grid_figure(found.frame, metric, settled.shape, settled.group, named, unsure, means=means)
    rows = records(found.frame[["layer", "head", "head_name", metric, "n_rows", "n_prompts"]])
    prompts, n_rows = (max((row[name] for row in rows), default=0) for name in ("n_prompts", "n_rows"))
    caption = [
        f"{metric}: {means}.",
        " ".join(found.lines) or over_caption(selection, prompts, n_rows),
        *_marks(drawn),
        runs_caption(source, selection),
        prompt_caption(source, selection) if selection.over == "prompt" else "",
        _missing(drawn["values"]),
    ]
    title = f"{metric} of every head: {pair_title(source, selection)}"
    return _on_sheet(drawn, title, " ".join(word for word in caption if word), theme, rows)


def heads(source: Source, settled: Settled, score: Score, side: str, theme: str = "light") -> Figure:
    """The layer × head grid of a score of one side, as on Heads."""
    selection = settled.selection
    found = values(source, score, selection)
    if not found.of(side):
        raise SourceError(f"{score.name} has no numbers for these rows and prompts.")
    drawn = finder.grid_figure(found, side, settled.shape, settled.group)
    drawn["metric"] = score.label
    run = selection.a if side == "a" or not selection.b else selection.b
    whose = (
        pair_title(source, selection)
        if side == "diff"
        else shorten(policy_of(source.first("SELECT * FROM runs WHERE run_id = $run", run=run)))
    )
    caption = [
        f"{score.label}: {score.meaning}.",
        f"{found.over.get(side, '')}." if found.over.get(side) else "",
        runs_caption(source, selection),
        prompt_caption(source, selection)
        if selection.over == "prompt" and score.table != "head_scores"
        else "",
        _missing(drawn["values"]),
    ]
    rows = [
        {name: row.get(name) for name in ("layer", "head", "head_name", side, f"{side}_low", f"{side}_high")}
        for row in found.rows
    ]
    title = f"{score.label} of every head: {whose}"
    return _on_sheet(drawn, title, " ".join(word for word in caption if word), theme, rows)


def head_map(source: Source, settled: Settled, theme: str = "light") -> Figure:
    """The maps A | B | B − A of the chosen head on the chosen prompt."""
    selection = settled.selection
    drawn = maps(source, selection)
    at = {name: getattr(selection, name) for name in ("a", "b", "prompt", "layer", "head")}
    masses = {row["run_id"]: row["sink_mass"] for row in source.records(SINKS, **at)}
    sinks = {side: masses.get(getattr(selection, side)) for side in ("a", "b")}
    body, size = maps_drawing(drawn, sinks, theme)
    hidden = selection.hide == "1"
    caption = [
        cells_caption(next(iter(drawn.values())).cells, selection.weigh),
        "A and B share one scale; the difference has one that is centred at 0." if "diff" in drawn else "",
        "The column of key 0 is left blank in the picture; its mass is printed." if hidden else "",
        runs_caption(source, selection),
        prompt_caption(source, selection),
    ]
    title = f"{selection.head_name}, attention map: {pair_title(source, selection)}"
    words = " ".join(word for word in caption if word)
    rows = [
        {"side": side, "query": q, "key": k, "mass": float(each.values[q, k])}
        for side, each in drawn.items()
        for q in range(each.values.shape[0])
        for k in range(min(q + 1, each.values.shape[1]))
    ]
    return Figure(title, words, sheet(title, body, size, words, theme=theme), rows)


def loss_text(source: Source, settled: Settled, theme: str = "light") -> Figure:
    """The prompt's text shaded by the loss of A, of B, or its change (`shade`)."""
    selection = settled.selection
    asked = {"a": selection.a, "b": selection.b, "prompt": selection.prompt}
    limits = source.first(TEXT_RANGE, **asked)
    loss, change = limits.get("loss") or 1.0, limits.get("diff") or 1.0
    drawn = text_figure(source.frame(TEXT, **asked), loss, change, [])
    shade = drawn["only"] or selection.shade
    scale = "div" if shade == "diff" else "seq"
    numbers = drawn["values"]
    tokens = [
        Token(
            each,
            drawn["levels"][shade][pos],
            scale,
            f"{pos}: A {number(numbers['a'][pos])}, B {number(numbers['b'][pos])} nats",
        )
        for pos, each in enumerate(drawn["texts"])
    ]
    body, size = text_drawing(tokens, theme)
    marks = (
        (f"−{change:.2f} or less", "0", f"+{change:.2f} or more")
        if scale == "div"
        else ("0", f"{loss:.2f} or more")
    )
    words = {"a": "loss of A", "b": "loss of B", "diff": "change of the loss, B − A"}[shade]
    title = f"Text by {words}: {pair_title(source, selection)}"
    caption = " ".join(
        [
            "Ground: the token's loss, −ln p given the tokens before it, in nats; the first has none.",
            runs_caption(source, selection),
            prompt_caption(source, selection),
        ]
    )
    rows = [
        {"pos": pos, "text": each, **{side: numbers[side][pos] for side in ("a", "b", "diff")}}
        for pos, each in enumerate(drawn["texts"])
    ]
    bar = Bar(scale, marks, words)
    return Figure(title, caption, sheet(title, body, size, caption, theme=theme, bar=bar), rows)


def _on_sheet(
    drawn: dict[str, Any], title: str, caption: str, theme: str, rows: list[dict[str, Any]]
) -> Figure:
    body, size = grid_drawing(drawn, theme)
    return Figure(title, caption, sheet(title, body, size, caption, theme=theme, bar=grid_bar(drawn)), rows)


def _marks(drawn: dict[str, Any]) -> list[str]:
    found = []
    if any(drawn["roles"]):
        found.append(f"Outlined: the {sum(drawn['roles'])} heads with a role in A.")
    if any(drawn["under"]):
        found.append(f"Ringed: the {sum(drawn['under'])} heads {UNDER}.")
    if any(drawn["unsure"]):
        found.append(f"Hatched: {sum(drawn['unsure'])} heads of which {HOLDS_ZERO}.")
    return found


def _missing(numbers: list[float | None]) -> str:
    missing = sum(value is None for value in numbers)
    return f"{missing} heads have no number." if missing else ""


Draw = Callable[[Source, Settled, str], Figure]
FIGURES: dict[str, Draw] = {
    "grid": grid,
    "map": head_map,
    "layer": layer_figure,
    "text": loss_text,
    "reads": head_reads,
    "strip": strip_figure,
}
