"""The numbers of one prompt under one policy: direct effects by source, attention, what is kept, what is answered."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.analyses.circuit.direct import reader_at
from sparselens.analyses.circuit.place import Ports, Visitor
from sparselens.analyses.circuit.writes import precise
from sparselens.analyses.movers.plan import Case
from sparselens.analyses.movers.watch import EndWatch
from sparselens.workbench.projection import OutputProjection
from sparselens.workbench.session import Session, attention_layers


class _End(Visitor):
    """Keeps what the last norm reads."""

    stream: Tensor

    def leaves(self, stream: Tensor) -> Tensor | None:
        """Keep it."""
        self.stream = precise(stream[0])
        return None


@torch.no_grad()
def measured_case(session: Session, ports: Ports, case: Case, policy: str, kernel: str) -> dict[str, Any]:
    """Return the numbers of a clean prompt.

    `direct`, `attention`, `kept` `[parts, layers · heads]`, parts in the order of the case's sources: the part of the
    logit difference that a head writes from there past all later layers, the attention that it pays there, the share of
    these tokens that it keeps. `raw`, `paid` `[labels, layers · heads]`: q · k without positions and attention at the
    letter and the end of line of each option. Single numbers: `difference`, `first_token`, `choice`.
    """
    labels = tuple(place for both in case.labels for place in both)
    watch, end = EndWatch(case.row, labels), _End()
    ids = torch.tensor([case.prompt.token_ids], device=session.device)
    _ = session.readout
    with ExitStack() as stack:
        stack.enter_context(session.under(policy, kernel=kernel, observers=[watch]))
        stack.enter_context(ports.visited(end))
        states = session.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
    reader, _ = reader_at(session, ports.norm, end.stream[case.row], case.metric)
    logits = session.readout.logits(states[case.row : case.row + 1])[0]
    answer, foils = case.prompt.answer_ids[0], list(case.prompt.foils)
    found = {
        **_by_part(session, case, watch, reader),
        "difference": float(case.metric(logits)),
        "first_token": float(int(logits.argmax()) == answer),
        "choice": float(bool((logits[answer] > logits[foils]).all())),
    }
    if labels:
        found["raw"] = torch.stack(watch.raw).flatten(0, 1).T.numpy()
        paid = torch.stack(watch.weights)[..., list(labels)].flatten(0, 1).T
        found["paid"] = paid.cpu().numpy()
    return found


def _by_part(session: Session, case: Case, watch: EndWatch, reader: Tensor) -> dict[str, Any]:
    """Return direct effect, attention and kept share of every head by part: `[parts, layers · heads]`."""
    written = []
    for module, weights, values in zip(
        attention_layers(session.model), watch.weights, watch.values, strict=True
    ):
        by_head = OutputProjection.of(module, session.n_heads).weight.to(reader) @ reader
        written.append(weights.to(reader) * (values.to(reader) @ by_head[..., None])[..., 0])
    whole = {
        "direct": torch.stack(written).flatten(0, 1).cpu(),
        "attention": torch.stack(watch.weights).flatten(0, 1).cpu(),
        "kept": torch.stack(watch.kept).flatten(0, 1).to(reader.dtype),
    }
    found = {}
    for name, values in whole.items():
        parts = [values[:, list(places)] for places in case.sources.values()]
        found[name] = np.stack([(part.mean(1) if name == "kept" else part.sum(1)).numpy() for part in parts])
    return found
