"""Tables of circuits: which edges carry a task, how much of it, which heads send, what a policy leaves of it."""

from __future__ import annotations

from sparselens.storage.column import BOOL, F32, F64, NAME, TEXT, U8, U32, Column, Table
from sparselens.storage.result_tables import ANALYSIS, HIGH, LOW, N_CLUSTERS, N
from sparselens.storage.run_tables import HEAD, LAYER

CIRCUIT = Column(
    "circuit", NAME, "", "the circuit: hash of weights, task, policy it was found under, and arguments"
)
FOUND_UNDER = Column("policy", NAME, "", "the policy it was found under")
RAN_UNDER = Column("policy", NAME, "", "the policy that ran")
TASK = Column("task", NAME, "", "the task")

CIRCUITS = Table(
    "circuits",
    "Circuits of tasks: the edges of largest |score| that carry the asked share of the metric on held-out prompts.",
    (
        CIRCUIT,
        TASK,
        FOUND_UNDER,
        Column("model", NAME, "", "the model"),
        Column("prompts", TEXT, "", "the prompt set as a call"),
        Column("metric", NAME, "", "what is carried, in words"),
        Column(
            "asked",
            U32,
            "edges",
            "edges taken, by |score|; the smallest tried that suffices, else the largest",
        ),
        Column("n_edges", U32, "edges", "what is left of them on a way from the input to the logits"),
        Column("n_heads", U32, "heads", "heads that send along one of them"),
        Column("n_mlps", U32, "MLPs", "MLPs that do"),
        Column("all_edges", U32, "edges", "edges of the model's graph"),
        Column("stored", U32, "edges", "edges in `circuit_edges`: those of largest |score|"),
        Column("unstored", F64, "share", "share of Σ |score| on edges that are not stored"),
        Column("faithfulness", F64, "share", "see `circuit_curves`, at this size", True),
        LOW,
        HIGH,
        Column("sufficient", BOOL, "", "whether it reaches the asked faithfulness"),
        Column("whole", F64, "see metric", "mean metric of the whole model under the policy, test prompts"),
        Column("empty", F64, "see metric", "the same with everything ablated"),
        Column("accuracy", F64, "share", "share of all prompts answered right under the policy"),
        Column("chance", F64, "share", "what guessing gets, or the reference prompts if that is more"),
        Column("n_found", U32, "prompts", "prompts that the scores are means over"),
        N,
        N_CLUSTERS,
        ANALYSIS,
    ),
    key=("circuit", "analysis_id"),
    writer="analysis_id",
    subject=("circuit",),
    by_args=False,
)

CIRCUIT_EDGES = Table(
    "circuit_edges",
    "The edges of largest |score| of each circuit's search, also those that the circuit does not take.",
    (
        CIRCUIT,
        Column("sender", NAME, "", "`input`, a head `L0H0` or an MLP `M0`"),
        Column(
            "receiver",
            NAME,
            "",
            "a head's query `L0H0.q`, a key-value head's `L0G0.k` or `L0G0.v`, `M0.in`, `logits`",
        ),
        Column(
            "score",
            F32,
            "see metric",
            "predicted change of the metric when this edge alone is ablated (EAP-IG)",
        ),
        Column("rank", U32, "", "place by |score|, from 1"),
        Column("in_circuit", BOOL, "", "whether the circuit takes it"),
        ANALYSIS,
    ),
    key=("circuit", "sender", "receiver", "analysis_id"),
    sort=("rank",),
    writer="analysis_id",
    subject=("circuit",),
    by_args=False,
)

_INTERVAL = "end of its 95 % bootstrap interval over clusters of test prompts"

