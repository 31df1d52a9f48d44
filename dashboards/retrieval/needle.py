"""The needle grid: what became of each answer by family, depth and length, in A and in B."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dash import html

from sparselens.dashboards.colour import level
from sparselens.dashboards.verdict import number

NEEDLES = """
WITH asked AS (
  SELECT p.prompt_id, p.name, coalesce(json_extract_string(p.metadata, '$.family'), p.grp, 'needles') AS family,
         coalesce(TRY_CAST(json_extract_string(p.metadata, '$.depth') AS DOUBLE),
                  round(n.start / p.n_tokens, 1)) AS depth,
         coalesce(TRY_CAST(json_extract_string(p.metadata, '$.length') AS INTEGER), p.n_tokens) AS length,
         a.start, a.stop
  FROM prompts p JOIN spans n ON n.prompt_id = p.prompt_id AND n.name = 'needle'
  JOIN spans a ON a.prompt_id = p.prompt_id AND a.name = 'answer'
  WHERE p.prompt_id IN (SELECT prompt_id FROM run_prompts WHERE run_id = $a)
    AND ($b IS NULL OR p.prompt_id IN (SELECT prompt_id FROM run_prompts WHERE run_id = $b))
), said AS (
  SELECT x.run_id, q.prompt_id, avg(x.nll) AS nll, bool_and(x.top1_id = t.token_id) AS forced
  FROM asked q JOIN predictions x ON x.prompt_id = q.prompt_id AND x.pos >= q.start AND x.pos < q.stop
  LEFT JOIN tokens t ON t.prompt_id = q.prompt_id AND t.pos = x.pos
  WHERE x.run_id IN ($a, $b) GROUP BY ALL
), wrote AS (
  SELECT run_id, prompt_id, max(value) = 1 AS wrote FROM prompt_scores
  WHERE run_id IN ($a, $b) AND metric = 'answer_generated' GROUP BY ALL
)
SELECT q.prompt_id, q.name, q.family, q.depth, q.length,
       max(s.nll) FILTER (s.run_id = $a) AS nll_a, max(s.nll) FILTER (s.run_id = $b) AS nll_b,
       bool_or(s.forced) FILTER (s.run_id = $a) AS forced_a, bool_or(s.forced) FILTER (s.run_id = $b) AS forced_b,
       bool_or(w.wrote) FILTER (s.run_id = $a) AS wrote_a, bool_or(w.wrote) FILTER (s.run_id = $b) AS wrote_b
FROM asked q JOIN said s USING (prompt_id) LEFT JOIN wrote w USING (run_id, prompt_id)
GROUP BY ALL ORDER BY q.family, q.depth, q.length, q.name
"""
ANSWER = """
SELECT string_agg(t.text, '' ORDER BY t.pos) AS answer,
       (SELECT string_agg(text, '' ORDER BY step) FROM generations WHERE run_id = $a AND prompt_id = $prompt) AS a,
       (SELECT string_agg(text, '' ORDER BY step) FROM generations WHERE run_id = $b AND prompt_id = $prompt) AS b
