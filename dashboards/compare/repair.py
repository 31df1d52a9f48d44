"""What giving heads back repaired, for the pair that is looked at: read from the restores of the trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dash import html

from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import number, percent

RESTORES = """
SELECT DISTINCT r.run_id, r.prompt_set, r.created_at,
       json_extract_string(r.args, '$.kind') AS kind, json_extract_string(r.args, '$.phase') AS phase,
       json_extract_string(r.args, '$.ranked_on') AS ranked_on
FROM interventions i JOIN runs r ON r.run_id = i.analysis_id
JOIN runs a ON a.run_id = $a JOIN runs b ON b.run_id = $b
WHERE r.name = 'restore' AND r.status = 'complete' AND (i.base_run = $b OR r.model = b.model)
  AND json_extract_string(r.args, '$.policy') = b.policy AND json_extract_string(r.args, '$.base') = a.policy
ORDER BY r.created_at DESC, r.run_id DESC
"""
SETS = """
SELECT analysis_id, trial, kind, order_by, matched, n_heads, any_value(heads) AS heads,
       max(n) AS n, max(n_clusters) AS n_clusters, {columns}
FROM interventions WHERE analysis_id IN (SELECT unnest($found)) AND fold IS NULL AND draw IS NULL
GROUP BY analysis_id, trial, kind, order_by, matched, n_heads ORDER BY analysis_id DESC, trial
""".replace(
    "{columns}",
    ", ".join(
        f"max({column}) FILTER (metric = '{metric}') AS {metric}{end}"
        for metric in ("answer_nll", "gap", "gap_closed", "gap_closed_over_random")
        for column, end in (("value", ""), ("ci_low", "_low"), ("ci_high", "_high"))
    ),
)
SHOWN = 6  # restores whose bars are drawn


@dataclass(frozen=True)
class Repair:
    """One restore of the pair: the run, its base, sets of heads, random heads by the order they match, a wider policy.

    Each is a row of `SETS`; `about` is a row of `RESTORES`.
    """

    about: dict[str, Any]
    rows: Sequence[dict[str, Any]]

    def _first(self, **wanted: Any) -> dict[str, Any]:
        found = (row for row in self.rows if all(row[name] == value for name, value in wanted.items()))
        return next(found, {})

    @property
    def run(self) -> dict[str, Any]:
        """The run as it is."""
        return self._first(kind="none")

    @property
    def base(self) -> dict[str, Any]:
        """Its base."""
        return self._first(kind="base")

    @property
    def sets(self) -> list[dict[str, Any]]:
        """The sets of heads that were ranked or given, in the order that they were tried in."""
        return [row for row in self.rows if row["order_by"] not in (None, "random")]

    def random(self, of: dict[str, Any]) -> dict[str, Any]:
        """The mean over random heads of the same layers as a set, empty where none were drawn."""
        return self._first(order_by="random", matched=of["order_by"], n_heads=of["n_heads"])

    def wider(self, of: dict[str, Any]) -> dict[str, Any]:
        """The policy with a wider budget for all heads, at the density of a set."""
        return self._first(kind="policy", n_heads=of["n_heads"])

    @property
    def tells(self) -> bool:
        """Whether there is a gap that shares can be taken of: its interval lies above 0."""
        low, value = self.run.get("gap_low"), self.run.get("gap")
        return value is not None and value > 0 and (low is None or low > 0)

    @property
    def told(self) -> dict[str, Any]:
        """The set that the sentence is about: with random heads beside it where there is one, the largest of these."""
        return max(self.sets, key=lambda row: (bool(self.random(row)), row["n_heads"]), default={})


def repairs(source: Source, selection: Selection) -> list[Repair]:
    """The restores of the pair's model, policy and base, newest first."""
    if not selection.b:
        return []
    about = source.records(RESTORES, a=selection.a, b=selection.b)[:SHOWN]
    rows = source.records(SETS, found=[each["run_id"] for each in about]) if about else []
    found = [Repair(each, [row for row in rows if row["analysis_id"] == each["run_id"]]) for each in about]
    return [each for each in found if each.run and each.base and each.sets]


