"""SAE features of A and B: what changed, what one feature is, and where in a text it is active."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from dash import html

from sparselens.analyses.features.card import Card, Example
from sparselens.analyses.plot import CHOSEN, DOT, LOOK
from sparselens.dashboards.colour import level
from sparselens.dashboards.compare.key import shown
from sparselens.dashboards.verdict import number

PAIRS = """
SELECT DISTINCT d.sae, s.name, s.hook, s.layer, s.features FROM feature_diffs d JOIN saes s USING (sae)
WHERE d.run_a = $a AND d.run_b = $b ORDER BY d.sae
"""
OVER = """
SELECT rows, count(*)::BIGINT AS prompts, sum(n_rows)::BIGINT AS n_rows, sum(n_compared)::BIGINT AS n_compared,
       avg(jaccard) AS jaccard, avg(cosine) AS cosine, avg(l0_a) AS l0_a, avg(l0_b) AS l0_b,
       avg(error_a) AS error_a, avg(error_b) AS error_b
FROM feature_diffs WHERE run_a = $a AND run_b = $b AND sae = $sae GROUP BY rows ORDER BY rows <> 'all', rows
"""
CHANGES = """
SELECT feature, n_a, n_b, n_both, sum_a, sum_b, sum_b - sum_a AS change, dropped
FROM feature_changes WHERE run_a = $a AND run_b = $b AND sae = $sae AND rows = $rows
ORDER BY abs(sum_b - sum_a) DESC, feature LIMIT $most
"""
TEXT = """
SELECT t.pos, t.text, t.is_special, a.activation AS a, b.activation AS b,
       coalesce(b.activation, 0) - coalesce(a.activation, 0) AS diff
FROM tokens t
LEFT JOIN features a ON a.run_id = $a AND a.prompt_id = t.prompt_id AND a.pos = t.pos AND a.sae = $sae
  AND a.feature = $feature
LEFT JOIN features b ON b.run_id = $b AND b.prompt_id = t.prompt_id AND b.pos = t.pos AND b.sae = $sae
  AND b.feature = $feature
WHERE t.prompt_id = $prompt ORDER BY t.pos
"""
SOURCES = """
SELECT s.run_id = $a AS is_a, s.head, s.k_pos, t.text, s.value, s.dropped, s.pre, s.unstored
FROM feature_sources s LEFT JOIN tokens t ON t.prompt_id = s.prompt_id AND t.pos = s.k_pos
WHERE s.run_id IN ($a, $b) AND s.run_b = $b AND s.prompt_id = $prompt AND s.sae = $sae AND s.feature = $feature
  AND s.pos = $q
