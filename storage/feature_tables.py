"""Tables of SAE features: what is active where, which sources wrote it, and what changed between two runs."""

from __future__ import annotations

from sparselens.storage.column import BOOL, F32, NAME, TEXT, U16, U32, Column, Table
from sparselens.storage.result_tables import ANALYSIS, RUN_A, RUN_B, SUBJECT
from sparselens.storage.run_tables import HEAD, LAYER, PROMPT

SAE = Column("sae", NAME, "", "the SAE, by the beginning of the sha256 of its weights (see `saes`)")
FEATURE = Column("feature", U32, "", "number of the feature in the SAE's dictionary, from 0")
POS = Column("pos", U32, "token", "the token whose vector is encoded")
ROWS = Column("rows", NAME, "", "which tokens: `all`, `affected`, or `span:NAME` (see `head_stats`)")

SAES = Table(
    "saes",
    "The SAEs that features are of.",
    (
        SAE,
        LAYER,
        Column("name", TEXT, "", "what it was asked for: a shipped name, a folder, RELEASE:SAE_ID"),
        Column("hook", NAME, "", "the TransformerLens hook that it reads"),
        Column("architecture", NAME, "", "SAELens' name of the kind"),
        Column("features", U32, "", "width of the dictionary"),
        Column("record", TEXT, "JSON", "what is known of its training: data, tokens, settings", True),
        ANALYSIS,
    ),
    key=("sae", "analysis_id"),
    writer="analysis_id",
    subject=("sae",),
    by_args=False,
)

FEATURES = Table(
    "features",
    "The strongest active features of every token. What is not among them is said by `feature_tokens`.",
    (
        SUBJECT,
        PROMPT,
        SAE,
        POS,
        FEATURE,
        Column("activation", F32, "", "the feature's activation"),
        ANALYSIS,
    ),
    key=("run_id", "prompt_id", "sae", "pos", "feature"),
    sort=("prompt_id", "pos"),
    writer="analysis_id",
    subject=("run_id", "sae"),
    by_args=False,
)

FEATURE_TOKENS = Table(
    "feature_tokens",
    "How well an SAE describes each token, and how much of its activation is stored in `features`.",
    (
        SUBJECT,
        PROMPT,
        SAE,
        POS,
        Column("n_active", U16, "features", "active features"),
        Column("activation_sum", F32, "", "sum of all activations"),
        Column("unstored_sum", F32, "", "the part of it that is not in `features`"),
        Column("norm", F32, "", "‖x‖ of the vector that is encoded"),
        Column("error", F32, "", "‖x − x̂‖, x̂ the reconstruction"),
        ANALYSIS,
    ),
    key=("run_id", "prompt_id", "sae", "pos"),
    sort=("prompt_id", "pos"),
    writer="analysis_id",
    subject=("run_id", "sae"),
    by_args=False,
)

FEATURE_SOURCES = Table(
    "feature_sources",
    "Direct feature attribution: the largest parts of a feature's pre-activation, by head and source token. Over all "
    "heads and sources the parts and the bias sum to the pre-activation.",
    (
        SUBJECT,
        Column("run_b", NAME, "", "the run that it is compared with; of a compared run itself its own id"),
        PROMPT,
        SAE,
        POS,
        FEATURE,
        HEAD,
        Column("k_pos", U32, "token", "the source token"),
        Column("value", F32, "", "its part in the pre-activation, through this head"),
        Column(
            "dropped",
            BOOL,
            "",
            "`run_b` drops this key in this row and head (False of that run itself)",
        ),
        Column("pre", F32, "", "the pre-activation"),
        Column("unstored", F32, "", "the pre-activation without bias and without the stored parts"),
        ANALYSIS,
    ),
    key=("run_id", "run_b", "prompt_id", "sae", "pos", "feature", "head", "k_pos"),
    sort=("prompt_id", "pos"),
    writer="analysis_id",
    subject=("run_id", "run_b", "sae"),
    by_args=False,
)

FEATURE_DIFFS = Table(
    "feature_diffs",
    "How the features of the same tokens differ between two runs. A token is compared where the SAE's error in B is at "
    "most 1.25 times its error in A: beyond that B lies outside what the SAE describes.",
    (
        RUN_A,
        RUN_B,
        PROMPT,
        SAE,
        ROWS,
        Column("n_rows", U32, "tokens", "tokens of these rows"),
        Column(
            "n_compared", U32, "tokens", "those of them that are compared; the other columns are their means"
        ),
        Column("jaccard", F32, "share", "features active in both ÷ in either", True),
        Column("cosine", F32, "cosine", "of the two activation vectors", True),
        Column("l0_a", F32, "features", "active features in A", True),
        Column("l0_b", F32, "features", "active features in B", True),
        Column("error_a", F32, "ratio", "‖x − x̂‖ ÷ ‖x‖ in A, over all rows", True),
        Column("error_b", F32, "ratio", "the same in B, over all rows", True),
        ANALYSIS,
    ),
    key=("run_a", "run_b", "prompt_id", "sae", "rows"),
    sort=("prompt_id",),
    writer="analysis_id",
    subject=("run_a", "run_b", "sae"),
    by_args=False,
)

FEATURE_CHANGES = Table(
    "feature_changes",
    "What became of each feature between two runs, over the compared tokens of all prompts (see `feature_diffs`).",
    (
        RUN_A,
        RUN_B,
        SAE,
        FEATURE,
        ROWS,
        Column("n_compared", U32, "tokens", "tokens compared"),
        Column("n_a", U32, "tokens", "tokens on which it is active in A"),
        Column("n_b", U32, "tokens", "tokens on which it is active in B"),
        Column("n_both", U32, "tokens", "tokens on which it is active in both"),
        Column("sum_a", F32, "", "sum of its activations in A"),
        Column("sum_b", F32, "", "sum of its activations in B"),
        Column(
            "dropped",
            F32,
            "",
            "sum, over tokens where it is active in A, of the part of A's pre-activation that comes from keys B drops",
            True,
        ),
        ANALYSIS,
    ),
    key=("run_a", "run_b", "sae", "feature", "rows"),
    sort=("rows", "feature"),
    writer="analysis_id",
    subject=("run_a", "run_b", "sae", "rows"),
    by_args=False,
)

FEATURE_TABLES = (SAES, FEATURES, FEATURE_TOKENS, FEATURE_SOURCES, FEATURE_DIFFS, FEATURE_CHANGES)
