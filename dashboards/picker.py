"""A list of which one entry is chosen, in the browser's own control: it sets one field of the selection.

Keys, touch and screen readers know it, and typing goes to the entry that begins so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dash import Output, dcc, html

Choice = str | dict[str, Any]
"""A value that names itself, `{"value", "label"}`, or `{"group", "items"}` with choices as items."""


def picker(field: str, label: str, description: str, *, wide: bool = False) -> Any:
    """A list that `choices` of the field fills; it shows what is settled (`assets/selection.js`)."""
    return _labelled(field, label, description, [], wide=wide, beside=[dcc.Store(id={"list": field})])


def choices(field: str) -> Output:
    """The output of a callback that fills the list of a `picker` with `Choice`s."""
    return Output({"list": field}, "data")


def filled(
    field: str, label: str, description: str, entries: Sequence[Choice], value: str, *, wide: bool = False
) -> Any:
    """A list that has its entries from the start; plain HTML, so it can be drawn by the browser too."""
    return _labelled(field, label, description, [_entry(each, value) for each in entries], wide=wide)


def _labelled(
    field: str, label: str, description: str, entries: list[Any], *, wide: bool, beside: Sequence[Any] = ()
) -> Any:
    shown = html.Span(label, className="badge" if len(label) == 1 else "label")
    select = html.Select(
        entries,
        className="wide" if wide else "narrow",
        **{"data-choose": field, "aria-label": description},
    )
    return html.Label([shown, select, *beside], className="picker", title=description)


def _entry(entry: Choice, value: str) -> Any:
    if isinstance(entry, str):
        return html.Option(entry, value=entry, selected=entry == value)
    if "group" in entry:
        return html.Optgroup([_entry(each, value) for each in entry["items"]], label=entry["group"])
    return html.Option(entry["label"], value=entry["value"], selected=entry["value"] == value)
