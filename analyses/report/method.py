"""The end of a report: definitions, intervals and what to distrust, so that the page stands alone."""

from __future__ import annotations

from sparselens.analyses.interval import DRAWS
from sparselens.analyses.report.data import Evidence
from sparselens.analyses.report.fidelity import NEEDLES, TASK
from sparselens.analyses.report.head import WHERE
from sparselens.analyses.report.loss import PRESERVED
from sparselens.analyses.report.page import Block, Paragraph, Section, Table, Verbatim, Words
from sparselens.analyses.report.sink import TOLD
from sparselens.analyses.report.study import PART

_DEFINITIONS = (
    (
        "density",
        "Σ kept (query, key) pairs ÷ Σ allowed pairs, token-exact; density_computed counts the tiles that were touched",
    ),
    (
        "NLL",
        "−ln probability, nats; mean over a prompt's tokens (its answer's for answer NLL), then over prompts",
    ),
    (
        "KL(base ‖ run)",
        "divergence of the next-token distributions on the same tokens, nats; affected rows: rows in which some head "
        "dropped an allowed key",
    ),
    (
        "answered, teacher-forced",
        "every token of the answer is the most probable one, given the answer's earlier tokens",
    ),
    ("answered, generating", "greedy decoding from the prompt without its answer writes the answer"),
    (
        "write_error",
        "mean over rows of ‖W_O^h (z_b − z_a)‖ ÷ the layer's mean ‖attention output‖ of the base",
    ),
    (
        "scopes",
        "end_to_end: as both ran; local_mask: the run's selection on the base's q and k; local_policy: the policy "
        "asked again there; never mixed",
    ),
    (
        "kept mass",
        "mean mass of the base's pattern on the keys the run keeps; no sink: the first token left out of both sides",
    ),
    ("JS", "mean Jensen-Shannon divergence of the two patterns of a row, nats"),
    ("top-8 overlap", "mean share of the base's 8 strongest keys of a row among the run's 8"),
    (
        "gap closed",
        "(loss of the run − loss with the heads given back) ÷ (loss of the run − loss of the base), "
        "answer NLL; 100 %: as the base",
    ),
    ("over random", "gap closed (or rise) minus the mean of random heads, as many in each layer"),
    ("rise of answer NLL", "answer NLL with the heads cut minus answer NLL without cutting, nats a token"),
)


def method(evidence: Evidence) -> Section:
    """Return the section that lets the page stand alone: definitions, rows, intervals, what to distrust."""
    rows: list[tuple[Words, Words]] = list(_DEFINITIONS)
    if evidence.rows:
        rows.insert(6, ("rows", f"heads are ranked on {WHERE[evidence.rows]} ({evidence.rows})"))
    rows += [(Verbatim(metric), Verbatim(text)) for metric, text in _stored(evidence).items()]
    told = [("sinks", metric) for metric in TOLD] + [(TASK, metric) for metric in NEEDLES]
    there = {(row["analysis"], row["metric"]) for found in evidence.evals.values() for row in found}
    rows += [
        (f"{metric} ({name})", Verbatim(evidence.definitions[name, metric]))
        for name, metric in told
        if (name, metric) in there and (name, metric) in evidence.definitions
    ]
    clusters = {row["cluster"] for row in evidence.prompts.values()}
    few = (
        f" There are {len(clusters)} clusters here: below about ten, such intervals are too narrow."
        if len(clusters) < 10
        else ""
    )
    blocks: list[Block] = [
        Table("Definitions", ("word", "meaning"), rows),
        Paragraph(
            f"Intervals are 95 % percentile bootstraps ({DRAWS:,} draws) over whole clusters (template or needle"
            " family), paired by prompt; prompts weigh equally. A number without brackets has fewer than two"
            f" clusters.{few}"
        ),
        Paragraph(
            f"A head is called preserved where its whole interval lies under {PRESERVED:g}, changed where it lies"
            " over it; the others are not told apart. Intervals of single heads are not corrected for looking at"
            " all heads: the first of a ranking are flattered."
        ),
        Paragraph(
            f"The sentence at the top takes the ranking by write_error where there is one, and the largest set of"
            f" at most one head in {PART}. Changes are run − base. All numbers were read from the tables of the trace;"
            " no model ran for this page."
        ),
    ]
    return Section("method", "How it was measured", blocks)


def _stored(evidence: Evidence) -> dict[str, str]:
    """Return the definitions that intervention and role rows brought with them."""
    found: dict[str, str] = {}
    every = [*evidence.interventions.values(), *evidence.head_scores.values()]
    for row in (row for rows in every for row in rows):
        if row["definition"] and (
            row.get("kind") or (row["metric"] in _ROLES and row["analysis"] != "sinks")
        ):
            found.setdefault(row["metric"], row["definition"])
    return dict(sorted(found.items()))


_ROLES = ("retrieval", "induction", "previous_token", "duplicate_token", "sink_rate", "sink_alpha")
