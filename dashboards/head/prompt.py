"""The prompts on which one head changes most, and least, between A and B."""

from __future__ import annotations

import json
from typing import Any

from dash import Dash, Input, html

from sparselens.dashboards.drawing import drawn, place, tree
from sparselens.dashboards.head.number import defined
from sparselens.dashboards.metric import meaning
from sparselens.dashboards.page import chosen, message, panel, part, problem
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import number

PROMPTS = """
WITH changed AS (
  SELECT prompt_id, max(n_rows) FILTER (scope = $scope) AS n_rows,
         max(write_error) FILTER (scope = $scope) AS write_error,
         max(kept_mass) FILTER (scope = 'local_mask') AS kept_mass
  FROM diffs WHERE run_a = $a AND run_b = $b AND scope IN ($scope, 'local_mask') AND rows = $rows
    AND layer = $layer AND head = $head
  GROUP BY prompt_id
), placed AS (
  SELECT *, count(*) OVER () AS n, row_number() OVER (ORDER BY write_error DESC, prompt_id) AS place
  FROM changed WHERE write_error IS NOT NULL
), found AS (SELECT * FROM placed WHERE place <= $most OR place > n - $most)
SELECT f.*, coalesce(p.name, f.prompt_id) AS name, p.n_tokens,
       max(s.write_norm) FILTER (s.run_id = $a) AS norm_a, max(s.write_norm) FILTER (s.run_id = $b) AS norm_b
FROM found f LEFT JOIN prompts p USING (prompt_id)
LEFT JOIN head_stats s ON s.prompt_id = f.prompt_id AND s.run_id IN ($a, $b) AND s.pattern = 'executed'
  AND s.rows = $rows AND s.layer = $layer AND s.head = $head
GROUP BY ALL ORDER BY place
"""
MOST = 5
PROMPT_FIELDS = part("a", "b", "prompt", "layer", "head", "scope", "rows")


def prompts_panel() -> Any:
    """The panel before anything is drawn in it; it is filled when it comes into view."""
    return panel(
        "Best prompts",
        place("head-prompts", **{"data-seen": "seen-prompts"}),
        note="where this head changes most, and least",
        name="panel-prompts",
    )


def prompts_figure(rows: list[dict[str, Any]], selection: Selection) -> list[Any]:
    """The table of the prompts, most changed first; a name opens the prompt for the same head."""
    n = rows[0]["n"]
    top = [
        html.Th(words, scope="col")
        for words in ("prompt", "n rows", "write error", "A's mass kept", "‖write‖ A → B")
    ]
    body = []
    for before, row in zip([None, *rows[:-1]], rows, strict=True):
        if before is not None and row["place"] > before["place"] + 1:
            left = row["place"] - before["place"] - 1
            body.append(html.Tr(html.Td(f"… {left} prompts between …", colSpan=5, className="note")))
        go = {"prompt": row["prompt_id"], "q": None, "qs": None, "ks": None}
        link = html.Button(
            row["name"],
            type="button",
            className="link",
            title=f"Open this prompt, {row['n_tokens']} tokens, for {selection.head_name}",
            **{"data-go": json.dumps(go)}
            | ({"aria-current": "true"} if row["prompt_id"] == selection.prompt else {}),
        )
        cells = [row["n_rows"], number(row["write_error"]), number(row["kept_mass"])]
        cells.append(f"{number(row['norm_a'], 2)} → {number(row['norm_b'], 2)}")
        body.append(html.Tr([html.Th(link, scope="row"), *[html.Td(cell) for cell in cells]]))
    many = f"{n} prompts have" if n > 1 else "One prompt has"
    said = f"{many} rows {selection.rows} in scope {selection.scope}; by write error."
    return [
        html.P(said, className="note"),
        html.Div(
            html.Table([html.Thead(html.Tr(top)), html.Tbody(body)], className="numbers prompts"),
            className="scroll",
        ),
        defined(
            "What the columns mean",
            f"write error: {meaning('diffs', 'write_error')}.",
            f"A's mass kept: {meaning('diffs', 'kept_mass')}; scope local_mask.",
            f"‖write‖: {meaning('head_stats', 'write_norm')}.",
        ),
    ]


def register_prompts(app: Dash, source: Source) -> None:
    """Wire the panel to the selection."""

    def draw(data: dict[str, Any] | None, seen: bool | None) -> Any:
        selection = chosen(data)
        if selection is None or not seen or selection.layer is None:
            return None
        names = ("a", "b", "layer", "head", "scope", "rows")
        asked = {name: getattr(selection, name) for name in names}
        try:
            rows = source.records(PROMPTS, most=MOST, **asked)
        except SourceError as found:
            return tree(problem(found))
        if not rows:
            said = f"No differences over rows {selection.rows} are stored for this pair and head."
            return tree(message(said))
        return tree(prompts_figure(rows, selection))

    app.callback(drawn("head-prompts"), Input(PROMPT_FIELDS, "data"), Input("seen-prompts", "data"))(draw)
