"""Tables about other runs: differences, scores, evaluations, interventions."""

from __future__ import annotations

from sparselens.storage.column import BOOL, F32, F64, NAME, NAMES, TEXT, TIME, U8, U32, Column, Table
from sparselens.storage.head_tables import N_ROWS, ROWS
from sparselens.storage.run_tables import HEAD, LAYER, PROMPT

ANALYSIS = Column("analysis_id", NAME, "", "the run that computed the row")
RUN_A = Column("run_a", NAME, "", "run A, the base; changes are B − A")
RUN_B = Column("run_b", NAME, "", "run B, compared with A on the same prompts")
SUBJECT = Column("run_id", NAME, "", "the run the row is about")
VALUE = Column("value", F64, "see metric", "the value", True)
N = Column("n", U32, "", "observations behind the value", True)
N_CLUSTERS = Column("n_clusters", U32, "", "clusters (template, needle family) of the bootstrap", True)
LOW = Column(
    "ci_low", F64, "see metric", "lower end of the 95 % bootstrap interval, clustered, paired by prompt", True
)
HIGH = Column("ci_high", F64, "see metric", "upper end of it", True)
METRIC = Column("metric", NAME, "", "what was measured")

DIFFS = Table(
    "diffs",
    "What a head changed between two runs of the same prompt: one row per pair, prompt, scope, rows and head. "
    "A paired capture's own rows come before those of a later `diff`.",
    (
        RUN_A,
        RUN_B,
        PROMPT,
        Column(
            "scope",
            NAME,
            "",
            "`local_policy`: B's policy run again on A's q and k; `local_mask`: the selection of run B on A's q and k; "
            "`end_to_end`: both as they ran",
        ),
        ROWS,
        LAYER,
        HEAD,
        N_ROWS,
        Column(
            "write_error",
            F32,
            "ratio",
            "mean over rows of ‖W_O^h (z_b − z_a)‖ ÷ the layer's mean ‖attention output‖ of the base",
            True,
        ),
        Column(
            "kept_mass",
            F32,
            "mass",
            "mean mass on the keys B keeps: of A's pattern, end to end of the full pattern on B's own q and k",
            True,
        ),
        Column("kept_mass_nosink", F32, "mass", "the same, the first token left out of both sides", True),
        Column("js", F32, "nats", "mean Jensen-Shannon divergence of the two patterns of a row", True),
        Column("js_rows", U32, "rows", "rows js and top8_overlap are over, where it is a sample", True),
        Column("top8_overlap", F32, "share", "mean share of A's 8 strongest keys of a row among B's 8", True),
        Column("out_cosine", F32, "cosine", "mean cosine of z_a and z_b", True),
        Column("sink_change", F32, "mass", "B − A of the mean mass on the first token, rows ≥ 8", True),
        Column("entropy_change", F32, "nats", "B − A of the mean entropy", True),
        ANALYSIS,
    ),
    key=("run_a", "run_b", "prompt_id", "scope", "rows", "layer", "head"),
    sort=("prompt_id", "scope", "rows", "layer", "head"),
    writer="analysis_id",
    subject=("run_a", "run_b", "scope", "rows"),
    by_args=False,
)

TOKEN_DIFFS = Table(
    "token_diffs",
    "What changed in the prediction of every token between two runs of the same prompt.",
    (
        RUN_A,
        RUN_B,
        PROMPT,
        Column("pos", U32, "token", "position of the predicted token, from 1"),
        Column("kl", F32, "nats", "KL(A ‖ B) of the two next-token distributions", True),
        Column("nll_change", F32, "nats", "B − A of −ln probability of the token at pos", True),
        Column("top1_same", BOOL, "", "both find the same token most probable", True),
        Column("affected", BOOL, "", "some head dropped an allowed key in the row that predicts it", True),
        ANALYSIS,
    ),
    key=("run_a", "run_b", "prompt_id", "pos"),
    sort=("prompt_id", "pos"),
    writer="analysis_id",
    subject=("run_a", "run_b"),
    by_args=False,
)

HEAD_SCORES = Table(
    "head_scores",
    "One number per run, head and metric over many prompts: roles, retrieval, sinks.",
    (
        SUBJECT,
        LAYER,
        Column("head", HEAD.type, "", "query head, from 0; NULL for a score of the layer", True),
        METRIC,
        VALUE,
        N,
        N_CLUSTERS,
        LOW,
        HIGH,
        Column("prompt_set", NAME, "", "prompts it is over", True),
        Column("rows", NAME, "", f"{ROWS.meaning}; `from N`, the rows from position N on", True),
        Column("params", NAME, "JSON", "parameters of the metric", True),
        Column("definition", NAME, "", "the metric in one sentence", True),
        ANALYSIS,
    ),
    key=("run_id", "layer", "head", "metric", "prompt_set", "rows", "params", "analysis_id"),
    sort=("metric", "layer", "head"),
    writer="analysis_id",
    subject=("run_id",),
)

