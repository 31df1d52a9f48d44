"""What a sweep measures, in one sentence each."""

from __future__ import annotations

TASK = "sweep"
"""The task that its rows of `evals` and `prompt_scores` bear."""

_HEADS = "mean over all heads and layers, then over prompts"
_TOKENS = "over all tokens but the first, with --decode over the decoded ones, then over prompts"
_ANSWER = "over the answer's tokens, given those before"

METRICS = {
    "recalled_mass": "dense mass on the kept keys, on the base's queries and keys (scope local_policy): mean over the "
    f"rows in which the head dropped a key, {_HEADS}",
    "recalled_mass_all": f"the same over every row in which the policy may drop keys, {_HEADS}",
    "recalled_mass_nosink": "recalled_mass with the first token left out of both sides",
    "write_error": "‖W_O^h (z − z_base)‖ ÷ the layer's mean ‖attention output‖ of the base, each as it ran: mean over "
    f"the rows that predict the answer, without one over the rows in which the head dropped a key, {_HEADS}",
    "nll": f"−ln probability of a token (nats), mean {_TOKENS}",
    "nll_change": "nll − nll of the base, as it ran",
    "kl": f"KL(base ‖ run) of the next-token distributions (nats), mean {_TOKENS}",
    "answer_nll": f"−ln probability of a token (nats), mean {_ANSWER}, then over prompts",
    "answer_nll_change": "answer_nll − answer_nll of the base, as it ran",
    "answer_kl": f"KL(base ‖ run) of the next-token distributions (nats), mean {_ANSWER}, then over prompts",
    "answer_forced": "share of prompts in which every token of the answer is the most probable one, given the others",
    "density": "kept pairs ÷ allowed pairs as it ran, in the rows in which the policy may drop keys; mean over prompts",
    "density_computed": "touched tiles of 128 × 128 ÷ tiles with an allowed pair, as it ran, mean over heads, prompts",
    "dense_call_share": "share of the calls in the policy's phase in which it kept everything",
    "seconds_per_token": "wall time of the forward pass ÷ tokens, selection included, on this machine; not a benchmark",
    "above_oracle": "heads (of all layers) that recalled more mass than the oracle of their shape; mean over prompts",
    "above_oracle_mass": "layers that recalled more than the best pairs of the layer, as many; mean over prompts",
}
"""Of a point; the last two break a law and must be 0."""

COMPARED = (
    "recalled_mass",
    "recalled_mass_all",
    "recalled_mass_nosink",
    "write_error",
    "nll",
    "nll_change",
    "kl",
    "answer_nll",
    "answer_nll_change",
    "answer_kl",
    "answer_forced",
    "density",
)
"""Also of the references: `METRIC_oracle`, `METRIC_oracle_mass`, `METRIC_random`, and `METRIC_over_…` the point's
number minus theirs, paired by prompt."""

HIGHER = ("recalled_mass", "recalled_mass_all", "recalled_mass_nosink", "answer_forced")
"""Metrics of which more is better; of the others less is."""

REFERENCES = {
    "oracle": "as many keys in each row of each head (or whole tiles in each block of rows), chosen by exact mass",
    "oracle_mass": "the best pairs of each layer, as many as the method keeps there: what `oracle_mass` keeps; of it "
    "recalled_mass_all alone is measured",
    "random": "as many keys in each row (or whole tiles), drawn at random; mean over the seeds, which are drawn with "
    "the clusters",
}
