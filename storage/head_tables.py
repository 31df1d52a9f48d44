"""Tables about what heads did: statistics, edges, selections, maps, vectors."""

from __future__ import annotations

from sparselens.storage.column import BOOL, BYTES, F32, NAME, TEXT, U16, U32, VECTOR, Column, Table
from sparselens.storage.run_tables import HEAD, LAYER, PROMPT, RUN

QUERY = Column("q_pos", U32, "token", "query (destination) position")
PATTERN = Column(
    "pattern",
    NAME,
    "",
    "`executed`: the pattern that ran, renormalised over kept keys; `dense`: the full pattern on the same q and k "
    "(counterfactual)",
)
ROWS = Column(
    "rows",
    NAME,
    "",
    "the query rows the number is over: `all`; `affected`, rows in which at least one allowed key was dropped; "
    "`decoded`, rows of the tokens that came one at a time (`--decode`); "
    "`span:NAME`, the positions of that span, but for `span:answer` the rows that predict the answer's tokens "
    "(start − 1 … stop − 2)",
)
N_ROWS = Column("n_rows", U32, "rows", "how many query rows the number is over; 0 leaves the numbers NULL")
DENSITY = Column(
    "density",
    F32,
    "share",
    "Σ kept and allowed (query, key) pairs ÷ Σ allowed pairs, token-exact, over the same rows",
    True,
)
COMPUTED = Column(
    "density_computed",
    F32,
    "share",
    "as density, counting every allowed pair of a tile that the kernel touched",
    True,
)

HEAD_STATS = Table(
    "head_stats",
    "One row per run, prompt, pattern, set of rows and head: means over the query rows.",
    (
        RUN,
        PROMPT,
        PATTERN,
        ROWS,
        LAYER,
        HEAD,
        Column("head_name", NAME, "", "`L18H6`; filled in by the writer"),
        N_ROWS,
        Column("entropy", F32, "nats", "mean over rows of −Σ p ln p over keys", True),
        Column(
            "entropy_norm",
            F32,
            "share",
            "mean over rows of entropy ÷ ln(kept keys); rows with one key left out",
            True,
        ),
        Column(
            "sink_mass",
            F32,
            "mass",
            "mean mass on the first token (key 0) over the rows with q_pos ≥ 8",
            True,
        ),
        Column(
            "previous_mass",
            F32,
            "mass",
            "mean mass on the key just before the query, over rows with q_pos ≥ 1",
            True,
        ),
        Column("local_mass", F32, "mass", "mean mass on the 64 newest keys, the query's own included", True),
        Column("distance", F32, "tokens", "mean of Σ p · (q_pos − k_pos)", True),
        DENSITY,
        COMPUTED,
        Column(
            "kv_read_share",
            F32,
            "share",
            "over the decoded rows among them: Σ keys that any head of the group read ÷ Σ keys that the model allows; "
            "the same for all heads of a group, NULL without `--decode`",
            True,
        ),
        Column("kept_mass", F32, "mass", "mean dense mass (same q and k) on the kept keys", True),
        Column(
            "kept_mass_nosink",
            F32,
            "mass",
            "mean of dense mass on kept keys ÷ dense mass on all keys, the first token left out of both",
            True,
        ),
        Column("write_norm", F32, "norm", "mean ‖W_O^h z‖: what the head adds to the residual stream", True),
    ),
    key=("run_id", "prompt_id", "pattern", "rows", "layer", "head"),
    sort=("prompt_id", "pattern", "rows", "layer", "head"),
)

ROW_STATS = Table(
    "row_stats",
    "One row per run, prompt, pattern, head and query row.",
    (
        RUN,
        PROMPT,
        PATTERN,
        LAYER,
        HEAD,
        QUERY,
        Column("entropy", F32, "nats", "−Σ p ln p over keys", True),
        Column("lse", F32, "nats", "ln Σ exp(score) over the pattern's keys; −inf for an empty row", True),
        Column("sink_mass", F32, "mass", "mass on the first token (key 0); stored for every row", True),
        Column("kept_mass", F32, "mass", "dense mass (same q and k) on the kept keys", True),
        Column("unstored_mass", F32, "mass", "executed mass on keys that are not in `edges`", True),
        Column(
            "write_error",
            F32,
            "ratio",
            "‖W_O^h (z_b − z_a)‖ ÷ the layer's mean ‖attention output‖ of the base; a = base, b = this run, end to end",
            True,
        ),
    ),
    key=("run_id", "prompt_id", "pattern", "layer", "head", "q_pos"),
    sort=("prompt_id", "pattern", "layer", "head", "q_pos"),
)

EDGES = Table(
    "edges",
    "The strongest attention edges: of every query row the union of the executed pattern's top keys and the base's, "
    "so that what was cut is in the table. What is not here is in row_stats.unstored_mass.",
    (
        RUN,
        PROMPT,
        LAYER,
        HEAD,
        QUERY,
        Column("k_pos", U32, "token", "key (source) position"),
        Column("p", F32, "mass", "executed attention probability; 0 for a dropped key"),
        Column(
            "p_base", F32, "mass", "the base run's probability of the same edge; NULL without a base", True
        ),
        Column("kept", BOOL, "", "the key is in the run's selection"),
        Column("reason", NAME, "", "whose top keys it is among: `run`, `base` or `both`", True),
    ),
    key=("run_id", "prompt_id", "layer", "head", "q_pos", "k_pos"),
    sort=("prompt_id", "layer", "head", "q_pos"),
)