CIRCUIT_NODES = Table(
    "circuit_nodes",
    "What each sender does for a task. Intervals are over the test prompts.",
    (
        CIRCUIT,
        Column("node", NAME, "", "`input`, a head `L0H0` or an MLP `M0`"),
        Column("layer", U8, "", "its layer; NULL of the input", True),
        Column("head", HEAD.type, "", "query head; NULL of an MLP and of the input", True),
        Column(
            "score",
            F32,
            "see metric",
            "sum of the scores of its edges: predicted change when the node is ablated",
        ),
        Column(
            "direct", F32, "logits", "what it writes itself into the logit difference, past all that reads it"
        ),
        Column("direct_low", F32, "logits", f"lower {_INTERVAL}", True),
        Column("direct_high", F32, "logits", f"upper {_INTERVAL}", True),
        Column(
            "ablated",
            F32,
            "see metric",
            "change of the metric when the head is ablated; NULL: not tried",
            True,
        ),
        Column("ablated_low", F32, "see metric", f"lower {_INTERVAL}", True),
        Column("ablated_high", F32, "see metric", f"upper {_INTERVAL}", True),
        Column(
            "minimality",
            F32,
            "share",
            "faithfulness that the circuit loses without the head; NULL: not in it, or not tried",
            True,
        ),
        Column("minimality_low", F32, "share", f"lower {_INTERVAL}", True),
        Column("minimality_high", F32, "share", f"upper {_INTERVAL}", True),
        Column("in_circuit", BOOL, "", "whether it sends along an edge of the circuit"),
        ANALYSIS,
    ),
    key=("circuit", "node", "analysis_id"),
    sort=("layer", "head"),
    writer="analysis_id",
    subject=("circuit",),
    by_args=False,
)

CIRCUIT_CURVES = Table(
    "circuit_curves",
    "How much of a task a circuit's best edges carry, by their number, over test prompts: ratios of means. F is the "
    "metric, M the whole model, C the circuit, ∅ the model with everything ablated, all under the policy that ran.",
    (
        CIRCUIT,
        RAN_UNDER,
        Column(
            "measure",
            NAME,
            "",
            "`faithfulness` (F(C) − F(∅)) ÷ (F(M) − F(∅)); `complement` the same of all edges but C; `base_job` "
            "(F(C) − F(∅)) ÷ (F(M) − F(∅) of the base); `random` faithfulness of as many edges grown at random",
        ),
        Column("asked", U32, "edges", "edges taken by |score|"),
        Column("n_edges", U32, "edges", "what is left of them on a way from the input to the logits"),
        Column("value", F64, "share", "the value"),
        LOW,
        HIGH,
        N,
        N_CLUSTERS,
        ANALYSIS,
    ),
    key=("circuit", "policy", "measure", "asked", "analysis_id"),
    sort=("measure", "asked"),
    writer="analysis_id",
    subject=("circuit", "policy"),
    by_args=False,
)

CIRCUIT_READS = Table(
    "circuit_reads",
    "What the heads of a circuit read in the places that the task names, and whether a policy keeps those keys; means "
    "over the clean prompts.",
    (
        CIRCUIT,
        RAN_UNDER,
        Column("read", NAME, "", "row and key by what stands there, such as `END→IO`"),
        LAYER,
        HEAD,
        Column("mass_base", F32, "mass", "attention of the row on the key under the base"),
        Column("kept", F32, "share", "share of the prompts in which the policy keeps the key in that row"),
        Column("mass", F32, "mass", "attention of the row on the key under the policy, as it ran"),
        N,
        ANALYSIS,
    ),
    key=("circuit", "policy", "read", "layer", "head", "analysis_id"),
    sort=("read", "layer", "head"),
    writer="analysis_id",
    subject=("circuit", "policy"),
    by_args=False,
)

CIRCUIT_OVERLAPS = Table(
    "circuit_overlaps",
    "How much two circuits share, and what as many edges or heads drawn at random would.",
    (
        Column("circuit_a", NAME, "", "a circuit (see `circuits`)"),
        Column(
            "circuit_b",
            NAME,
            "",
            "another one; the same: its scores on two halves of the prompts it was found on",
        ),
        Column("level", NAME, "", "`edges` or `heads`, each the best by |score|"),
        Column("size", U32, "", "how many of each are compared"),
        Column("among", U32, "", "how many there are"),
        Column("shared", U32, "", "how many both have"),
        Column("jaccard", F64, "share", "shared ÷ in either"),
        Column("expected", F64, "", "how many would be shared at random: size² ÷ among"),
        Column("expected_jaccard", F64, "share", "their share of those in either"),
        Column("p", F64, "probability", "of sharing at least as many at random (hypergeometric)"),
        Column(
            "spearman",
            F64,
            "ρ",
            "rank correlation of the scores of all heads, signs kept; NULL of edges",
            True,
        ),
        ANALYSIS,
    ),
    key=("circuit_a", "circuit_b", "level", "analysis_id"),
    writer="analysis_id",
    subject=("circuit_a", "circuit_b", "level", "size"),
    by_args=False,
)

CIRCUIT_TABLES = (
    CIRCUITS,
    CIRCUIT_EDGES,
    CIRCUIT_NODES,
    CIRCUIT_CURVES,
    CIRCUIT_READS,
    CIRCUIT_OVERLAPS,
)
