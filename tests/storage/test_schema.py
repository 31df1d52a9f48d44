"""The schema is said once: documents, files and views agree with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparselens.storage.reader import connect
from sparselens.storage.schema import PUBLIC, markdown, table, view_columns
from sparselens.storage.trace import Trace

ROOT = Path(__file__).resolve().parents[2]

# The columns that the design promises (§5).
PROMISED = {
    "runs": "run_id name kind parents model model_revision policy policy_json phase off_label lookahead "
    "dense_call_share kernel dtype device seed args prompt_set n_prompts n_tokens created_at seconds status "
    "verify_kernel verify_logits verify_calls",
    "prompts": "prompt_id name prompt_set grp pair_id n_tokens bos_mode template metadata",
    "tokens": "prompt_id pos token_id text is_special",
    "spans": "prompt_id name start stop",
    "head_stats": "run_id prompt_id pattern rows layer head head_name n_rows entropy entropy_norm sink_mass "
    "previous_mass local_mass distance density density_computed kept_mass kept_mass_nosink write_norm",
    "row_stats": "run_id prompt_id pattern layer head q_pos entropy lse sink_mass kept_mass unstored_mass "
    "write_error",
    "edges": "run_id prompt_id layer head q_pos k_pos p p_base kept reason",
    "predictions": "run_id prompt_id pos nll top1_id top1_p",
    "token_stats": "run_id prompt_id layer pos resid_norm received_mass",
    "value_norms": "run_id prompt_id layer head pos value_write_norm",
    "selections": "run_id prompt_id layer head kind density density_computed data",
    "pooled_maps": "run_id prompt_id pattern layer head pool size data",
    "diffs": "run_a run_b prompt_id scope rows layer head n_rows write_error kept_mass kept_mass_nosink js "
    "top8_overlap out_cosine sink_change entropy_change",
    "token_diffs": "run_a run_b prompt_id pos kl nll_change top1_same",
    "head_scores": "run_id layer head metric value n n_clusters ci_low ci_high prompt_set rows params definition "
    "analysis_id",
    "evals": "run_id task metric value n n_clusters ci_low ci_high analysis_id",
    "prompt_scores": "run_id prompt_id task metric value analysis_id",
    "generations": "run_id prompt_id step token_id text correct",
    "interventions": "analysis_id base_run trial fold kind heads n_heads order_by draw phase metric value n n_clusters "
    "ci_low ci_high prompt_set definition",
    "intervention_prompts": "analysis_id base_run trial fold prompt_id metric value",
    "activations": "run_id prompt_id hook layer head pos vector",
}


def test_the_document_is_the_schema() -> None:
    assert (ROOT / "docs" / "schema.md").read_text(encoding="utf-8") == markdown(), (
        "run `python -m sparselens.storage.schema`"
    )


@pytest.mark.parametrize("name", PROMISED)
def test_every_promised_column_is_there(name: str) -> None:
    assert set(PROMISED[name].split()) <= {column.name for column in view_columns(PUBLIC[name])}


def test_every_column_says_what_it_means() -> None:
    silent = [f"{t.name}.{c.name}" for t in PUBLIC.values() for c in t.columns if len(c.meaning) < 8]
    assert silent == []


def test_keys_sorts_and_subjects_name_columns() -> None:
    for declared in PUBLIC.values():
        for name in (*declared.key, *declared.sort, *declared.subject):
            assert declared[name].name == name


def test_every_view_of_an_empty_trace_has_the_declared_columns_and_types(trace_path: Path) -> None:
    Trace.create(trace_path)
    with connect(trace_path) as trace:
        for declared in PUBLIC.values():
            found = trace.sql(f"DESCRIBE {declared.name}").rows
            assert [row[:2] for row in found] == [(c.name, c.sql_type) for c in view_columns(declared)]


def test_an_unknown_table_or_column_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match="unknown table 'edgse'; the trace has runs, prompts"):
        table("edgse")
    with pytest.raises(ValueError, match="edges has no column 'q'; it has run_id, prompt_id"):
        table("edges")["q"]
