"""The part of a report about prompts: those that show best what was lost and what was kept, and the worst tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sparselens.analyses.report.command import capture
from sparselens.analyses.report.data import Evidence
from sparselens.analyses.report.number import NONE, number, share
from sparselens.analyses.report.page import (
    Block,
    Cell,
    Heading,
    Missing,
    Section,
    Table,
    Verbatim,
    Words,
    filled,
    pieces,
)

SHOWN = 3
TOKENS, EACH, REACH = 5, 2, 14


@dataclass(frozen=True)
class Spoken:
    """Texts of the shown prompts: answers, predictions and generations by run and prompt."""

    answer: Mapping[str, str]
    predicted: Mapping[tuple[str, str], str]
    generated: Mapping[tuple[str, str], str]


def prompts(evidence: Evidence, called: dict[str, Verbatim]) -> Section:
    """Return the section: for each run the prompts that lost most and least, and the tokens that moved most."""
    ranked = {run["run_id"]: _ranked(evidence, run["run_id"]) for run in evidence.runs}
    shown = {prompt for _, found in ranked.values() for prompt in (*found[:SHOWN], *found[-SHOWN:])}
    spoken = _spoken(evidence, sorted(shown))
    tokens = _tokens(evidence)
    blocks: list[Block] = []
    for run in evidence.runs:
        run_id = run["run_id"]
        by, found = ranked[run_id]
        blocks += [Heading(called[run_id])] if len(evidence.runs) > 1 else []
        if not found:
            blocks.append(Missing("No losses of single prompts are stored", [capture(evidence, run)]))
            continue
        worst = found[:SHOWN]
        best = [prompt for prompt in reversed(found) if prompt not in worst][:SHOWN]
        for what, which in ((f"Lost most, by {by}", worst), (f"Preserved best, by {by}", best)):
            if which:
                blocks.append(_table(evidence, what, run_id, which, spoken))
        if run_id in tokens:
            blocks.append(_token_table(tokens[run_id]))
    return Section("prompts", "Prompts that show it best", blocks)


def _ranked(evidence: Evidence, run_id: str) -> tuple[str, list[str]]:
    """Return what prompts are ranked by, and the prompts, the one that lost most first."""
    before = evidence.scores.get((evidence.base["run_id"], "answer_nll"), {})
    after = evidence.scores.get((run_id, "answer_nll"), {})
    rise = {prompt: after[prompt] - before[prompt] for prompt in before.keys() & after}
    by = "the rise of answer NLL"
    if not rise:
        by = "KL on affected rows"
        rows = evidence.token_changes.get(run_id, [])
        rise = {row["prompt_id"]: row["kl_affected"] for row in rows if row["kl_affected"] is not None}
    return by, sorted(rise, key=lambda prompt: (-rise[prompt], prompt))


def _spoken(evidence: Evidence, shown: Sequence[str]) -> Spoken:
    """Return the texts of some prompts: the answer's tokens, what each run found most probable there, what it wrote."""
    answers = evidence.ask("answers", prompts=list(shown))
    text = _texts(evidence, [row["top1_id"] for row in answers])
    answer: dict[str, dict[int, str]] = {}
    predicted: dict[tuple[str, str], str] = {}
    for row in answers:
        answer.setdefault(row["prompt_id"], {})[row["pos"]] = row["text"] or "▯"
        key = (row["run_id"], row["prompt_id"])
        predicted[key] = predicted.get(key, "") + text(row["top1_id"])
    generated = {
        (row["run_id"], row["prompt_id"]): row["text"] or "▯"
        for row in evidence.ask("generated", prompts=list(shown))
    }
    joined = {prompt: "".join(found[pos] for pos in sorted(found)) for prompt, found in answer.items()}
    return Spoken(joined, predicted, generated)


def _texts(evidence: Evidence, ids: Sequence[int | None]) -> Callable[[int | None], str]:
    """Return what turns a token id into its text, as far as it occurs in the trace."""
    known = sorted({each for each in ids if each is not None})
    rows = evidence.ask("token_texts", ids=known) if known else []
    text = {row["token_id"]: row["text"] for row in rows}
    return lambda token: "▯" if token is None else text.get(token, f"⟨id {token}⟩")


def _table(evidence: Evidence, what: str, run_id: str, which: Sequence[str], spoken: Spoken) -> Table:
    """Return some prompts: where the needle was, the answer, and what base and run say for it."""
    base = evidence.base["run_id"]
    kl = {row["prompt_id"]: row["kl_affected"] for row in evidence.token_changes.get(run_id, [])}
    rows: list[list[Words | Cell]] = []
    for prompt in which:
        about = evidence.prompts[prompt]
        losses = [evidence.scores.get((each, "answer_nll"), {}).get(prompt) for each in (base, run_id)]
        rows.append(
            [
                Verbatim(about["name"] or prompt),
                Verbatim(str(about["family"] or about["cluster"])),
                NONE if about["depth"] is None else f"{about['depth']:g}",
                f"{number(losses[0])} → {number(losses[1])}",
                number(kl.get(prompt)),
                *(
                    _said(text)
                    for text in (
                        spoken.answer.get(prompt),
                        spoken.predicted.get((base, prompt)),
                        spoken.predicted.get((run_id, prompt)),
                        spoken.generated.get((base, prompt)),
                        spoken.generated.get((run_id, prompt)),
                    )
                ),
            ]
        )
    columns = (
        "prompt",
        "family",
        "depth",
        "answer NLL",
        "KL affected",
        "answer",
        "base predicts",
        "run predicts",
        "base writes",
        "run writes",
    )
    return filled(Table(what, columns, rows), NONE)


def _said(text: str | None) -> Words:
    """Return text of the trace without the spaces around it."""
    return NONE if text is None else Verbatim(text.strip() or "␣")


def _tokens(evidence: Evidence) -> dict[str, list[list[Words | Cell]]]:
    """Return rows on the tokens whose prediction changed most, by run."""
    found = evidence.ask("worst_tokens", top=TOKENS, each=EACH)
    if not found:
        return {}
    text = _texts(evidence, [row[name] for row in found for name in ("base_id", "run_top")])
    context = {
        (row["prompt_id"], row["pos"]): row
        for row in evidence.ask(
            "contexts",
            prompts=[row["prompt_id"] for row in found],
            positions=[row["pos"] for row in found],
            reach=REACH,
        )
    }
    made: dict[str, list[list[Words | Cell]]] = {}
    for row in found:
        at = context.get((row["prompt_id"], row["pos"]), {"before": None, "token": None})
        made.setdefault(row["run_id"], []).append(
            [
                Verbatim(str(evidence.prompts[row["prompt_id"]]["name"] or row["prompt_id"])),
                str(row["pos"]),
                number(row["kl"]),
                number(row["nll_change"], sign=True),
                Verbatim(f"… {(at['before'] or '▯').strip()}"),
                _said(at["token"] or "▯"),
                (*pieces(_said(text(row["base_id"]))), f" {share(row['base_p'])}"),
                (*pieces(_said(text(row["run_top"]))), f" {share(row['run_p'])}"),
            ]
        )
    return made


def _token_table(rows: Sequence[Sequence[Words | Cell]]) -> Table:
    columns = (
        "prompt",
        "position",
        "KL",
        "NLL change",
        "text before",
        "token",
        "base's top token",
        "run's top token",
    )
    return Table(f"Tokens with the largest KL(base ‖ run), at most {EACH} a prompt", columns, rows)
