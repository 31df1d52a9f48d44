"""The heads that matter: what each, cut alone, does to the logit difference, by exact passes under the policy."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparselens.analyses.circuit.direct import direct
from sparselens.analyses.circuit.patch import Pair, Run
from sparselens.analyses.movers.plan import Case
from sparselens.workbench.session import Session


def effects(session: Session, case: Case, policy: str, kernel: str) -> dict[str, Any]:
    """Return by how much the logit difference falls without each head, and what each writes of it itself.

    `effect`, `direct` `[layers · heads]`; `difference` as it is.
    """
    run = Run(session, Pair(case.prompt, case.references, case.metric), policy, kernel)
    heads = [(layer, head) for layer in range(session.n_layers) for head in range(session.n_heads)]
    whole = run.full()
    fallen = [whole - run.without_heads([head]) for head in heads]
    parts = direct(run)
    own = np.concatenate([parts[run.graph.writing(layer)].numpy() for layer in range(session.n_layers)])
    return {"effect": np.array(fallen), "direct": own.astype(float), "difference": whole}
