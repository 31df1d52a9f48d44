"""What a bundle says about one head: maps, dropped keys, statistics, scores with definitions, by prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from sparselens.dashboards.choice import Settled
from sparselens.dashboards.compare.key import KEY_ROWS, KEYS, MOST_KEYS, MOST_ROWS, QUERIES
from sparselens.dashboards.export.bundle_data import Text, attempt
from sparselens.dashboards.export.caption import cells_caption
from sparselens.dashboards.export.draw import head_map
from sparselens.dashboards.export.draw_map import maps_drawing
from sparselens.dashboards.export.draw_text import visible
from sparselens.dashboards.export.figure import Figure
from sparselens.dashboards.export.svg import document
from sparselens.dashboards.head.heatmap import Drawn, maps
from sparselens.dashboards.head.number import DAMAGE, SCORES, statistics
from sparselens.dashboards.head.panel import SINKS
from sparselens.dashboards.metric import meaning
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import number

NAMES = {"a": "A", "b": "B", "diff": "B − A"}
DROPPED, KEPT = 10, 6
CHANGES = ("write_error", "kept_mass", "js")


@dataclass(frozen=True)
class Part:
    """One head on one prompt. `maps` are `(name, picture for light, for dark)`; `figure` is the same to be saved."""

    text: Text
    maps: list[tuple[str, Markup, Markup]]
    map_words: str
    figure: Figure | None
    rows: list[dict[str, Any]]
    rows_words: str
    rows_named: str
    statistics: list[dict[str, Any]]
    statistics_rows: str
    damage: list[dict[str, Any]]
    keys: list[dict[str, Any]]


def head_part(source: Source, settled: Settled, text: Text) -> Part:
    """Everything about the settled head on a prompt; what the trace cannot tell is said instead."""
    selection = replace(settled.selection, prompt=text.selection.prompt, over="prompt")
    here = replace(settled, selection=selection)
    drawn, why = attempt(lambda: maps(source, selection))
    figure, _ = attempt(lambda: head_map(source, here)) if drawn else (None, "")
    keys, no_keys = attempt(lambda: _keys(source, selection))
    rows, stored = keys or ([], [])
    if not rows and not no_keys:
        no_keys = f"No keys of {selection.head_name} are stored for the rows {selection.rows} of this prompt."
    statistics, over = attempt(lambda: _statistics(source, selection))[0] or ([], "")
    damage, _ = attempt(lambda: source.records(DAMAGE, **_at(selection)))
    return Part(
        text,
        _pictures(source, drawn, selection) if drawn else [],
        _map_words(drawn) if drawn else why,
        figure,
        rows,
        no_keys,
        _rows_named(selection, text),
        statistics,
        over,
        damage or [],
        stored,
    )


def head_scores(source: Source, settled: Settled) -> tuple[list[dict[str, Any]], str]:
    """The scores of the settled head in A and B with intervals, n and definition; or why there are none."""
    at = {name: getattr(settled.selection, name) for name in ("a", "b", "layer", "head")}
    found, why = attempt(lambda: source.records(SCORES, **at))
    return found or [], why or ("" if found else "No analysis has scored this head.")


def _rows_named(selection: Selection, text: Text) -> str:
    """Which query rows the keys are of: those of a span where the prompt has it, else those that changed most."""
    name = selection.rows.removeprefix("span:")
    if selection.rows.startswith("span:") and any(span["name"] == name for span in text.spans):
        return f"rows {selection.rows}" + (", which predict it" if name == "answer" else "")
    return f"the {MOST_ROWS} rows that changed most in what the head writes"


def _at(selection: Selection) -> dict[str, Any]:
    return {name: getattr(selection, name) for name in ("a", "b", "prompt", "layer", "head")}


def _pictures(
    source: Source, drawn: dict[str, Drawn], selection: Selection
) -> list[tuple[str, Markup, Markup]]:
    masses = {row["run_id"]: row["sink_mass"] for row in source.records(SINKS, **_at(selection))}
    made = []
    for side, each in drawn.items():
        sinks = {side: masses.get(getattr(selection, side))} if side != "diff" else {}
        themes = []
        for theme in ("light", "dark"):
            body, (width, height) = maps_drawing({side: each}, sinks, theme)
            said = f"{selection.head_name}, map {NAMES[side]}"
            themes.append(Markup(document(width, height, said, _map_words(drawn), body)))  # noqa: S704 - escaped
        made.append((NAMES[side], themes[0], themes[1]))
    return made


def _map_words(drawn: dict[str, Drawn]) -> str:
    shared = (
        " A and B share one scale; the difference has one that is centred at 0." if "diff" in drawn else ""
    )
    return cells_caption(next(iter(drawn.values())).cells, "attention") + shared


def _keys(source: Source, selection: Selection) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The query rows with their strongest dropped and kept keys, and all the keys that were listed."""
    asked: dict[str, Any] = {name: getattr(selection, name) for name in ("prompt", "layer", "head")}
    asked["b"] = selection.b
    rows = source.records(KEY_ROWS, rows=selection.rows, q=None, most=MOST_ROWS, **asked)
    found = [row["q_pos"] for row in rows]
    keys = source.records(KEYS, queries=found, most=MOST_KEYS, **asked)
    queries = {row["pos"]: row for row in source.records(QUERIES, prompt=selection.prompt, queries=found)}
    told = []
    for row in rows:
        here = [key for key in keys if key["q_pos"] == row["q_pos"]]
        query = queries.get(row["q_pos"], {})
        follows = query.get("next")
        told.append(
            {
                **row,
                "text": visible(query.get("text")),
                "next": None if follows is None else visible(follows),
                "dropped": [_chip(key) for key in here if key["kept"] is False][:DROPPED],
                "kept": [_chip(key) for key in here if key["kept"] is not False][:KEPT],
            }
        )
    return told, keys


def _chip(key: dict[str, Any]) -> dict[str, Any]:
    return {
        "pos": key["k_pos"],
        "text": visible(key["text"]),
        "mass": f"{number(key['p_base'])} → {number(key['p'])}",
    }


def _statistics(source: Source, selection: Selection) -> tuple[list[dict[str, Any]], str]:
    over, rows = statistics(source, selection.rows, _at(selection))
    known = [row for row in rows if row["a"] is not None or row["b"] is not None]
    return [{**row, "meaning": meaning("head_stats", row["statistic"])} for row in known], over


def damage_meanings() -> list[tuple[str, str]]:
    """The columns of the table of differences, and what they mean."""
    return [(name, meaning("diffs", name)) for name in CHANGES]
