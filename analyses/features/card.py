"""The card of a feature, from tables alone: where it is active, on which tokens, and which heads write it. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparselens.analyses.comparison import queries
from sparselens.analyses.runs import find_run
from sparselens.storage.reader import Connection

AROUND = 12
"""Tokens before an example that are shown."""
AFTER = 4


@dataclass(frozen=True)
class Example:
    """One token on which a feature is active, with its context, and what wrote it there.

    `sources` are rows of `feature_sources` (head, key, its text, its part, whether the compared run drops it), largest
    first; empty where the feature was not among the best `sourced` of the token.
    """

    prompt_id: str
    prompt: str
    pos: int
    activation: float
    before: str
    token: str
    after: str
    sources: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Card:
    """What a trace says about a feature in one run.

    `against` is the run whose dropped keys are marked: the run itself where it is a compared one (it reads none that it
    drops). `n_tokens` tokens were encoded; `n_active` of them have the feature among those stored. `unstored` is the
    share of the SAE's activation that is not stored (0 where `top` was at least k). `tokens`: by token text, most
    frequent first. `heads`: each head's sum over the stored parts of `n_told` tokens; `pre` and `untold` are the sums
    of the pre-activations and of the parts that are not stored. `changes`: rows of `feature_changes`, this run as A.
    """

    sae: str
    name: str
    hook: str
    layer: int
    feature: int
    run: str
    policy: str
    against: str
    n_tokens: int
    n_active: int
    unstored: float
    mean: float
    largest: float
    examples: tuple[Example, ...]
    tokens: tuple[dict[str, Any], ...]
    heads: tuple[dict[str, Any], ...]
    n_told: int
    pre: float
    untold: float
    changes: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Encoded:
    """What the cards of all features of one run share: the SAE, the run, the run whose drops are marked, its extent."""

    sae: dict[str, Any]
    run: dict[str, Any]
    against: str
    extent: dict[str, Any]


def encoded(connection: Connection, *, sae: str = "", run: str = "", against: str = "") -> Encoded:
    """Return the SAE whose hash begins with `sae` (the only one), in `run` (the first).

    `against` is the compared run whose drops are marked (the run itself, else the newest compared with it). Raises
    `ValueError` where the trace has no features, several SAEs or none that fits.
    """
    found = _sae(connection, sae)
    one = _run(connection, found["sae"], run)
    place = {"run": one["run_id"], "sae": found["sae"]}
    other = find_run(connection, against)["run_id"] if against else _against(connection, place)
    return Encoded(found, one, other, _ask(connection, "extent", place)[0])


def card(
    connection: Connection,
    feature: int,
    *,
    sae: str = "",
    run: str = "",
    against: str = "",
    top: int = 10,
    tokens: int = 10,
) -> Card:
    """Return the card of a feature: `card_of` what `encoded` finds."""
    there = encoded(connection, sae=sae, run=run, against=against)
    return card_of(connection, there, feature, top=top, tokens=tokens)


def card_of(connection: Connection, there: Encoded, feature: int, *, top: int = 10, tokens: int = 10) -> Card:
    """Return the card of a feature with `top` examples and `tokens` token texts.

    Raises `ValueError` where the SAE has no such feature.
    """
    found, one = there.sae, there.run
    if not 0 <= feature < found["features"]:
        raise ValueError(f"the SAE {found['name']} has features 0 to {found['features'] - 1}, not {feature}")
    given = {"run": one["run_id"], "sae": found["sae"], "feature": feature}
    extent = there.extent
    activity = _ask(connection, "activity", given)[0]
    heads = _ask(connection, "heads", given | {"against": there.against})
    return Card(
        found["sae"],
        found["name"],
        found["hook"],
        found["layer"],
        feature,
        one["name"],
        one["policy"],
        there.against,
        extent["n_tokens"],
        activity["n_active"],
        extent["unstored"] / extent["activation"] if extent["activation"] else 0.0,
        activity["mean"] or 0.0,
        activity["largest"] or 0.0,
        _examples(connection, given | {"against": there.against, "top": top}),
        tuple(_ask(connection, "tokens", given | {"top": tokens})),
        tuple({name: row[name] for name in ("head", "value", "dropped")} for row in heads),
        heads[0]["n_told"] if heads else 0,
        heads[0]["pre"] if heads else 0.0,
        heads[0]["unstored"] if heads else 0.0,
        tuple(_ask(connection, "changes", given)),
    )


def _ask(connection: Connection, name: str, given: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        connection.sql(queries("features/card.sql")[name], given, max_rows=None).arrow().to_pylist()
    )
    return rows


def _sae(connection: Connection, sae: str) -> dict[str, Any]:
    """Return the one SAE of the trace whose hash begins so."""
    found = _ask(connection, "saes", {"sae": sae})
    if len(found) == 1:
        return found[0]
    every = ", ".join(row["sae"] for row in _ask(connection, "saes", {"sae": ""}))
    if not every:
        raise ValueError(
            "the trace has no features: `sparselens analyse features --run RUN --trace TRACE` stores some"
        )
    many = f"{len(found)} SAEs begin with {sae!r}" if found else f"no SAE of the trace begins with {sae!r}"
    raise ValueError(f"{many}: say which of {every}")


def _run(connection: Connection, sae: str, run: str) -> dict[str, Any]:
    """Return the run that is named, or the first that was encoded."""
    encoded = _ask(connection, "runs", {"sae": sae})
    if not run:
        return encoded[0]
    wanted = find_run(connection, run)["run_id"]
    for one in encoded:
        if one["run_id"] == wanted:
            return one
    names = ", ".join(one["name"] for one in encoded)
    raise ValueError(f"run {run} was not encoded with this SAE; these were: {names}")


def _against(connection: Connection, place: dict[str, Any]) -> str:
    """Return the run whose drops are marked where none is named; empty where no parts are stored."""
    found = _ask(connection, "against", place)
    return str(found[0]["run_b"]) if found else ""


def _examples(connection: Connection, given: dict[str, Any]) -> tuple[Example, ...]:
    """Return the strongest tokens; their contexts and their sources are asked for at once."""
    around = {name: value for name, value in given.items() if name != "against"}
    texts = _by_place(_ask(connection, "examples", around | {"before": AROUND, "after": AFTER}))
    sources = _by_place(_ask(connection, "sources", given))
    return tuple(_example(*place, rows, sources.get(place, [])) for place, rows in texts.items())


def _by_place(rows: list[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Rows by the example that they are about, without saying so again."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row.pop("prompt_id"), row.pop("example")), []).append(row)
    return found


def _example(prompt: str, pos: int, around: list[dict[str, Any]], sources: list[dict[str, Any]]) -> Example:
    return Example(
        prompt,
        around[0]["name"],
        pos,
        around[0]["activation"],
        "".join(each["text"] for each in around if each["pos"] < pos),
        "".join(each["text"] for each in around if each["pos"] == pos),
        "".join(each["text"] for each in around if each["pos"] > pos),
        tuple(sources),
    )
