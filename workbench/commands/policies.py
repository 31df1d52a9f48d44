"""`sparselens policies`: which policies there are; `sparselens policies NAME`: the card of one."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sparselens.kernels.policy import Policy


def policies(
    name: Annotated[str | None, typer.Argument(help="The policy whose card is shown.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of objects.")] = False,
) -> None:
    """List the policies: which keys each lets a query read. `path/file.py:NAME` works too."""
    from sparselens.kernels.policy import policies as found
    from sparselens.workbench.listing import show

    known = found()
    if name is not None and name not in known:
        raise ValueError(f"no policy named {name!r}; there are {', '.join(known)}")
    cards = [_card(kind) for key, kind in known.items() if name in (None, key)]
    if as_json:
        show(cards, as_json=True)
    elif name is not None:
        _print(cards[0])
    else:
        show([_line(card) for card in cards])


def _card(kind: type[Policy]) -> dict[str, Any]:
    """All that a policy class says of itself; marks that depend on a policy inside are None."""
    from sparselens.kernels.policy import EVIDENCE
    from sparselens.workbench.calibration import calibrations

    defaults = {entry.name: _default(entry) for entry in fields(kind)}
    marks = {mark: getattr(kind, mark) for mark in ("off_label", "lookahead")}
    return {
        "name": kind.name,
        "keeps": inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].replace("\n", " "),
        "phase": defaults["phase"],
        "parameters": defaults,
        **{mark: value if isinstance(value, bool) else None for mark, value in marks.items()},
        "calibration": kind.name in calibrations(),
        "budget": list(kind.budget),
        "short_input": kind.short_input,
        "evidence": kind.evidence,
        "evidence_means": EVIDENCE[kind.evidence],
        "source": kind.source,
        "card": kind.card,
    }


def _line(card: dict[str, Any]) -> dict[str, str]:
    """One row of the list: the parameters are in the card."""
    marks = {
        "off-label": card["off_label"],
        "looks ahead": card["lookahead"],
        "calibrated": card["calibration"],
        "not read in code": card["evidence"] in ("paper", "abstract"),
    }
    said = ", ".join(mark for mark, holds in marks.items() if holds)
    return {"name": card["name"], "phase": card["phase"], "marks": said, "source": card["source"]}


def _print(card: dict[str, Any]) -> None:
    """The card as text."""
    from sparselens.workbench.listing import written

    yes = {True: "yes", False: "no", None: "as the policy inside"}
    lines = {
        "keeps": card["keeps"],
        "parameters": ", ".join(
            written({key: value}) for key, value in card["parameters"].items() if key != "phase"
        ),
        "phase": card["phase"],
        "off-label": yes[card["off_label"]]
        + (": the paper trained the model with it" if card["off_label"] else ""),
        "looks ahead": yes[card["lookahead"]]
        + (": a row's keys may depend on later tokens" if card["lookahead"] else ""),
        "calibration": f"sparselens calibrate {card['name']}" if card["calibration"] else "none",
        "budget": ", ".join(card["budget"]) or "none",
        "short input": card["short_input"] or "no dense fall-back in the authors' code is known",
        "evidence": card["evidence_means"],
        "source": card["source"],
        "know": card["card"],
    }
    print(card["name"])
    for key, value in lines.items():
        text = textwrap.fill(
            str(value), 110, initial_indent=f"  {key:12} ", subsequent_indent=" " * 15, break_long_words=False
        )
        print(text)


def _default(entry: Any) -> Any:
    """A field's default as it is written in a call; `required` where it has none."""
    if entry.default is not MISSING:
        plain = isinstance(entry.default, bool | int | float | str | tuple | None)
        return entry.default if plain else str(entry.default)
    return str(entry.default_factory()) if entry.default_factory is not MISSING else "required"


COMMAND = policies
