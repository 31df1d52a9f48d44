"""The part of a report about repair: what giving heads back closes, what cutting them costs, against random heads."""

from __future__ import annotations

from collections.abc import Sequence

from sparselens.analyses.report.command import analyse
from sparselens.analyses.report.data import Evidence
from sparselens.analyses.report.number import NONE, interval, over, share
from sparselens.analyses.report.page import (
    Block,
    Cell,
    Heading,
    Missing,
    Paragraph,
    Section,
    Table,
    Verbatim,
    Words,
    filled,
)
from sparselens.analyses.report.study import (
    ABLATIONS,
    RANDOM,
    RESTORES,
    Study,
    Trial,
    headline,
    small,
    studies,
)
from sparselens.workbench.listing import written

_SHARES = ("first_token", "whole_answer", "density")


def repair(evidence: Evidence, called: dict[str, Verbatim]) -> Section:
    """Return the section: for each run its restores and ablations, and the commands for what was not tried."""
    several = len(evidence.runs) > 1
    blocks: list[Block] = _beside(evidence, called) if several else []
    for run in evidence.runs:
        own: list[Block] = []
        for kinds, metric in ((RESTORES, "gap_closed"), (ABLATIONS, "nll_rise")):
            for study in studies(evidence, run["run_id"], kinds):
                own += _study(evidence, study, kinds, metric)
        blocks += [Heading(called[run["run_id"]]), *own] if several and own else own
    return Section("repair", "Which heads repair it", [*blocks, *_untried(evidence)])


def _untried(evidence: Evidence) -> list[Block]:
    """Return the commands for the runs whose heads were not given back, or not cut."""
    untried = (
        (RESTORES, "restore", "Which heads repair it was not tried"),
        (ABLATIONS, "ablate", "What cutting heads costs was not tried"),
    )
    found: list[Block] = []
    for kinds, name, said in untried:
        missing = [run for run in evidence.runs if not studies(evidence, run["run_id"], kinds)]
        if missing:
            found.append(Missing(said, [analyse(evidence, name, run) for run in missing]))
    return found


def _beside(evidence: Evidence, called: dict[str, Verbatim]) -> list[Block]:
    """Return the restore of each run that the top sentence takes, run beside run."""
    rows: list[list[Words | Cell]] = []
    for run in evidence.runs:
        found = headline(evidence, run["run_id"])
        if found is not None:
            trial, random = found
            closed = [
                _cell(trial, "gap_closed"),
                _cell(random, "gap_closed"),
                _cell(trial, "gap_closed_over_random"),
            ]
            rows.append([called[run["run_id"]], str(trial.n_heads), trial.order_by or NONE, *closed])
    columns = ("run", "heads", "ranked by", "gap closed", "random heads", "over random")
    table = Table("The same question of each run", columns, rows, marks=(0.0, 1.0), scale="table")
    return [table] if rows else []


def _study(evidence: Evidence, study: Study, kinds: Sequence[str], metric: str) -> list[Block]:
    """Return one analysis: what it is over, its curves by number of heads, the heads."""
    closed = metric == "gap_closed"
    does = (
        "Share of the gap that heads given back close"
        if closed
        else "Rise of answer NLL when heads are cut in the base"
    )
    done = ", ".join(kind for kind in kinds if any(trial.kind == kind for trial in study.trials))
    captions = {
        metric: f"{does} ({done})",
        f"{metric}_over_random": "The same minus random heads, as many in each layer",
        "whole_answer": "Prompts answered, teacher-forced",
    }
    blocks: list[Block] = [Paragraph(_about(study)), *_notes(study)]
    for each, caption in captions.items():
        marks = (0.0, 1.0) if metric == each and closed else (0.0,)
        blocks += _curve(study, kinds, each, caption, marks)
    trials = [trial for trial in study.trials if trial.kind in kinds]
    n_layers, n_heads = evidence.size
    return [*blocks, *_lists(study, trials, n_layers * n_heads)]


def _about(study: Study) -> Words:
    """Return what a study is over, the losses between which it moved, and what was asked."""
    found: list[str | Verbatim] = []
    sizes = [trial.values["answer_nll"] for trial in study.trials if "answer_nll" in trial.values]
    said = over(sizes[0].n, sizes[0].n_clusters) if sizes else "prompts"
    found += [f"On {said} (", Verbatim(study.prompt_set), ")"]
    losses = {
        kind: control.values["answer_nll"]
        for kind in ("base", "none")
        if (control := study.control(kind)) is not None and "answer_nll" in control.values
    }
    if "base" in losses:
        found.append(f", answer NLL of the base {interval(losses['base'])}")
    if "none" in losses and losses["none"] != losses.get("base"):
        found.append(f", of the run {interval(losses['none'])}")
    if study.gap is not None:
        found.append(f", the gap {interval(study.gap)}")
    return (*found, ". Asked: ", Verbatim(f"{study.analysis}({written(study.args)})"))