EVALS = Table(
    "evals",
    "One number per run, task and metric.",
    (
        SUBJECT,
        Column("task", NAME, "", "prompt set or task"),
        METRIC,
        VALUE,
        N,
        N_CLUSTERS,
        LOW,
        HIGH,
        ANALYSIS,
    ),
    key=("run_id", "task", "metric", "analysis_id"),
    writer="analysis_id",
    subject=("run_id",),
)

PROMPT_SCORES = Table(
    "prompt_scores",
    "One number per run, prompt and metric; `answer_nll` (nats, mean over the answer's tokens) and `logit_diff` are "
    "built in.",
    (SUBJECT, PROMPT, Column("task", NAME, "", "prompt set or task"), METRIC, VALUE, ANALYSIS),
    key=("run_id", "prompt_id", "task", "metric", "analysis_id"),
    sort=("prompt_id",),
    writer="analysis_id",
    subject=("run_id",),
)

BASE_RUN = Column(
    "base_run", NAME, "", "the run that was intervened on; the analysis itself where no run of it is there"
)
TRIAL = Column("trial", U32, "", "number of the intervention in its analysis")
FOLD = Column(
    "fold",
    U8,
    "",
    "part of the prompts that was tested, ranked on the others; NULL: all parts together",
    True,
)

INTERVENTIONS = Table(
    "interventions",
    "What happened when some heads were given back, cut or patched: one row per trial, metric and fold.",
    (
        ANALYSIS,
        BASE_RUN,
        TRIAL,
        FOLD,
        Column(
            "kind",
            NAME,
            "",
            "`none` (the run itself), `base` (its base), restores `run_dense`, `patch_pattern`, `patch_z`, ablations "
            "`zero`, `mean`, `uniform`, and `policy` (a wider budget for all heads instead)",
        ),
        Column("heads", NAMES, "", "the heads, as `L18H6`; empty where folds differ"),
        Column("n_heads", U32, "heads", "how many"),
        Column(
            "order_by",
            NAME,
            "",
            "what they were ranked by; `given` for named heads, `random` for drawn ones",
            True,
        ),
        Column("matched", NAME, "", "of random heads: the ranking whose layers they match", True),
        Column("draw", U32, "", "number of the random draw; NULL of `random`: the mean over draws", True),
        Column("phase", NAME, "", "rows that were intervened on: `prefill`, `decode` or `both`", True),
        METRIC,
        VALUE,
        N,
        N_CLUSTERS,
        LOW,
        HIGH,
        Column("prompt_set", NAME, "", "prompts it is over", True),
        Column("definition", NAME, "", "the metric in one sentence", True),
    ),
    key=("analysis_id", "base_run", "trial", "fold", "metric"),
    sort=("trial", "metric"),
    writer="analysis_id",
    subject=("base_run",),
)

INTERVENTION_PROMPTS = Table(
    "intervention_prompts",
    "The numbers behind `interventions`: one row per trial, prompt and metric.",
    (ANALYSIS, BASE_RUN, TRIAL, FOLD, PROMPT, METRIC, VALUE),
    key=("analysis_id", "base_run", "trial", "prompt_id", "metric"),
    sort=("trial", "prompt_id", "metric"),
    writer="analysis_id",
    subject=("base_run",),
)

ESTIMATES = Table(
    "estimates",
    "What giving a dropped key back to a head would do to the answer's loss, by one backward pass: the largest "
    "contributions of each prompt.",
    (
        ANALYSIS,
        BASE_RUN,
        PROMPT,
        LAYER,
        HEAD,
        Column("q_pos", U32, "token", "the row (destination)"),
        Column("k_pos", U32, "token", "the key (source)"),
        Column(
            "value",
            F32,
            "nats",
            "∂ answer NLL/∂ pattern × (dense − executed pattern): below 0, the key would help",
        ),
        Column("head_value", F32, "nats", "the sum over all rows and keys of the head"),
    ),
    key=("analysis_id", "base_run", "prompt_id", "layer", "head", "q_pos", "k_pos"),
    sort=("prompt_id", "layer", "head"),
    writer="analysis_id",
    subject=("base_run",),
)

NOTES = Table(
    "notes",
    "What somebody wrote about a run, by `sparselens note` or on the Runs page: one row per run, the newest.",
    (
        SUBJECT,
        Column(
            "text",
            TEXT,
            "",
            "the note; NULL where it was taken back. `pack --strip-text` empties it: it may quote a prompt",
            True,
            reveals=True,
        ),
        Column("written_at", TIME, "UTC", "when it was written"),
        ANALYSIS,
    ),
    key=("run_id",),
    writer="analysis_id",
    subject=("run_id",),
    by_args=False,
)
