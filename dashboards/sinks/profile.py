"""What `analyse sinks` found: a row for every policy, a figure for every metric by layer, the phases in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from dash import html

from sparselens.analyses.plot import CHOSEN, DOT, LOOK
from sparselens.analyses.sinks.measure import DEFINITIONS
from sparselens.analyses.sinks.profile import PHASES, phases, ranges
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import number, percent

RUNS = """
SELECT r.run_id, coalesce(r.name, r.run_id) AS name, coalesce(r.policy, '') AS policy,
       list_contains(r.parents, $a) AS child,
       (SELECT avg(density) FROM head_stats h
        WHERE h.run_id = r.run_id AND pattern = 'executed' AND rows = 'all') AS density
FROM runs r
WHERE r.kind = 'capture' AND (r.run_id IN ($a, $b) OR list_contains(r.parents, $a)) AND r.n_prompts > 0
ORDER BY r.run_id <> $a, r.created_at, r.run_id
"""
NUMBERS = """
SELECT run_id, metric, value, ci_low, ci_high, n, n_clusters FROM evals
WHERE task = 'sinks' AND run_id IN (SELECT unnest($runs))
QUALIFY row_number() OVER (PARTITION BY run_id, metric ORDER BY analysis_id DESC) = 1
"""
LAYERS = """
SELECT run_id, layer, metric, value, ci_low, ci_high, n FROM head_scores
WHERE run_id IN ($a, $b) AND head IS NULL AND metric IN (SELECT unnest($metrics))
QUALIFY row_number() OVER (PARTITION BY run_id, layer, metric ORDER BY analysis_id DESC) = 1
ORDER BY metric, run_id, layer
"""
FIGURES = (
    ("sink_rate", "heads that sink"),
    ("sink_alpha", "mass on the first token"),
    ("value_drain", "what that token writes"),
    ("residual_peak", "its residual norm"),
    ("other_sinks", "later sinks a prompt"),
    ("sink_kept", "rows that keep the first token"),
    ("sink_change", "run − base of that mass"),
    ("new_sinks", "that the base has not"),
)
LOGARITHMIC = ("residual_peak",)
COLUMNS = (
    ("sink_rate", "Sink₁ rate"),
    ("sink_kept", "first token kept"),
    ("sink_mass_run", "mass on it"),
    ("sink_change", "change of it"),
    ("entropy_change", "entropy, nats"),
    ("new_sinks", "new sinks a layer"),
    ("lost_sinks", "lost sinks a layer"),
    ("nll_change", "cost, nats a token"),
    ("nll_change_kept", "where it is kept"),
    ("nll_change_dropped", "where it is dropped"),
)
SHARES = ("sink_rate", "sink_kept")


def command(source: Source, name: str) -> str:
    """The command that analyses the sinks of a run."""
    return f'sparselens analyse sinks --trace {source.path} --run "{name}"'


def by_run(numbers: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """The numbers of `evals` by run and metric."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in numbers:
        found.setdefault(row["run_id"], {})[row["metric"]] = row
    return found


def policy_table(
    runs: Sequence[dict[str, Any]], numbers: dict[str, dict[str, dict[str, Any]]], selection: Selection
) -> Any:
    """A row a run: A, and every run that was captured with it, with what it does to the sinks."""
    there = [name for name, _ in COLUMNS if any(name in found for found in numbers.values())]
    titles = dict(COLUMNS)
    top = [html.Th("run", scope="col"), html.Th("pairs kept", scope="col")]
    top += [html.Th(html.Abbr(titles[name], title=DEFINITIONS[name]), scope="col") for name in there]
    top.append(html.Th(html.Abbr("n", title="rows, or rows × heads, behind the changes"), scope="col"))
    body = []
    for run in runs:
        mine = numbers.get(run["run_id"], {})
        side = {selection.a: "A", selection.b: "B"}.get(run["run_id"], "")
        n = mine.get("nll_change", mine.get("sink_rate", {})).get("n")
        body.append(
            html.Tr(
                [
                    html.Th(
                        [
                            html.Span(side, className="badge on") if side else None,
                            " ",
                            html.Span(run["name"]),
                        ],
                        scope="row",
                        className="mono",
                        title=run["policy"],
                    ),
                    html.Td(percent(run["density"])),
                    *[html.Td(_cell(mine.get(name), share=name in SHARES)) for name in there],
                    html.Td("not analysed" if not mine else f"{n:,}" if n is not None else ""),
                ]
            )
        )
    return html.Table([html.Thead(html.Tr(top)), html.Tbody(body)], className="numbers wide")


