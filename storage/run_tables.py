"""Tables about runs and about the prompts they ran on."""

from __future__ import annotations

from sparselens.storage.column import BOOL, F64, IDS, NAME, NAMES, TEXT, TIME, U8, U32, U64, Column, Table

RUN = Column("run_id", NAME, "", "the run; unique over machines, never reused")
PROMPT = Column("prompt_id", NAME, "", "the prompt: hash of its token ids and the tokenizer")

RUNS = Table(
    "runs",
    "One row a run: a capture under one policy, or an analysis, diff or sweep. Derived by the reader from "
    "run.json, manifest.json and the heartbeat.",
    (
        RUN,
        Column("name", TEXT, "", "the name people call it by; not unique", True),
        Column("kind", TEXT, "", "`capture`, or what wrote it: `diff`, `analysis`, `sweep` …"),
        Column("parents", NAMES, "", "run ids it was computed from; for a paired capture its base run"),
        Column("model", TEXT, "", "model as given: short name, hub id or folder", True),
        Column("model_revision", TEXT, "", "revision of the weights (commit, package version)", True),
        Column("weight_hash", TEXT, "", "hash of the weights that ran", True),
        Column("quantisation", TEXT, "", "where the weights were quantised before (e.g. Q4_1 GGUF)", True),
        Column("tokenizer_hash", TEXT, "", "hash of the tokenizer", True),
        Column("template_hash", TEXT, "", "hash of the chat template, where one was used", True),
        Column("policy", TEXT, "", "the policy as a call; `dense()` is the full attention", True),
        Column("policy_json", TEXT, "JSON", "the policy as JSON", True),
        Column("policy_source", TEXT, "", "source code of a policy that is not part of the package", True),
        Column("policy_hash", TEXT, "", "hash of that source", True),
        Column("calibration_hash", TEXT, "", "hash of the plan or calibration the policy reads", True),
        Column("phase", TEXT, "", "`prefill`, `decode` or `both`: where the policy applies", True),
        Column("off_label", BOOL, "", "the paper trained the model with this policy; here it was not", True),
        Column("lookahead", BOOL, "", "the policy looks at queries after the one it decides for", True),
        Column(
            "dense_call_share",
            F64,
            "share",
            "attention calls that ran dense (phase, dense_below) ÷ all",
            True,
        ),
        Column("kernel", TEXT, "", "the kernel that computed attention", True),
        Column("dtype", TEXT, "", "floating-point type of the forward pass", True),
        Column("device", TEXT, "", "device of the forward pass", True),
        Column("threads", U32, "threads", "threads the forward pass could use", True),
        Column("seed", U64, "", "seed of everything random in the run", True),
        Column("args", TEXT, "JSON", "arguments of the capture or analysis, keys sorted"),
        Column("prompt_set", TEXT, "", "the prompt set as a call, or the file it came from", True),
        Column("n_prompts", U32, "prompts", "prompts that are complete in the run"),
        Column("n_tokens", U64, "tokens", "tokens of those prompts"),
        Column("created_at", TIME, "UTC", "start of the run"),
        Column("finished_at", TIME, "UTC", "end of the run; NULL while it is not complete", True),
        Column("seconds", F64, "s", "wall time of the run, writing included, over all its resumptions", True),
        Column("tokens_per_s", F64, "tokens/s", "n_tokens ÷ seconds", True),
        Column(
            "status",
            TEXT,
            "",
            "`complete` (it has a manifest), `running` (heartbeat less than a minute old) or `interrupted`",
        ),
        Column(
            "verify_kernel",
            BOOL,
            "",
            "kernel outputs agreed with the fp64 recomputation; NULL not checked",
            True,
        ),
        Column(
            "verify_logits",
            BOOL,
            "",
            "logits agreed with the bare HF model under the mask; NULL not checked",
            True,
        ),
        Column("verify_calls", BOOL, "", "kernel calls = layers × forwards; NULL not checked", True),
        Column("verify_detail", TEXT, "JSON", "what the three checks measured", True),
        Column("packages", TEXT, "JSON", "versions of python and the packages that matter"),
        Column("command", TEXT, "", "the exact command; empty from Python", True),
        Column("extra", TEXT, "JSON", "anything else the run recorded"),
        Column("schema_version", U32, "", "version of this schema the run was written with"),
    ),
    key=("run_id",),
    stored=False,
)

PROMPTS = Table(
    "prompts",
    "One row a prompt, whichever runs ran on it (the newest run's copy).",
    (
        RUN,
        PROMPT,
        Column("name", TEXT, "", "the prompt's `id` in its file or set", reveals=True),
        Column("prompt_set", NAME, "", "the set it belongs to", True),
        Column("grp", NAME, "", "cluster for bootstraps: template or needle family", True, reveals=True),
        Column("pair_id", TEXT, "", "joins a clean and a corrupt prompt", True, reveals=True),
        Column("n_tokens", U32, "tokens", "length, the teacher-forced answer included"),
        Column(
            "bos_mode",
            NAME,
            "",
            "how the start of text was handled (`default`, `added`, `left out`, `template`, `given`)",
            True,
        ),
        Column("template", TEXT, "", "name or hash of the chat template used", True),
        Column("metadata", TEXT, "JSON", "what the prompt's author attached", True, reveals=True),
        Column(
            "answer_ids",
            IDS,
            "token ids",
            "the answer's tokens; they are the span `answer`",
            True,
            reveals=True,
        ),
        Column(
            "foil_ids",
            IDS,
            "token ids",
            "first tokens of wrong answers, for logit differences",
            True,
            reveals=True,
        ),
    ),
    key=("prompt_id",),
    sort=("prompt_id",),
    shared=True,
)

TOKENS = Table(
    "tokens",
    "The tokens of every prompt.",
    (
        RUN,
        PROMPT,
        Column("pos", U32, "token", "absolute position, from 0, padding not counted"),
        Column("token_id", U32, "token id", "id in the model's vocabulary", True, reveals=True),
        Column("text", TEXT, "", "the token as text, spaces and newlines as they are", True, reveals=True),
        Column("is_special", BOOL, "", "a special token of the tokenizer (BOS, chat marks)"),
    ),
    key=("prompt_id", "pos"),
    sort=("prompt_id", "pos"),
    shared=True,
)

SPANS = Table(
    "spans",
    "Named token ranges of every prompt: needle, answer, IO, END …",
    (
        RUN,
        PROMPT,
        Column("name", NAME, "", "name of the span; `span:NAME` in a `rows` column refers to it"),
        Column("start", U32, "token", "first position"),
        Column("stop", U32, "token", "position after the last"),
    ),
    key=("prompt_id", "name"),
    sort=("prompt_id", "start"),
    shared=True,
)

SUBJECTS = Table(
    "subjects",
    "What each writer's rows are about: which results supersede which is decided from it.",
    (
        Column("tbl", NAME, "", "table the rows are in"),
        Column("analysis_id", NAME, "", "run that wrote them"),
        Column("s1", NAME, "", "first subject column's value"),
        Column("s2", NAME, "", "second subject column's value; empty where there is none"),
        Column("s3", NAME, "", "third subject column's value; empty where there is none"),
        Column("s4", NAME, "", "fourth subject column's value; empty where there is none"),
    ),
    key=("tbl", "analysis_id", "s1", "s2", "s3", "s4"),
    writer="analysis_id",
    internal=True,
)

LAYER = Column("layer", U8, "", "layer, from 0")
HEAD = Column("head", U8, "", "query head, from 0")