ORDER BY is_a DESC, abs(s.value) DESC
"""
MOST = 400
NUMERIC = {"type": "rightAligned", "cellRenderer": "Number", "width": 92}
COLUMNS: list[dict[str, Any]] = [
    {"field": "feature", "headerName": "Feature", "cellRenderer": "FeatureLink", "width": 88, "pinned": "left"},
    {"field": "change", "headerName": "B − A", **NUMERIC, "headerTooltip": "change of its summed activation"},
    {"field": "sum_a", "headerName": "sum A", **NUMERIC, "headerTooltip": "sum of its activations over the tokens"},
    {"field": "sum_b", "headerName": "sum B", **NUMERIC},
    {"field": "dropped", "headerName": "fed by dropped", **NUMERIC, "width": 124,
     "headerTooltip": "the part of A's pre-activations, where it is active in A, that comes from keys which B drops"},
    {"field": "n_a", "headerName": "tokens A", "type": "rightAligned", "width": 92},
    {"field": "n_b", "headerName": "tokens B", "type": "rightAligned", "width": 92},
    {"field": "n_both", "headerName": "both", "type": "rightAligned", "minWidth": 70, "flex": 1},
]  # fmt: skip


def sentence(row: dict[str, Any]) -> str:
    """What the features of two runs have in common over some rows, in one sentence."""
    left = row["n_rows"] - row["n_compared"]
    said = (
        f"Jaccard {number(row['jaccard'])}, cosine {number(row['cosine'])}; active features a token "
        f"{number(row['l0_a'])} → {number(row['l0_b'])}; the SAE's relative error {number(row['error_a'])} → "
        f"{number(row['error_b'])}. Over {row['n_compared']:,} tokens of {row['prompts']} prompts"
    )
    if left:
        return f"{said}; {left:,} more are not compared: the SAE's error grows by more than 25 % there."
    return f"{said}."


def text_figure(rows: list[dict[str, Any]], spans: list[dict[str, Any]], feature: int) -> dict[str, Any]:
    """The prompt's tokens and a feature's activation on them as plain data for the browser."""
    values = {name: [row[name] for row in rows] for name in ("a", "b", "diff")}
    top = max((value for name in ("a", "b") for value in values[name] if value is not None), default=0.0)
    change = max((abs(value) for value in values["diff"]), default=0.0)
    stored = "0 or not among the stored features of the token where there is no number"
    return {
        "kind": "feature",
        "only": "",
        "texts": [row["text"] if row["text"] is not None else "▯" for row in rows],
        "special": [bool(row["is_special"]) for row in rows],
        "spans": spans,
        "values": values,
        "labels": {"a": "activation A", "b": "activation B", "diff": "B − A"},
        "levels": {
            "a": [level(value, 0, top) if value else None for value in values["a"]],
            "b": [level(value, 0, top) if value else None for value in values["b"]],
            "diff": [level(value, -change, change) if value else None for value in values["diff"]],
        },
        "legends": {
            "a": f"Feature {feature} in A: 0 to {number(top)}; {stored}",
            "b": f"Feature {feature} in B: 0 to {number(top)}; {stored}",
            "diff": f"B − A: −{number(change)} (blue) to +{number(change)} (orange); {stored}",
        },
    }


def examples(card: Card) -> Any:
    """The strongest examples of a card: the token in its text, and what wrote it there."""
    if not card.examples:
        return html.P(
            f"Among the stored features of no token of {card.policy}.",
            className="note",
        )
    top = card.largest or 1.0
    return html.Ol([_example(each, top) for each in card.examples], className="examples")


def _example(each: Example, top: float) -> Any:
    step = level(each.activation, 0, top) or 0
    go_to = f'{{"prompt":"{each.prompt_id}","q":{each.pos}}}'
    parts = [_chip(row) for row in each.sources[:4]]
    token = plain(each.token)
    word = token.lstrip(" ")
    return html.Li(
        [
            html.Button(
                f"{number(each.activation)}",
                type="button",
                className="link",
                title=f"Show token {each.pos} of {each.prompt}",
                **{"data-go": go_to},
            ),
            html.P(
                [
                    plain(each.before) + " " * (len(token) - len(word)),
                    html.Mark(
                        word or "∅",
                        style={"background": f"var(--seq-{step})", "color": f"var(--on-seq-{step})"},
                    ),
                    plain(each.after),
                ],
                className="example-text",
            ),
            html.Ul(parts, className="chips") if parts else None,
        ]
    )


def _chip(row: dict[str, Any]) -> Any:
    """One part of a pre-activation: head, source token, value; struck through where B drops the key."""
    word = html.Del if row["dropped"] else html.Span
    return html.Li(
        [
            html.Span(f"H{row['head']} ← {row['k_pos']}", className="pos"),
            word(shown(row["text"]), className="word"),
            html.Span(number(row["value"]), className="mass"),
        ],
        className="chip cut" if row["dropped"] else "chip",
        title="dropped by B" if row["dropped"] else "",
        **{"data-scroll": str(row["k_pos"])},
    )


def sources_figure(rows: list[dict[str, Any]], pos: int, text: str) -> Any:
    """What wrote the feature at one token, in A and in B: its largest parts, and what is not among them."""
    drawn: list[Any] = []
    for name in ("A", "B"):
        mine = [row for row in rows if row["is_a"] == (name == "A")]
        if not mine:
            said = f"{name}: not among the best features of this token, so its parts are not stored."
            drawn.append(html.P(said, className="note"))
            continue
        first = mine[0]
        left = f"{name}: pre-activation {number(first['pre'])}, of it {number(first['unstored'])} in parts not listed"
        drawn += [
            html.P(f"{left}.", className="note"),
            html.Ul([_chip(row) for row in mine], className="chips"),
        ]
    return [html.H3(["Token ", html.Code(f"{pos} {shown(text)}"), ": head ← key, its part"]), *drawn]


def plain(text: str) -> str:
    """A text in one line."""
    return text.replace("\n", "↵").replace("\t", "⇥")


def tokens_table(a: Card, b: Card | None) -> Any:
    """On which tokens the feature is active in A and in B: counts of token texts."""
    counts = [{row["token"]: row for row in each.tokens} if each else {} for each in (a, b)]
    names = list(dict.fromkeys([*counts[0], *counts[1]]))[:12]
    top = [html.Th(word, scope="col") for word in ("token", "n A", "mean A", "n B", "mean B")]
    body = [
        html.Tr(
            [
                html.Th(shown(name), scope="row", className="mono"),
                *[
                    html.Td(spell(side[name][key]) if name in side else "–")
                    for side in counts
                    for key, spell in (("n", str), ("mean", number))
                ],
            ]
        )
        for name in names
    ]
    return html.Table([html.Thead(html.Tr(top)), html.Tbody(body)], className="numbers")


def heads_figure(a: Card, b: Card | None) -> go.Figure:
    """What each head wrote of the feature in A and B, and in A from keys that B drops: mean of a stored token."""
    figure = go.Figure()
    for name, each, colour in (("A", a, DOT), ("B", b, CHOSEN)):
        if each is None or not each.n_told:
            continue
        rows = sorted(each.heads, key=lambda row: row["head"])
        at = [f"L{each.layer}H{row['head']}" for row in rows]
        written = [row["value"] / each.n_told for row in rows]
        figure.add_bar(name=name, x=at, y=written, marker_color=colour)
        if name == "A" and b is not None:
            lost = [(row["dropped"] or 0.0) / each.n_told for row in rows]
            pattern = {"color": colour, "pattern": {"shape": "/"}}
            figure.add_bar(name="A, from keys that B drops", x=at, y=lost, marker=pattern)
    figure.update_layout(
        template=LOOK,
        font={"size": 11},
        margin={"l": 44, "r": 8, "t": 6, "b": 34},
        height=210,
        barmode="group",
        legend={"orientation": "h", "y": 1.15},
    )
    return figure
