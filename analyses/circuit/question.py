"""`circuit`: which edges of a model carry a task, under full attention and under a policy.

Edges are scored by attribution patching on one half of the prompts' clusters; what the best of them carry is measured
by doing it on the other half. Under a sparse policy the base's circuit runs as well: does it explain the sparse model,
and does it still do the job of the dense one?
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from sparselens.analyses.analysis import Analysis, Findings, Setting
from sparselens.analyses.circuit.figure import drawn
from sparselens.analyses.circuit.plan import Circuit
from sparselens.analyses.circuit.show import show
from sparselens.analyses.circuit.task import Case, cases, halves
from sparselens.workbench.encoder import BOS
from sparselens.workbench.progress import Progress

if TYPE_CHECKING:
    from sparselens.analyses.circuit.measure import Measure
    from sparselens.analyses.circuit.search import Base


def find(setting: Setting) -> Findings:
    """Find the circuit and test it; nothing but the accuracy where the model does not do the task.

    Raises `ValueError` for a policy that drops nothing on the prompts, `NotImplementedError` for a model whose nodes do
    not simply add up.
    """
    from sparselens.analyses.circuit.measure import Measure
    from sparselens.analyses.circuit.port import ports_of
    from sparselens.analyses.circuit.rows import accuracy_rows, record, rows_of
    from sparselens.analyses.circuit.search import Answered, search

    chosen: Circuit = setting.parameters
    ports_of(setting.model)
    every = _cases(setting)
    searched, tested = halves(every)
    units = (1 + chosen.sparse) * len(every) + len(searched) + 2 * len(tested)
    clean = [case.clean for case in every]
    with Progress(units, 0, enabled=setting.progress) as bar:

        def under(policy: str) -> Measure:
            return Measure(setting.model, chosen, policy, setting.ledger, bar)

        if chosen.sparse and not any(under(chosen.policy).drops(case) for case in every):
            raise ValueError(
                f"{chosen.policy} drops nothing on {chosen.prompts} ({len(clean[0])} tokens): add filler, or give a"
                " tighter policy"
            )
        dense = [under(chosen.base).answers(case) for case in every]
        answered = Answered.of(dense, every)
        if not answered.applicable:
            return Findings(accuracy_rows(every, dense, answered), record(chosen, answered, None), clean)
        own = [under(chosen.policy).answers(case) for case in every] if chosen.sparse else dense
        base = _base(setting) if chosen.sparse else None
        found = search(under(chosen.policy), every, (own, dense), answered, base)
    return Findings(rows_of(found), record(chosen, answered, found), clean)


def _cases(setting: Setting) -> list[Case]:
    chosen: Circuit = setting.parameters
    return cases(setting.model.prompts(chosen.prompts, bos=BOS[chosen.bos]), chosen.about)


def _base(setting: Setting) -> Base:
    """Return the base's answer to the same question: the one in the trace, else it is found first."""
    from sparselens.analyses.circuit.graph import Graph
    from sparselens.analyses.circuit.search import base_answer

    chosen: Circuit = setting.parameters
    run_id = ANALYSIS.run(setting.model, setting.trace, progress=setting.progress, **asdict(chosen.of_base()))
    return base_answer(setting.trace, run_id, chosen, Graph.of(setting.model))


def cost(setting: Setting) -> str:
    """Return what the analysis will run, if the model does the task."""
    chosen: Circuit = setting.parameters
    every = _cases(setting)
    searched, tested = halves(every)
    sizes, before = len(chosen.sizes), 1 + chosen.references
    passes = len(tested) * (
        2 * before + (2 + chosen.sparse) * sizes + 2 * chosen.heads + chosen.knockouts + 1
    )
    passes += len(searched) * before + 2 * (1 + chosen.sparse) * len(every)
    words = (
        f"{len(every)} prompts of {len(every[0].clean)} tokens, scored on {len(searched)} and tested on {len(tested)}:"
        f" about {passes:,} passes forward and {len(searched) * chosen.steps} forward and backward"
    )
    if chosen.sparse and ANALYSIS.done(_same_of_base(setting)) is None:
        words += f"; and as many of {chosen.base} first, whose answer is not in the trace"
    return f"{words}; an interrupted run goes on where it stopped"


def _same_of_base(setting: Setting) -> Setting:
    chosen: Circuit = setting.parameters
    return ANALYSIS.setting(setting.session, setting.trace, **asdict(chosen.of_base()))


ANALYSIS = Analysis(
    name="circuit",
    question="which edges carry a task, and what does a policy leave of that circuit?",
    parameters=Circuit,
    find=find,
    cost=cost,
    show=show,
    figure=drawn,
)