def _cell(row: dict[str, Any] | None, *, share: bool) -> Any:
    """A number with its interval below it."""
    if row is None or row["value"] is None:
        return ""
    say = percent if share else number
    if row["ci_low"] is None:
        return say(row["value"])
    return [
        html.Span(say(row["value"])),
        html.Small(f"[{say(row['ci_low'])}, {say(row['ci_high'])}]", className="interval"),
    ]


def headline(rows: Sequence[dict[str, Any]], run: str, numbers: dict[str, dict[str, Any]]) -> str:
    """In which layers sink, drain and residual peak are on in a run."""
    layers: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["run_id"] == run:
            layers.setdefault(row["layer"], {"layer": row["layer"]})[row["metric"]] = row["value"]
    needed = [metric for metric, _, _ in PHASES.values()]
    whole = [layers[layer] for layer in sorted(layers) if all(name in layers[layer] for name in needed)]
    if not whole:
        return ""
    on = phases(whole)
    words = [f"{name} in layers {ranges(found) or 'none'} ({PHASES[name][2]})" for name, found in on.items()]
    rate = numbers.get("sink_rate", {}).get("value")
    first = f"{percent(rate)} of heads × prompts sink on the first token; " if rate is not None else ""
    sentence = first + "; ".join(words)
    return sentence[0].upper() + sentence[1:] + "."


def layer_figures(rows: Sequence[dict[str, Any]], selection: Selection) -> list[tuple[str, str, go.Figure]]:
    """Of each metric that is there its name, title and a line a run over layers, with 95 % intervals."""
    made = []
    for metric, title in FIGURES:
        mine = [row for row in rows if row["metric"] == metric and row["value"] is not None]
        if not mine:
            continue
        drawn = go.Figure()
        for run, name, colour in ((selection.a, "A", DOT), (selection.b, "B", CHOSEN)):
            some = [row for row in mine if row["run_id"] == run]
            if some:
                drawn.add_trace(_line(some, name, colour))
        drawn.update_layout(
            template=LOOK,
            font={"size": 11},
            margin={"l": 44, "r": 8, "t": 6, "b": 34},
            height=190,
            showlegend=False,
            hovermode="x unified",
            hoverlabel={"namelength": -1},
        )
        drawn.update_xaxes(title={"text": "layer", "standoff": 6})
        drawn.update_yaxes(
            type="log" if metric in LOGARITHMIC else "linear",
            range=[-0.02, 1.05] if metric in SHARES else None,
        )
        made.append((metric, title, drawn))
    return made


def _line(rows: Sequence[dict[str, Any]], name: str, colour: str) -> go.Scatter:
    value = [row["value"] for row in rows]
    high = [0 if row["ci_high"] is None else row["ci_high"] - row["value"] for row in rows]
    low = [0 if row["ci_low"] is None else row["value"] - row["ci_low"] for row in rows]
    return go.Scatter(
        x=[row["layer"] for row in rows],
        y=value,
        mode="lines+markers",
        name=name,
        line={"color": colour, "width": 4 if name == "A" else 1.5, "dash": "solid" if name == "A" else "dot"},
        opacity=0.75 if name == "A" else 1,
        marker={"size": 5, "color": colour, "symbol": "circle" if name == "A" else "square"},
        error_y={"type": "data", "array": high, "arrayminus": low, "thickness": 1, "width": 2},
        text=[f"n {row['n']}" for row in rows],
        hovertemplate="%{y:.3g} (%{text})",
    )
