"""What a figure is of, in words: model, runs and policies, prompt, rows, scope, n."""

from __future__ import annotations

import re
from typing import Any

from sparselens.dashboards.choice import SCOPES
from sparselens.dashboards.head.heatmap import how
from sparselens.dashboards.head.pattern import Cells
from sparselens.dashboards.head.weigh import VALUE
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import percent, verified

RUN = """
SELECT r.*, (SELECT avg(density) FROM head_stats h WHERE h.run_id = r.run_id AND h.pattern = 'executed'
             AND h.rows = 'all' AND ($over = 'all' OR h.prompt_id = $prompt)) AS density
FROM runs r WHERE r.run_id = $run
"""
PROMPT = "SELECT name, n_tokens FROM prompts WHERE prompt_id = $prompt"

LONGEST = 64
"""Letters of a policy's call in a title."""


def runs_caption(source: Source, selection: Selection) -> str:
    """The runs: model, and of A and B the policy, its density, whether it is verified."""
    told = {side: run_of(source, selection, side) for side in ("a", "b") if getattr(selection, side)}
    models = sorted({str(row.get("model")) for row in told.values()})
    where = "in this prompt" if selection.over == "prompt" else "over all prompts"
    names = {"a": "A" if selection.b else "Run", "b": "B"}
    words = [f"{names[side]}: {_run(row, where, named=len(models) > 1)}." for side, row in told.items()]
    return " ".join([f"Model {models[0]}.", *words] if len(models) == 1 else words)


def run_of(source: Source, selection: Selection, side: str) -> dict[str, Any]:
    """The `runs` row of a side, with its density over the prompts that are looked at."""
    asked = {"run": getattr(selection, side), "over": selection.over, "prompt": selection.prompt}
    return source.kept(f"run of a caption {asked}", lambda: source.first(RUN, **asked))


def policy_of(row: dict[str, Any]) -> str:
    """What a run is called in a sentence: its policy, else its name."""
    return str(row.get("policy") or row.get("name") or row.get("run_id"))


def _run(row: dict[str, Any], where: str, *, named: bool) -> str:
    words = [policy_of(row), f"{percent(row.get('density'))} of allowed pairs kept {where}", verified(row)]
    if named:
        words.insert(0, str(row.get("model")))
    if row.get("off_label"):
        words.append("off-label")
    return ", ".join(words)


def prompt_caption(source: Source, selection: Selection) -> str:
    """The prompt by name, id and length."""
    row = source.first(PROMPT, prompt=selection.prompt)
    name = row.get("name")
    known = f"{name} ({selection.prompt})" if name else selection.prompt
    return f"Prompt {known}, {row.get('n_tokens') or 0} tokens."


def cells_caption(cells: Cells, weigh: str) -> str:
    """How the cells of a map came about, and what is left out of them."""
    said = re.sub(r" Zoom to [^.]*\.", "", how(cells, weigh))
    return said if weigh == VALUE else f"{said} Cells sum over all keys: no mass is left out."


def over_caption(selection: Selection, prompts: int, rows: int) -> str:
    """What the numbers of a pair are over: scope, query rows, prompts."""
    scope = f"{selection.scope} ({SCOPES[selection.scope]})" if selection.scope in SCOPES else selection.scope
    mean = "this prompt" if selection.over == "prompt" else f"means over {prompts} prompts"
    return f"Scope {scope}; rows {selection.rows}, {rows} query rows a head; {mean}."


def pair_title(source: Source, selection: Selection) -> str:
    """The pair in a title: `B against A` by their policies, or the only run."""
    a, b = (shorten(policy_of(run_of(source, selection, side))) for side in ("a", "b"))
    return f"{b} against {a}" if selection.b else a


def shorten(name: str) -> str:
    """A policy's call as a title can hold it; captions hold all of it."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
