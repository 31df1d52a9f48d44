"""The panel "where the mass went": bars of A and B by class of key, their numbers, the keys that lost and gained."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, html

from sparselens.dashboards.compare.key import shown
from sparselens.dashboards.drawing import drawn, place, tree
from sparselens.dashboards.head.heatmap import LENGTH
from sparselens.dashboards.head.key_class import (
    FIRST,
    LOCAL,
    NOT_STORED,
    REST,
    SINKS,
    classes,
    row_positions,
)
from sparselens.dashboards.head.mass import Mass, Part, mass
from sparselens.dashboards.head.number import defined
from sparselens.dashboards.page import chosen, message, panel, part, problem
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import number

MASS_FIELDS = part("a", "b", "prompt", "layer", "head", "rows", "q")
TEXTS = "SELECT pos, text FROM tokens WHERE prompt_id = $prompt AND pos IN $places"
MOST_KEYS = 8
LEAST = 0.0005
COLUMNS = ("keys", "A", "kept", "dropped", "gained", "B", "B − A")
MEANINGS = (
    "A, B: attention as it ran, mean over the rows; each sums to 1. kept, dropped: A's mass on keys that B keeps, and "
    "on keys that B drops. gained: what the keys that B keeps have more in B than in A; below 0 where they lost. "
    "What is dropped is what is gained, and B − A = gained − dropped. Hatched in the bar of A: dropped.",
    "A key is of the first class that fits: the first token; a later sink token of this layer in A or B (it receives "
    "more than 0.1 of the queries that can see it); a named span; the 64 newest keys with the query's own; all others.",
    "not stored: mass on keys that the table edges does not have. Its dropped part is known from diffs over whole "
    "sets of rows, and not of a single row.",
)
HUES = {FIRST: "first", SINKS: "sinks", LOCAL: "local", REST: "rest", NOT_STORED: "none"}


def mass_panel() -> Any:
    """The panel before anything is drawn in it."""
    return panel(
        "Where the mass went",
        place("mass"),
        note="of A's attention: kept, dropped; and who gained",
        name="panel-mass",
    )


def mass_figure(found: Mass, where: str) -> list[Any]:
    """The sentence, the bars and the table of the parts; `where` says which rows they are means over."""
    source = "Whole rows, from the kept q and k." if found.exact else "From the stored edges."
    empty = f" In {found.empty} of the rows B keeps nothing." if found.empty else ""
    one_sided = (
        f" {found.one_sided} of the edges are stored in one run alone: the other's mass on them is under not stored."
        if found.one_sided
        else ""
    )
    return [
        html.P(_sentence(found), className="mass-said"),
        html.Div([_bar("A", found.parts, "a"), _bar("B", found.parts, "b")], className="mass-bars"),
        html.Div(
            _table(found), className="scroll", tabIndex="0", role="region", **{"aria-label": "Masses by key"}
        ),
        html.P(f"Means over {where}. {source}{empty}{one_sided}", className="note"),
        defined("What the columns mean", *MEANINGS),
    ]


def _sentence(found: Mass) -> str:
    known = [each.dropped for each in found.parts if each.dropped is not None]
    least = "" if found.dropped is not None else "at least "
    words = f"B drops {least}{number(sum(known))} of A's attention"
    gains = [each for each in found.parts if each.gained is not None and each.name != NOT_STORED]
    most = max(gains, key=lambda each: each.gained or 0.0, default=None)
    if most is not None and most.gained is not None and most.gained > LEAST:
        words += f"; most gained: {most.name}, {number(most.gained)}"
    return words + "."


def _bar(name: str, parts: list[Part], side: str) -> Any:
    pieces, said = [], []
    for each, hue in zip(parts, hues(parts), strict=True):
        whole = getattr(each, side)
        dropped = (each.dropped or 0.0) if side == "a" else 0.0
        for size, kind in ((whole - dropped, ""), (dropped, " dropped")):
            if size > 0:
                style = {"width": f"{100 * size:.3f}%"}
                pieces.append(html.Span(className=f"mass-piece hue-{hue}{kind}", style=style))
        said.append(
            f"{each.name} {number(whole)}" + (f", {number(dropped)} of it dropped" if dropped else "")
        )
    return html.Div(
        [
            html.B(name),
            html.Div(
                pieces, className="mass-bar", role="img", **{"aria-label": f"{name}: {'; '.join(said)}"}
            ),
        ],
        className="mass-line",
    )


def _table(found: Mass) -> Any:
    body = [_row(each, hue) for each, hue in zip(found.parts, hues(found.parts), strict=True)]
    sums: dict[str, float | None] = {
        name: sum(getattr(each, name) for each in found.parts) for name in ("a", "b")
    }
    for name in ("kept", "dropped", "gained"):
        known = [getattr(each, name) for each in found.parts]
        sums[name] = None if None in known else round(sum(known), 9) + 0.0
    cells = [*_cells(sums), html.Td(number(round((sums["b"] or 0.0) - (sums["a"] or 0.0), 9) + 0.0))]
    foot = html.Tr([html.Th("all keys", scope="row"), *cells])
    top = html.Tr([html.Th(word, scope="col") for word in COLUMNS])
    return html.Table([html.Thead(top), html.Tbody(body), html.Tfoot(foot)], className="numbers mass-table")


def hues(parts: list[Part]) -> list[str]:
    """The colour of each part, the same for all heads of a prompt: spans are told apart by their order."""
    spans = [each.name for each in parts if each.name not in HUES]
    return [HUES.get(each.name) or f"span-{spans.index(each.name)}" for each in parts]


def _row(each: Part, hue: str) -> Any:
    name = [html.Span(className=f"swatch hue-{hue}", **{"aria-hidden": "true"}), each.name]
    values = {field: getattr(each, field) for field in ("a", "kept", "dropped", "gained", "b")}
    change = each.b - each.a
    return html.Tr(
        [
            html.Th(name, scope="row"),
            *_cells(values),
            html.Td(number(change), className="rising" if change > 0 else "falling"),
        ]
    )


def _cells(values: dict[str, float | None]) -> list[Any]:
    return [
        html.Td("not stored", className="unknown") if values[name] is None else html.Td(number(values[name]))
        for name in ("a", "kept", "dropped", "gained", "b")
    ]


def key_lists(found: Mass) -> dict[str, list[int]]:
    """Positions of the strongest keys that were dropped, that gained and that were kept, each strongest first."""
    lists = {}
    kept = found.keys["a"] - found.keys["dropped"]
    for name, values in (
        ("dropped", found.keys["dropped"]),
        ("gained", found.keys["gained"]),
        ("kept", kept),
    ):
        order = (-values).argsort(kind="stable")[:MOST_KEYS]
        lists[name] = [int(place) for place in order if values[place] >= LEAST]
    return lists


def keys_figure(found: Mass, lists: dict[str, list[int]], texts: dict[int, str | None]) -> list[Any]:
    """The lists as chips that scroll the text to their token, A → B; dropped ones struck through."""
    titles = {"dropped": "Dropped", "gained": "Gained", "kept": "Kept"}
    drawn = []
    for name, places in lists.items():
        chips = [html.Li(_chip(found, place, texts.get(place), cut=name == "dropped")) for place in places]
        none = f"no key of {LEAST:g} or more"
        drawn += [
            html.H3(titles[name]),
            html.Ul(chips, className="chips", **{"aria-label": f"{titles[name]} keys, A → B"})
            if chips
            else html.P(none, className="note"),
        ]
    return drawn


def _chip(found: Mass, place: int, text: str | None, *, cut: bool) -> Any:
    a, b = (number(float(found.keys[side][place])) for side in ("a", "b"))
    word = shown(text)
    return html.Button(
        [
            html.Span(str(place), className="pos"),
            html.Del(word, className="word") if cut else html.Span(word, className="word"),
            html.Span(f"{a} → {b}", className="mass"),
        ],
        type="button",
        className="chip cut" if cut else "chip",
        title=f"key {place}: A {a}, B {b}; click to scroll there",
        **{"data-scroll": str(place)},
    )


def _drawn(source: Source, selection: Selection) -> list[Any]:
    length = int(source.first(LENGTH, prompt=selection.prompt).get("n") or 0)
    over = "" if selection.q is not None else selection.rows or "all"
    rows = row_positions(source, selection, over or f"query {selection.q}", length)
    name = f"mass {selection.a} {selection.b} {selection.prompt} {selection.head_name} {over} {selection.q}"
    found = source.kept(name, lambda: mass(source, selection, rows, classes(source, selection, length), over))
    lists = key_lists(found)
    places = sorted({place for each in lists.values() for place in each})
    texts = {row["pos"]: row["text"] for row in source.records(TEXTS, prompt=selection.prompt, places=places)}
    where = (
        f"the rows {over} of this prompt, {len(rows)} queries"
        if over
        else f"query {selection.q} alone (Esc: all)"
    )
    return [*mass_figure(found, where), *keys_figure(found, lists, texts)]


def register_mass(app: Dash, source: Source) -> None:
    """Wire the panel to the selection."""

    def draw(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or selection.layer is None or not selection.prompt:
            return None
        if not selection.b:
            return tree(message("There is no second run here: choose B."))
        try:
            return tree(_drawn(source, selection))
        except SourceError as found:
            return tree(problem(found))

    app.callback(drawn("mass"), Input(MASS_FIELDS, "data"))(draw)
