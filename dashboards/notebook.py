"""What the public face calls for `run.heads()`, `diff.grid()` and `head.view()`: names in, figures out."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from sparselens.dashboards.export import draw
from sparselens.dashboards.export.asked import asked, base_of, member, run_named, score_named
from sparselens.dashboards.export.figure import Figure
from sparselens.dashboards.export.head_view import HeadView, head_view
from sparselens.dashboards.head.heatmap import LENGTH
from sparselens.dashboards.heads.score import DIFFS, preferred, scores
from sparselens.dashboards.metric import DIFF_METRICS
from sparselens.dashboards.query import Source

THEMES = ("light", "dark")


@lru_cache(maxsize=8)
def _source(trace: Path) -> Source:
    return Source(trace)


def run_heads(
    trace: str | Path,
    run: str,
    metric: str = "",
    *,
    prompt: str = "",
    rows: str = "",
    scope: str = "",
    theme: str = "light",
) -> Figure:
    """Return the layer × head grid of a score of one run, or of what it changed against its base (`diffs.*`).

    `metric` is `table.metric` as on the pages, or the metric alone; without it, the first that the run has. Numbers of
    the capture are means over all prompts unless one is given. Raises ValueError that lists what there is.
    """
    member("theme", theme, THEMES)
    source = _source(Path(trace).resolve())
    row = run_named(source, run)
    base = base_of(source, row)
    wants_base = metric.startswith(f"{DIFFS}.") or metric in DIFF_METRICS[:1]
    pair = (base, row["run_id"]) if wants_base and base else (row["run_id"], "")
    over = "prompt" if prompt else "all"
    settled = asked(source, *pair, prompt=prompt, rows=rows, scope=scope, over=over)
    name = metric or preferred(scores(source, *pair), "", ())
    score, side = score_named(source, settled, name)
    return draw.heads(source, settled, score, side, theme)


def pair_grid(
    trace: str | Path,
    a: str,
    b: str,
    metric: str = "write_error",
    *,
    prompt: str = "",
    rows: str = "",
    scope: str = "",
    theme: str = "light",
) -> Figure:
    """Return the layer × head grid of what B changed against A: a metric of `diffs`, or B − A of any other score.

    Means over all prompts unless one is given; `rows` are the answer's where there are any, else the affected ones.
    Raises ValueError that lists what there is.
    """
    member("theme", theme, THEMES)
    source = _source(Path(trace).resolve())
    over = "prompt" if prompt else "all"
    fields: dict[str, Any] = {"prompt": prompt, "rows": rows, "scope": scope, "over": over}
    name = metric.removeprefix(f"{DIFFS}.")
    if name in DIFF_METRICS:
        return draw.grid(source, asked(source, a, b, metric=name, **fields), theme)
    settled = asked(source, a, b, **fields)
    score, side = score_named(source, settled, metric, "diff")
    return draw.heads(source, settled, score, side, theme)


def show_head(
    trace: str | Path,
    run: str,
    head: str,
    *,
    against: str = "",
    prompt: str = "",
    query: int | None = None,
    theme: str = "light",
) -> HeadView:
    """Return the view of a head (`L18H6`) of a run on one prompt: text, keys of a query, maps, beside another run.

    `against` is the run beside it, its own base unless said. `query` is a position; without it the row that predicts
    the answer, else the last. Raises ValueError that says what there is.
    """
    member("theme", theme, THEMES)
    source = _source(Path(trace).resolve())
    row = run_named(source, run)
    base = against or base_of(source, row)
    pair = (base, row["run_id"]) if base else (row["run_id"],)
    settled = asked(source, *pair, head=head, prompt=prompt, q=query)
    length = source.first(LENGTH, prompt=settled.selection.prompt).get("n") or 0
    if query is not None and not 0 <= query < length:
        raise ValueError(f"no query {query}: the prompt has {length} tokens, 0 to {length - 1}")
    return head_view(source, settled, theme)