def share(row: dict[str, Any], name: str = "gap_closed") -> str:
    """A share of the gap as a percentage with its interval."""
    if row.get(name) is None:
        return "–"
    value, low, high = (percent(row[f"{name}{end}"]).replace("-", "−") for end in ("", "_low", "_high"))
    return value if row[f"{name}_low"] is None else f"{value} [{low}, {high}]"


def repair_words(source: Source, selection: Selection) -> str:
    """The newest restore of the pair in a sentence; empty where there is none."""
    found = repairs(source, selection)
    if not found:
        return ""
    newest = found[0]
    one = newest.told
    words = f"Given back: answer NLL {number(newest.base['answer_nll'], 2)} → {number(newest.run['answer_nll'], 2)}; "
    over = f" ({one['n']} prompts in {one['n_clusters']} groups, {newest.about['prompt_set']})."
    if not newest.tells:
        return f"{words}a gap that cannot be told from 0, so no share of it means anything{over}"
    words += f"{one['n_heads']} heads {_chosen(one)} close {share(one)} of the gap"
    beside = newest.random(one)
    if beside:
        words += f", random heads of the same layers {share(beside)}"
    return words + over


def _chosen(one: dict[str, Any]) -> str:
    return "(given by name)" if one["order_by"] == "given" else f"(ranked by {one['order_by']})"


def bars(repair: Repair, one: dict[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    """What is drawn of a set: label, row of `SETS` and class, from the base to the run."""
    found = [
        ("BASE", repair.base, "base"),
        (f"{one['n_heads']} heads {_chosen(one)} back", one, "mine"),
        ("random heads, same layers", repair.random(one), "random"),
        ("the policy, wider", repair.wider(one), "wider"),
        ("RUN", repair.run, "run"),
    ]
    return [(label, row, kind) for label, row, kind in found if row.get("answer_nll") is not None]


def repair_figure(repair: Repair, high: float) -> Any:
    """Bars of the answer's loss on a scale from 0 to `high`, for every set; intervals as whiskers, shares beside."""
    groups = []
    for one in repair.sets:
        groups.append(html.Div([_bar(*each, high) for each in bars(repair, one)], className="repair-bars"))
        groups.append(_heads(one["heads"]))
    first = repair.sets[0]
    about = repair.about
    ranked = "" if first["order_by"] == "given" else f", ranked on other families of {about['ranked_on']}"
    said = (
        f"{about['kind']}, phase {about['phase']}: {first['n']} prompts in {first['n_clusters']} groups of "
        f"{about['prompt_set']}{ranked}. Bars: answer NLL, nats a token; whiskers and brackets: 95 % bootstrap over "
        f"groups, paired by prompt. Run {about['run_id']}."
    )
    return html.Div([*groups, html.P(said, className="note")], className="repair")


def _bar(label: str, row: dict[str, Any], kind: str, high: float) -> Any:
    def place(value: float | None) -> str:
        return f"{100 * min(max((value or 0.0) / high, 0.0), 1.0):.3f}%" if high > 0 else "0%"

    low, top = row["answer_nll_low"], row["answer_nll_high"]
    whisker = None
    if low is not None:
        width = f"calc({place(top)} - {place(low)})"
        whisker = html.Span(className="whisker", style={"left": place(low), "width": width})
    said = f"{number(row['answer_nll'], 2)}" + (
        f" [{number(low, 2)}, {number(top, 2)}]" if low is not None else ""
    )
    closes = share(row) if row.get("gap_closed") is not None else ""
    return html.Div(
        [
            html.Span(label, className="repair-name"),
            html.Span(
                [html.Span(className=f"fill {kind}", style={"width": place(row["answer_nll"])}), whisker],
                className="track",
                role="img",
                **{"aria-label": f"{label}: answer NLL {said}"},
            ),
            html.Span(said, className="repair-value"),
            html.Span(f"closes {closes}" if closes else "", className="repair-value"),
        ],
        className="repair-bar",
    )


def _heads(heads: Any) -> Any:
    names = [] if heads is None else [str(name) for name in heads]
    return html.P(" ".join(names), className="note heads-named") if names else None


def highest(found: Sequence[Repair]) -> float:
    """The end of the scale that all bars share: the largest loss or upper end drawn."""
    ends = [
        row[name]
        for repair in found
        for row in repair.rows
        for name in ("answer_nll", "answer_nll_high")
        if row.get(name) is not None
    ]
    return max(ends, default=0.0)
