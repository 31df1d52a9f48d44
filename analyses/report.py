"""`report BASE RUN…`: what each policy changed, in sentences with numbers, intervals and what they are over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparselens.analyses.comparison import Comparison
from sparselens.analyses.interval import Interval
from sparselens.analyses.runs import find_run
from sparselens.storage.reader import connect

TOP = 8
WRITE_ERROR = (
    "write_error: mean over rows of ‖W_O^h (z_b − z_a)‖ ÷ the layer's mean ‖attention output‖ of the base"
)


def report(trace: str | Path, base: str, runs: Sequence[str], *, top: int = TOP) -> str:
    """Return the report as text; runs are ids, names or policies. Raises `ValueError` for one that does not exist."""
    with connect(trace) as connection:
        a = find_run(connection, base)
        sections = []
        for name in runs:
            b = find_run(connection, name)
            if b["run_id"] == a["run_id"]:
                raise ValueError(f"{name!r} is the base itself: give another run")
            sections.append(_section(Comparison(connection, a, b), top))
    return "\n\n".join(sections)


def _section(comparison: Comparison, top: int) -> str:
    a, b = comparison.a, comparison.b
    lines = [f"{b['policy']} against {a['policy']} on {a['model']}", *_ran(comparison), *_losses(comparison)]
    lines += _heads(comparison, top)
    return "\n".join(lines)


def _ran(comparison: Comparison) -> list[str]:
    b = comparison.b
    found = comparison.ask("density", run=b["run_id"]).to_pylist()[0]
    checks = [b["verify_kernel"], b["verify_logits"], b["verify_calls"]]
    verified = (
        f"verified {checks.count(True)}/3" if any(check is not None for check in checks) else "not verified"
    )
    if False in checks:
        verified += " — A CHECK FAILED, do not trust this run"
    density = "unknown" if found["density"] is None else f"{found['density']:.1%}"
    words = [
        f"  It kept {density} of the allowed pairs ({b['phase']}, kernel {b['kernel']}, {b['dtype']};"
        f" {found['n_prompts']} prompts; {verified})."
    ]
    if b["off_label"]:
        words.append(
            "  Off-label: the paper trained the model with this policy; here the weights are as they were."
        )
    if b["lookahead"]:
        words.append(
            "  Look-ahead: which keys a row kept may depend on later tokens, the answer's among them."
        )
    if b["dense_call_share"] and b["dense_call_share"] > 0:
        words.append(
            f"  {b['dense_call_share']:.0%} of the attention calls ran dense (phase or dense_below)."
        )
    if b["status"] != "complete":
        words.append(f"  The run is {b['status']}: these are the prompts it has.")
    return words


def _losses(comparison: Comparison) -> list[str]:
    lines = []
    answer = comparison.score("answer_nll")
    if answer is not None:
        before, after, change = answer
        lines.append(
            f"  Answer NLL {before.mean:.3g} → {after.mean:.3g} nats a token: change {change} ({_over(change)})."
        )
    ways = (("answer_generated", "answered when generating"), ("answer_forced", "answered teacher-forced"))
    for metric, what in ways:
        counted = comparison.score(metric)
        if counted is not None:
            before, after, _ = counted
            lines.append(
                f"  Prompts {what}: {before.mean * before.n:.0f} → {after.mean * after.n:.0f} of {before.n}."
            )
    affected, whole = comparison.token_change("kl_affected"), comparison.token_change("kl_all")
    if whole.n:
        lines.append(
            f"  Next-token KL(base ‖ run): {affected} nats on affected rows (some head dropped a key there),"
            f" {whole} over the whole text ({_over(whole)})."
        )
    change = comparison.token_change("nll_change")
    if change.n:
        lines.append(f"  Whole-text NLL changed by {change} nats a token.")
    return lines


def _heads(comparison: Comparison, top: int) -> list[str]:
    rows = comparison.rows_that_matter()
    if rows is None:
        return ["  No per-head differences are stored: run `sparselens diff`, or capture both runs together."]
    heads = [head for head in comparison.heads(rows, top) if head["write_error"] is not None]
    if not heads:
        return ["  What heads write was not compared: the runs were captured apart."]
    where = {"span:answer": "the rows that predict the answer", "affected": "rows where they dropped a key"}
    lines = [f"  Heads that changed most what they write on {where.get(rows, rows)} ({WRITE_ERROR}):"]
    for head in heads:
        error = comparison.write_error(rows, head["layer"], head["head"])
        kept = (
            f"kept {head['kept_mass']:.0%} of the dense mass, {head['kept_mass_nosink']:.0%} without the sink"
        )
        roles = f"; {head['roles']}" if head["roles"] else ""
        lines.append(f"    {head['head_name']:<7} {error}   {kept}{roles}")
    if not any(head["roles"] for head in heads):
        lines.append("  Role scores of these heads are not in this trace.")
    return lines


def _over(interval: Interval) -> str:
    return f"95 % interval over {interval.n} prompts in {interval.n_clusters} clusters"