FROM tokens t JOIN spans s ON s.prompt_id = t.prompt_id AND s.name = 'answer' AND t.pos >= s.start AND t.pos < s.stop
WHERE t.prompt_id = $prompt
"""
SIDES = {"a": "A", "b": "B", "diff": "B − A"}


@dataclass(frozen=True)
class Cell:
    """The prompts of one family (or all), depth and length: mean loss and answered prompts by side."""

    prompts: tuple[dict[str, Any], ...]

    def loss(self, side: str) -> float | None:
        """Mean answer NLL in nats a token; of `diff` B − A."""
        if side == "diff":
            a, b = self.loss("a"), self.loss("b")
            return None if a is None or b is None else b - a
        found = [row[f"nll_{side}"] for row in self.prompts if row[f"nll_{side}"] is not None]
        return sum(found) / len(found) if found else None

    def answered(self, side: str) -> tuple[int, int]:
        """How many prompts are answered in `a` or `b`, of how many."""
        found = [answered(row, side) for row in self.prompts]
        known = [each for each in found if each is not None]
        return sum(known), len(known)

    def share(self, side: str) -> float | None:
        """Share of answered prompts; of `diff` B − A."""
        if side == "diff":
            a, b = self.share("a"), self.share("b")
            return None if a is None or b is None else b - a
        right, n = self.answered(side)
        return right / n if n else None


def answered(row: dict[str, Any], side: str) -> bool | None:
    """Whether a prompt was answered: as generated where the trace has it, else teacher-forced."""
    wrote = row[f"wrote_{side}"]
    found = row[f"forced_{side}"] if wrote is None else wrote
    return None if found is None else bool(found)


def verdict(rows: Sequence[dict[str, Any]], *, pair: bool) -> str:
    """Answers and their loss in A and B over all needles, in one sentence."""
    whole = Cell(tuple(rows))
    words = []
    for side in ("a", "b") if pair else ("a",):
        right, n = whole.answered(side)
        words.append(
            f"{SIDES[side]} answers {right} of {n} needles, answer NLL {number(whole.loss(side), 2)}"
        )
    return "; ".join(words) + "."


def how(rows: Sequence[dict[str, Any]]) -> str:
    """How an answer was judged."""
    written = sum(row["wrote_a"] is not None for row in rows)
    if written == len(rows):
        return "Answered: the generated tokens are the answer's."
    if not written:
        return (
            "Answered: every token of the answer is the most probable one, given the others (teacher-forced; "
            "capture with --generate 8 lets the model answer)."
        )
    return f"Answered: as generated in {written} of {len(rows)} prompts, teacher-forced in the others."


def needle_table(rows: Sequence[dict[str, Any]], shown: str, chosen: str, *, pair: bool) -> Any:
    """The grid as a table: a row a family and depth, a column a side and length, a button a prompt.

    `shown` is `nll` or `answered`; both sides share one scale.
    """
    sides = ("a", "b", "diff") if pair else ("a",)
    lengths = sorted({row["length"] for row in rows})
    families = sorted({row["family"] for row in rows})
    high = max((row[f"nll_{side}"] or 0 for row in rows for side in ("a", "b")), default=0.0) or 1.0
    top = [
        html.Tr(
            [
                html.Th("", colSpan=2),
                *[html.Th(SIDES[side], colSpan=len(lengths), scope="colgroup") for side in sides],
            ]
        ),
        html.Tr(
            [
                html.Th("family", scope="col"),
                html.Th("depth", scope="col"),
                *[html.Th(str(length), scope="col", title="tokens") for _ in sides for length in lengths],
            ]
        ),
    ]
    groups = [("all families", list(rows))] if len(families) > 1 else []
    groups += [(family, [row for row in rows if row["family"] == family]) for family in families]
    bodies = []
    for family, mine in groups:
        depths = sorted({row["depth"] for row in mine})
        lines = []
        for depth in depths:
            cells = [
                _cell(
                    Cell(tuple(row for row in mine if (row["depth"], row["length"]) == (depth, length))),
                    side, shown, high, chosen, f"{family}, depth {depth:g}, {length} tokens",
                    whole=family == "all families",
                )
                for side in sides
                for length in lengths
            ]  # fmt: skip
            name = [html.Th(family, rowSpan=len(depths), scope="rowgroup")] if depth == depths[0] else []
            lines.append(html.Tr([*name, html.Th(f"{depth:g}", scope="row"), *cells]))
        bodies.append(html.Tbody(lines))
    return html.Table([html.Thead(top), *bodies], className="numbers needles")


def _cell(cell: Cell, side: str, shown: str, high: float, chosen: str, about: str, *, whole: bool) -> Any:
    """One cell: its number and mark on the scale's colour, a button that selects its prompt."""
    value = cell.loss(side) if shown == "nll" else cell.share(side)
    if value is None:
        return html.Td(className="empty", **{"aria-label": f"{about}: no prompt"})
    top = high if shown == "nll" else 1.0
    step = level(value, -top if side == "diff" else 0.0, top) or 0
    kind = "div" if side == "diff" else "seq"
    mark = "" if side == "diff" else _mark(*cell.answered(side))
    said = mark if shown == "answered" and side != "diff" else _two(value)
    text = f"{said} {mark}" if shown == "nll" and mark else said
    label = f"{about}, {SIDES[side]}: {_spoken(cell, side)}"
    style = {"background": f"var(--{kind}-{step})", "color": f"var(--on-{kind}-{step})"}
    if whole:
        return html.Td(html.Span(text, className="needle", style=style, title=label))
    here = any(row["prompt_id"] == chosen for row in cell.prompts)
    picked = chosen if here else cell.prompts[0]["prompt_id"]
    go = json.dumps({"prompt": picked, "q": None, "qs": None, "ks": None})
    current = {"aria-current": "true"} if here else {}
    return html.Td(
        html.Button(
            text,
            type="button",
            className="needle",
            style=style,
            title=label,
            **{
                "data-go": go,
                "aria-label": label,
                **current,
            },
        )
    )


def _two(value: float) -> str:
    """A number with two digits, and no minus before nothing."""
    return f"{0.0 if abs(value) < 0.005 else value:.2f}".replace("-", "−")


def _mark(right: int, n: int) -> str:
    if n == 1:
        return "✓" if right else "✗"
    return f"{right}/{n}" if n else ""


def _spoken(cell: Cell, side: str) -> str:
    words = f"answer NLL {number(cell.loss(side), 3)}"
    if side == "diff":
        return words
    right, n = cell.answered(side)
    return f"{words}, answered {right} of {n}"
