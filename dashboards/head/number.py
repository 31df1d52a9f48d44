"""The numbers of one head, each with its definition: statistics in A and B, what it changed, scores and roles."""

from __future__ import annotations

from typing import Any

from dash import html

from sparselens.analyses.roles.labels import APART, DORMANT, RETRIEVAL, THRESHOLD, labels
from sparselens.dashboards.heads.score import VARIANT
from sparselens.dashboards.metric import STATS, meaning
from sparselens.dashboards.query import Source
from sparselens.dashboards.verdict import number

STATISTICS = """
SELECT run_id, rows, n_rows, {columns} FROM head_stats
WHERE run_id IN ($a, $b) AND prompt_id = $prompt AND pattern = 'executed' AND layer = $layer AND head = $head
""".replace("{columns}", ", ".join(STATS))
SIDES = """
SELECT {place} AS place, '{name}' AS statistic, max({name}) FILTER (run_id = $a) AS a,
       max({name}) FILTER (run_id = $b) AS b, b - a AS change, max(n_rows) AS n_rows
FROM s WHERE rows = $over_rows
"""
TABLE = f"WITH s AS ({STATISTICS}) {{}} ORDER BY place".format(
    " UNION ALL ".join(SIDES.format(place=place, name=name) for place, name in enumerate(STATS))
)
SCORES = f"""
WITH newest AS (
  SELECT *, {VARIANT} AS variant, json_extract_string(params, '$.fold') AS fold FROM head_scores
  WHERE run_id IN ($a, $b) AND layer = $layer AND head = $head AND value IS NOT NULL
  QUALIFY row_number() OVER (PARTITION BY run_id, metric, {VARIANT} ORDER BY analysis_id DESC) = 1
), named AS (
  SELECT n.*, coalesce(r.name, 'other') AS analysis FROM newest n
  LEFT JOIN (SELECT run_id AS analysis_id, name FROM runs) r USING (analysis_id)
)
SELECT analysis, metric, variant, fold, any_value(definition) AS definition, any_value(prompt_set) AS prompt_set,
       any_value(rows) AS rows, {{sides}}
FROM named GROUP BY analysis, metric, variant, fold
ORDER BY analysis <> 'roles', analysis, metric, fold NULLS FIRST, variant
""".replace(
    "{sides}",
    ", ".join(
        f"max({column}) FILTER (run_id = ${side}) AS {side}{suffix}"
        for side in ("a", "b")
        for column, suffix in (
            ("value", ""), ("ci_low", "_low"), ("ci_high", "_high"), ("n", "_n"), ("n_clusters", "_groups"),
        )
    ),
)  # fmt: skip
DAMAGE = """
SELECT scope, rows, n_rows, write_error, kept_mass, js FROM diffs
WHERE run_a = $a AND run_b = $b AND prompt_id = $prompt AND layer = $layer AND head = $head
ORDER BY scope, rows
"""
ROLE_SCORES = """
SELECT metric, value FROM head_scores
WHERE run_id = $run AND layer = $layer AND head = $head AND value IS NOT NULL
  AND json_extract_string(params, '$.fold') IS NULL
QUALIFY row_number() OVER (PARTITION BY metric ORDER BY analysis_id DESC) = 1
"""
CHANGES = ("write_error", "kept_mass", "js")
GAPS = "at every gap between the two places (`analyse roles`, repeated random words)"
ROLES = {
    "previous-token": f"mean attention to the token just before is at least {THRESHOLD:g} (`analyse roles`)",
    "induction": f"gives the token after the same token's earlier place at least {THRESHOLD:g}, {GAPS}",
    "duplicate-token": f"gives the same token's earlier place at least {THRESHOLD:g}, {GAPS}",
    "not judged": "the policy drops targets of this score, so a longer reach might have shown the role",
    "fixed-offset": f"scores at least {THRESHOLD:g} at one gap, less than {THRESHOLD / 4:g} at all others: looks back "
    "by a fixed number of tokens",
    "depends on the gap": f"scores at least {THRESHOLD:g} at some gap, but not at every one",
    "retrieval": f"retrieval score over {RETRIEVAL:g} (strong: over 0.5): share of the answer's tokens that it reads "
    "most in the needle while they are produced (Wu et al., arXiv 2404.15574)",
    "dormant": f"gives the first token more than {DORMANT:g} on prose and on code (Guo et al., arXiv 2410.13835)",
    "active–dormant": f"mass on the first token differs by more than {APART:g} between prose and code",
}