def _notes(study: Study) -> list[Block]:
    """Return what was ranked on what, how the one-pass estimate did, and whether the gap is one."""
    found: list[Block] = []
    if not study.told:
        found.append(
            Paragraph("The gap cannot be told from 0: shares of it mean nothing. Choose a tighter policy.")
        )
    folds = study.extra.get("folds", [])
    if folds:
        said = "; ".join(
            f"{', '.join(map(str, fold['tested']))} ({fold['n_tested']} prompts)" for fold in folds
        )
        named = list(study.args.get("orders", ())) == ["given"]
        how = "given by name" if named else "ranked on other families than they are tested on"
        words = f"Heads were {how}. Tested, fold by fold: {said}."
        found.append(Paragraph(words, quiet=True))
    words = study.extra.get("estimate", {}).get("words")
    return [*found, Paragraph(Verbatim(words), quiet=True)] if words else found


def _curve(
    study: Study, kinds: Sequence[str], metric: str, caption: str, marks: tuple[float, ...]
) -> list[Block]:
    """Return a metric with a row for each number of heads and a column for each ranking; none where it is missing."""
    found = {
        (trial.kind, trial.n_heads, trial.order_by, trial.matched): trial
        for trial in study.trials
        if trial.kind in (*kinds, "policy") and metric in trial.values
    }
    orders = sorted({key[2:] for key in found if key[0] in kinds}, key=_place)
    if not orders:
        return []
    several = len({key[0] for key in found} - {"policy"}) > 1
    sizes = {key[:2] for key in found if key[0] in kinds}
    rows: list[list[Words | Cell]] = []
    for kind, n_heads in sorted(sizes, key=lambda each: (kinds.index(each[0]), each[1])):
        heads = f"{n_heads} head{'s' * (n_heads != 1)}"
        trials = [found.get((kind, n_heads, *order)) for order in orders]
        trials.append(found.get(("policy", n_heads, "", "")))
        rows.append([f"{kind}, {heads}" if several else heads, *_across(trials, metric)])
    draws = max((trial.n_draws for trial in study.trials), default=0)
    columns = ("", "density", *(_ordered(*order, draws) for order in orders), "all heads, wider policy")
    return [filled(Table(caption, columns, rows, marks=marks, scale="table"), NONE)]


def _across(trials: Sequence[Trial | None], metric: str) -> list[Words | Cell]:
    """Return the density of some trials and a metric of each."""
    density = [trial.values["density"].mean for trial in trials if trial and "density" in trial.values]
    return [share(density[0] if density else None), *(_cell(trial, metric) for trial in trials)]


def _place(order: tuple[str, str]) -> tuple[bool, bool, tuple[str, str]]:
    """Rankings in the order they are shown: by write_error, others, random."""
    return order[0] == RANDOM, order[0] != "write_error", order


def _ordered(order: str, matched: str, draws: int) -> str:
    if order != RANDOM:
        return f"by {order}" if order else "heads"
    layers = f", layers as by {matched}" if matched else ", layers matched"
    return f"random{layers}{f', mean of {draws} draws' if draws else ''}"


def _cell(trial: Trial | None, metric: str) -> Cell:
    """Return a metric of a trial with its interval: a share as a percentage, a loss in nats."""
    if trial is None or metric not in trial.values:
        return Cell(NONE)
    found = trial.values[metric]
    shares = metric.startswith("gap") or metric in _SHARES
    return Cell(interval(found, shares=shares, sign=not shares), found)


def _lists(study: Study, trials: Sequence[Trial], n_heads: int) -> list[Block]:
    """Return one set of each ranking, head by head; of folds, the heads that all of them chose."""
    rankings: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        if trial.order_by not in ("", RANDOM):
            rankings.setdefault((trial.kind, trial.order_by), []).append(trial)
    rows: list[list[Words | Cell]] = []
    for (kind, order), each in sorted(rankings.items(), key=lambda each: _place((each[0][1], ""))):
        chosen = small(each, n_heads)
        heads = "" if chosen is None else _which(study, chosen)
        if chosen is not None and heads:
            rows.append([f"by {order}", kind, str(chosen.n_heads), heads])
    columns = ("ranking", "what was done", "heads", "which")
    return [Table("The heads, in the order of their ranking", columns, rows)] if rows else []


def _which(study: Study, trial: Trial) -> str:
    """Return the heads of a trial; where folds chose different ones, those in all of them and those in some."""
    folds = study.folds.get((trial.kind, trial.order_by, trial.n_heads), ())
    if trial.heads or not folds:
        return ", ".join(trial.heads)
    every = [head for head in folds[0] if all(head in fold for fold in folds)]
    some = dict.fromkeys(head for fold in folds for head in fold if head not in every)
    return f"in all {len(folds)} folds: {', '.join(every) or 'none'}; in some: {', '.join(some) or 'none'}"
