"""The numbers of single prompts: answers and reads, scores of edges, what circuits carry, what single heads do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.analyses.circuit.attribute import attribute
from sparselens.analyses.circuit.direct import direct
from sparselens.analyses.circuit.patch import Run
from sparselens.analyses.circuit.plan import Circuit
from sparselens.analyses.circuit.task import Case
from sparselens.analyses.circuit.watch import ReadWatch
from sparselens.analyses.ledger import Ledger
from sparselens.analyses.stage import answer_rows
from sparselens.kernels.head import Head
from sparselens.kernels.kernel import kernel as kernel_named
from sparselens.kernels.policy import parse as parse_policy
from sparselens.workbench.progress import Progress
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import Session

Numbers = dict[str, Any]


@dataclass(eq=False)
class Measure:
    """Measures prompts under one policy; every prompt's numbers are kept in the ledger as they are made."""

    session: Session
    chosen: Circuit
    policy: str
    ledger: Ledger
    bar: Progress
    _key: str = field(init=False)

    def __post_init__(self) -> None:
        self._key = f"{self.policy} {self.chosen}"

    def answers(self, case: Case) -> Numbers:
        """Return whether the clean prompt and a reference are answered right, and what heads read in the clean one."""

        def compute() -> Numbers:
            watch = ReadWatch(case.places())
            right = self._judged(case, case.clean, [watch])
            reference = self._judged(case, case.references[0], [])
            reads = {"mass": watch.mass.cpu(), "kept": watch.kept.cpu(), "density": watch.density}
            return {"right": right, "reference_right": reference, **reads}

        return self._once("answers", case, compute, 2)

    def drops(self, case: Case) -> bool:
        """Return whether the policy drops a key of the clean prompt; nothing of it is kept."""
        watch = ReadWatch(case.places())
        self._judged(case, case.clean, [watch])
        return float(watch.density) < 1

    def scores(self, case: Case) -> Numbers:
        """Return the scores of all edges `[senders, receivers]` and what every sender writes itself `[senders]`."""

        def compute() -> Numbers:
            run = self._run(case)
            return {"scores": attribute(run, self.chosen.steps), "direct": _direct(run, case)}

        return self._once("scores", case, compute, 1 + self.chosen.references + 3 * self.chosen.steps)

    def carried(
        self, case: Case, what: str, circuits: Mapping[str, Tensor], heads: Sequence[Head]
    ) -> Numbers:
        """Return the metric of the whole model, of nothing, of each of the circuits, and without each of the heads."""

        def compute() -> Numbers:
            run = self._run(case)
            found: Numbers = {"whole": run.full(), "empty": run.empty(), "direct": _direct(run, case)}
            found |= {name: run.circuit(edges) for name, edges in circuits.items()}
            if heads:
                found["without"] = np.array([run.without_heads([head]) for head in heads])
            return found

        return self._once(what, case, compute, 1 + self.chosen.references + len(circuits) + len(heads))

    def _once(self, what: str, case: Case, compute: Any, passes: int) -> Numbers:
        self.bar.says(f"{what} · {self.policy} · {case.clean.name}")
        found = self.ledger.once(f"{what} {self._key} {case.clean.id}", compute)
        self.bar.advance(passes * len(case.clean))
        self.bar.finished_prompt()
        return found

    def _run(self, case: Case) -> Run:
        return Run(self.session, case.pair, parse_policy(self.policy), kernel_named(self.chosen.kernel))

    @torch.no_grad()
    def _judged(self, case: Case, prompt: Prompt, observers: Sequence[Any]) -> bool:
        readout = self.session.readout
        ids = torch.tensor([prompt.token_ids], device=self.session.device)
        with self.session.under(
            parse_policy(self.policy), kernel=kernel_named(self.chosen.kernel), observers=observers
        ):
            states = self.session.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
        row = answer_rows(prompt).start
        return case.judged(readout.logits(states[row : row + 1])[0])


def _direct(run: Run, case: Case) -> Tensor:
    """Return what every sender writes itself into the logit difference of the clean prompt: `[senders]`."""
    linear = copy(run)
    linear.pair = replace(run.pair, metric=case.logits)
    return direct(linear)