def statistics(source: Source, rows: str, at: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """The statistics of a head in A and B, and over which rows they are: as asked where they are stored, else all.

    `at` has `a`, `b`, `prompt`, `layer` and `head`.
    """
    found = source.records(TABLE, over_rows=rows, **at)
    if rows != "all" and all(row["n_rows"] is None for row in found):
        return statistics(source, "all", at)
    return rows, found


def defined(name: str, *definition: str) -> Any:
    """A name that opens to its definition, by pointer, touch or key."""
    said = [html.P(line.replace("`", ""), className="note") for line in definition if line]
    return html.Details([html.Summary(name), *said], className="defined") if said else name


def statistics_figure(rows: list[dict[str, Any]]) -> Any:
    """The table of statistics of A and B; a name opens to its definition."""
    body = [
        _line(defined(_words(row["statistic"]), meaning("head_stats", row["statistic"])), row)
        for row in rows
        if row["a"] is not None or row["b"] is not None
    ]
    return _table(("statistic", "A", "B", "B − A"), body)


def damage_figure(rows: list[dict[str, Any]]) -> Any:
    """What this head changed between A and B, by scope and rows; the names of the columns open to definitions."""
    top = [html.Th("scope · rows", scope="col"), html.Th("n", scope="col")]
    top += [html.Th(_words(name), scope="col") for name in CHANGES]
    body = [
        html.Tr(
            [
                html.Th(f"{row['scope']} · {row['rows']}", scope="row"),
                html.Td(row["n_rows"]),
                *[html.Td(number(row[name])) for name in CHANGES],
            ]
        )
        for row in rows
    ]
    about = [f"{_words(name)}: {meaning('diffs', name)}." for name in CHANGES]
    about.append("In end_to_end the kept mass is of B's own q and k, as in the statistics; else of A's.")
    scopes = "Scope: " + meaning("diffs", "scope") + ". n: query rows."
    return html.Div(
        [
            html.Table([html.Thead(html.Tr(top)), html.Tbody(body)], className="numbers"),
            defined("What the columns mean", *about, scopes),
        ]
    )


def scores_figure(rows: list[dict[str, Any]]) -> list[Any]:
    """A table of scores for each analysis, the first two open; every name opens to definition, rows, prompts and n."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["analysis"], []).append(row)
    return [
        html.Details(
            [
                html.Summary(
                    [analysis, html.Span(f" {len(found)} score{'s'[: len(found) > 1]}", className="note")]
                ),
                html.Div(_scores_table(found), className="scroll"),
            ],
            open=place < 2,
            className="group",
        )
        for place, (analysis, found) in enumerate(groups.items())
    ]


def _scores_table(rows: list[dict[str, Any]]) -> Any:
    body = []
    for row in rows:
        fold = f", ranked for fold {row['fold']}" if row["fold"] is not None else ""
        over = [f"{name.upper()}: n {_n(row, name)}" for name in ("a", "b") if row[name] is not None]
        where = (
            f"Rows {row['rows'] or 'not said'}; prompts {row['prompt_set'] or 'not said'}. {'; '.join(over)}."
        )
        name = defined(_words(row["metric"]) + fold, row["definition"] or "No definition is stored.", where)
        change = None if None in (row["a"], row["b"]) else row["b"] - row["a"]
        n = next((_n(row, name) for name in ("b", "a") if row[name] is not None), "")
        line = _line(name, {**row, "change": change}, intervals=True)
        body.append(html.Tr([*line.children, html.Td(n, className="note")]))
    return _table(("score", "A", "B", "B − A", "n"), body)


def _n(row: dict[str, Any], side: str) -> str:
    if row[f"{side}_n"] is None:
        return "not stored"
    groups = row[f"{side}_groups"]
    return f"{row[f'{side}_n']:.0f}" + (f" in {groups:.0f} groups" if groups is not None else "")


def _line(name: Any, row: dict[str, Any], *, intervals: bool = False) -> Any:
    cells = []
    for side in ("a", "b"):
        low, high = (row[f"{side}_{end}"] if intervals else None for end in ("low", "high"))
        interval = None if low is None or high is None else f"[{number(low)}, {number(high)}]"
        cells.append(html.Td([number(row[side]), html.Span(interval, className="interval")]))
    change = row["change"]
    cells.append(html.Td(number(change), className="rising" if (change or 0) > 0 else "falling"))
    return html.Tr([html.Th(name, scope="row"), *cells])


def _table(names: tuple[str, ...], body: list[Any]) -> Any:
    top = html.Tr([html.Th(word, scope="col") for word in names])
    return html.Table([html.Thead(top), html.Tbody(body)], className="numbers")


def _words(name: str) -> str:
    return name.replace("_", " ")


def head_roles(source: Source, run: str, layer: int, head: int) -> list[str]:
    """The labels of a head on the scores of a run; empty where `analyse roles` was not run."""
    found = source.records(ROLE_SCORES, run=run, layer=layer, head=head)
    return labels({row["metric"]: row["value"] for row in found})


def role_chips(side: str, found: list[str]) -> list[Any]:
    """Roles as chips that open to their rule, with whose scores they are."""
    return [
        html.Details(
            [
                html.Summary(f"{label} ({side})"),
                html.P(f"{label}: {_rule(label)}. On the scores of {side}.", className="note"),
            ],
            className="role",
        )
        for label in found
    ]


def _rule(label: str) -> str:
    named = sorted((name for name in ROLES if label.startswith(name)), key=len)
    return ROLES[named[-1]] if named else "a label of `analyse roles`"
