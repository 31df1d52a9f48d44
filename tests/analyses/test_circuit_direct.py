"""Direct attribution: the parts sum to the logit difference, and each is what its sender writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted_circuit import planted
from slow_circuit import MODELS, SlowCircuit, circuit_session

from sparselens.analyses.circuit.direct import bias, direct
from sparselens.analyses.circuit.patch import LogitDifference, Pair, ProbabilityDifference, Run

METRIC = LogitDifference((5, 6), (9,))


def _run(session: Any, policy: str, metric: Any = METRIC, kernel: str = "reference") -> Run:
    clean, other = session.prompts(
        [
            {"id": word, "text": f"the {word} over the brown fox and one {word} then", "answer": " river"}
            for word in ("jumps", "leaps")
        ]
    )
    return Run(session, Pair(clean, (other,), metric), policy, kernel)


@pytest.mark.parametrize("policy", ["dense", "sliding_window(window=6)"])
@pytest.mark.parametrize("family", MODELS)
def test_parts_and_bias_sum_to_the_logit_difference(family: str, policy: str) -> None:
    run = _run(circuit_session(family), policy)
    assert abs(float(direct(run).sum()) + bias(run) - run.full()) < 1e-9
    single = _run(circuit_session(family, double=False), policy, kernel="blocked")
    assert abs(float(direct(single).sum()) + bias(single) - single.full()) < 1e-4
    assert abs(bias(run)) > 1e-3, "the biases of these models say something"


@pytest.mark.parametrize("family", MODELS)
def test_a_part_is_what_the_sender_writes_under_the_scale_of_the_clean_pass(family: str) -> None:
    session = circuit_session(family)
    run = _run(session, "dense")
    slow = SlowCircuit(session, "dense")
    writes, _ = slow.walk(list(run.pair.clean.token_ids), None, None)
    rows = torch.stack(writes)[:, run.row]
    final = run.clean.stream[run.row]
    table = session.model.get_output_embeddings().weight.detach()
    reader = table[[5, 6]].mean(0) - table[9]
    if family == "llama":
        expected = rows * slow.last.weight.detach() / (final.square().mean() + slow.last.eps).sqrt()
    else:
        centred = rows - rows.mean(-1, keepdim=True)
        expected = centred * slow.last.weight.detach() / (final.var(correction=0) + slow.last.eps).sqrt()
    assert torch.allclose(direct(run), expected @ reader, rtol=0, atol=1e-9)


def test_in_the_planted_model_the_read_out_writes_the_answer() -> None:
    session, pairs, _ = planted(1)
    run = Run(session, pairs[0], "dense", "blocked")
    parts = direct(run)
    assert run.graph.senders[int(parts.argmax())] == "M1"
    assert float(parts.max()) > 0.9 * run.full()


def test_what_is_not_linear_is_refused() -> None:
    session = circuit_session("llama")
    with pytest.raises(ValueError, match="of a LogitDifference, not of ProbabilityDifference"):
        direct(_run(session, "dense", ProbabilityDifference((5,), (9,))))
    run = _run(session, "dense")
    session.text_config.final_logit_softcapping = 30.0
    with pytest.raises(NotImplementedError, match="soft cap"):
        direct(run)