TOKEN_STATS = Table(
    "token_stats",
    "One row per run, prompt, layer and position.",
    (
        RUN,
        PROMPT,
        LAYER,
        Column("pos", U32, "token", "absolute position"),
        Column("resid_norm", F32, "norm", "norm of the residual stream that enters the layer", True),
        Column(
            "received_mass",
            F32,
            "mass",
            "executed mass this position receives as a key, mean over heads, ÷ the number of queries that can see it",
            True,
        ),
    ),
    key=("run_id", "prompt_id", "layer", "pos"),
    sort=("prompt_id", "layer", "pos"),
)

VALUE_NORMS = Table(
    "value_norms",
    "One row per run, prompt, head and key position.",
    (
        RUN,
        PROMPT,
        LAYER,
        HEAD,
        Column("pos", U32, "token", "key (source) position"),
        Column(
            "value_write_norm", F32, "norm", "‖W_O^h v‖: what the head would add if it read only this key"
        ),
    ),
    key=("run_id", "prompt_id", "layer", "head", "pos"),
    sort=("prompt_id", "layer", "head", "pos"),
)

SELECTIONS = Table(
    "selections",
    "The keys each head kept, packed.",
    (
        RUN,
        PROMPT,
        LAYER,
        HEAD,
        Column(
            "kind",
            NAME,
            "",
            "`everything`, `band`, `tiles`, `stripes`, `keys`, `bits`, `groups`, `union`, `spliced` or `biased`",
        ),
        DENSITY,
        COMPUTED,
        Column(
            "data",
            BYTES,
            "JSON",
            "the selection; `sparselens.storage.mask` turns it into rows of a boolean mask",
        ),
    ),
    key=("run_id", "prompt_id", "layer", "head"),
    sort=("prompt_id", "layer", "head"),
)

REMOVALS = Table(
    "removals",
    "The keys that a policy evicted: what left the cache, and when. Policies that only skip keys leave none.",
    (
        RUN,
        PROMPT,
        LAYER,
        Column("kv_head", HEAD.type, "", "key-value head, from 0; its query heads are kv_head · group …"),
        Column("k_pos", U32, "token", "position of the key; no query after the step reads it"),
        Column("step", U32, "token", "after which step it left: 0 the prefill, n the n-th decoded token"),
    ),
    key=("run_id", "prompt_id", "layer", "kv_head", "k_pos"),
    sort=("prompt_id", "layer", "kv_head", "step", "k_pos"),
)

POOLED_MAPS = Table(
    "pooled_maps",
    "Each head's attention map, pooled to a few cells.",
    (
        RUN,
        PROMPT,
        PATTERN,
        LAYER,
        HEAD,
        Column("pool", U32, "tokens", "tokens along one side of a cell"),
        Column("size", U16, "cells", "cells along one side of the map"),
        Column(
            "data",
            BYTES,
            "mass",
            "size × size little-endian float16, queries down and keys across: mean over the cell's queries of the mass "
            "on the cell's keys; `sparselens.storage.pooled` decodes it",
        ),
    ),
    key=("run_id", "prompt_id", "pattern", "layer", "head"),
    sort=("prompt_id", "pattern", "layer", "head"),
)

PREDICTIONS = Table(
    "predictions",
    "The model's prediction of every token, given those before it.",
    (
        RUN,
        PROMPT,
        Column(
            "pos",
            U32,
            "token",
            "position of the predicted token, from 1; the row that predicts it is pos − 1",
        ),
        Column("nll", F32, "nats", "−ln probability of the token at pos"),
        Column("top1_id", U32, "token id", "the most probable token", True, reveals=True),
        Column("top1_p", F32, "probability", "its probability", True),
    ),
    key=("run_id", "prompt_id", "pos"),
    sort=("prompt_id", "pos"),
)

GENERATIONS = Table(
    "generations",
    "Tokens the model generated after the prompt.",
    (
        RUN,
        PROMPT,
        Column("step", U32, "token", "step of the generation, from 0"),
        Column("token_id", U32, "token id", "the generated token", True, reveals=True),
        Column("text", TEXT, "", "the token as text", True, reveals=True),
        Column(
            "correct",
            BOOL,
            "",
            "equals the answer's token at this step; NULL without an answer or beyond it",
            True,
        ),
    ),
    key=("run_id", "prompt_id", "step"),
    sort=("prompt_id", "step"),
)

ACTIVATIONS = Table(
    "activations",
    "Vectors kept on request (`--keep`): q, k, z, residual stream, any hook.",
    (
        RUN,
        PROMPT,
        Column("hook", NAME, "", "TransformerLens hook name with the layer, e.g. `blocks.3.attn.hook_rot_q`"),
        LAYER,
        Column(
            "head",
            HEAD.type,
            "",
            "head (for k and v: the key-value head); NULL for a whole-layer vector",
            True,
        ),
        Column("pos", U32, "token", "absolute position"),
        Column("vector", VECTOR, "", "the vector; q and k are rounded to float16", True, reveals=True),
    ),
    key=("run_id", "prompt_id", "hook", "layer", "head", "pos"),
    sort=("prompt_id", "hook", "layer", "head", "pos"),
)
