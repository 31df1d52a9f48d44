-- name: stored
SELECT count(*) FILTER (WHERE write_error IS NOT NULL) AS errors FROM diffs WHERE run_a = $base AND run_b = $run;

-- name: prompts
SELECT p.prompt_id, coalesce(p.grp, p.prompt_id) AS cluster,
       coalesce(json_extract_string(p.metadata, '$.set'), p.prompt_set, '') AS prompt_set
FROM prompts p WHERE p.prompt_id IN (SELECT prompt_id FROM diffs WHERE run_a = $base AND run_b = $run)
ORDER BY p.prompt_id;

-- name: heads
SELECT prompt_id, scope, rows, layer, head, write_error, kept_mass, kept_mass_nosink, top8_overlap, js
FROM diffs
WHERE run_a = $base AND run_b = $run AND rows IN ('all', 'affected', 'span:answer') AND n_rows > 0;

-- name: tokens
WITH tokens AS (
  SELECT t.*, abs(t.nll_change) AS nll_change_abs, t.top1_same::INT::DOUBLE AS same,
         coalesce(t.pos >= s.start AND t.pos < s.stop, false) AS answers
  FROM token_diffs t LEFT JOIN spans s ON s.prompt_id = t.prompt_id AND s.name = 'answer'
  WHERE t.run_a = $base AND t.run_b = $run
)
SELECT prompt_id, avg(affected::INT) AS affected_tokens,
       avg(kl) AS kl, avg(kl) FILTER (WHERE affected) AS kl_affected, avg(kl) FILTER (WHERE answers) AS kl_answer,
       avg(nll_change) AS nll_change, avg(nll_change) FILTER (WHERE affected) AS nll_change_affected,
       avg(nll_change) FILTER (WHERE answers) AS nll_change_answer,
       avg(nll_change_abs) AS nll_change_abs, avg(nll_change_abs) FILTER (WHERE affected) AS nll_change_abs_affected,
       avg(nll_change_abs) FILTER (WHERE answers) AS nll_change_abs_answer,
       avg(same) AS top1_same, avg(same) FILTER (WHERE affected) AS top1_same_affected,
       avg(same) FILTER (WHERE answers) AS top1_same_answer
FROM tokens GROUP BY prompt_id ORDER BY prompt_id;

-- name: buckets
SELECT prompt_id, (pos // $bucket)::INT AS bucket, avg(kl) AS kl, avg(nll_change) AS nll_change,
       avg(top1_same::INT) AS top1_same
FROM token_diffs WHERE run_a = $base AND run_b = $run GROUP BY ALL ORDER BY bucket, prompt_id;

-- name: answers
SELECT run_id = $run AS of_run, prompt_id, metric, value FROM prompt_scores
WHERE run_id IN ($base, $run) AND analysis_id = run_id AND metric IN ('answer_forced', 'answer_generated')
  AND value IS NOT NULL
ORDER BY ALL;

-- name: roles
SELECT layer, head, metric, value, n, n_clusters, prompt_set, rows FROM head_scores_history
WHERE analysis_id = $analysis AND head IS NOT NULL AND metric IN ('induction', 'previous_token', 'duplicate_token')
ORDER BY metric, layer, head;

-- name: shown
SELECT 'L' || layer || 'H' || head AS head_name,
       max(value) FILTER (WHERE metric = 'write_error' AND rows = $rows) AS write_error,
       max(ci_low) FILTER (WHERE metric = 'write_error' AND rows = $rows) AS ci_low,
       max(ci_high) FILTER (WHERE metric = 'write_error' AND rows = $rows) AS ci_high,
       max(value) FILTER (WHERE metric = 'noise_write_error' AND rows = $floor) AS noise_kernel,
       max(value) FILTER (WHERE metric LIKE 'noise_write_error_%' AND rows = $floor) AS noise_dtype,
       max(value) FILTER (WHERE metric = 'write_error_local_mask' AND rows = $rows) AS local_mask,
       max(value) FILTER (WHERE metric = 'kept_mass' AND rows = $rows) AS kept_mass,
       max(value) FILTER (WHERE metric = 'kept_mass_nosink' AND rows = $rows) AS kept_mass_nosink,
       max(value) FILTER (WHERE metric = 'retrieval_base') AS retrieval_base,
       max(value) FILTER (WHERE metric = 'retained_retrieval') AS retained_retrieval,
       max(value) FILTER (WHERE metric = 'needle_kept') AS needle_kept,
       max(value) FILTER (WHERE metric = 'sink_fallback') AS sink_fallback,
       max(n) FILTER (WHERE metric = 'write_error' AND rows = $rows) AS n,
       max(n_clusters) FILTER (WHERE metric = 'write_error' AND rows = $rows) AS clusters
FROM head_scores_history WHERE analysis_id = $analysis AND head IS NOT NULL
GROUP BY layer, head ORDER BY write_error DESC NULLS LAST, layer, head;

-- name: shown_rows
SELECT DISTINCT rows FROM head_scores_history WHERE analysis_id = $analysis AND metric = 'write_error';

-- name: shown_evals
SELECT metric, value, n, n_clusters, ci_low, ci_high FROM evals_history WHERE analysis_id = $analysis;

-- name: shown_roles
SELECT metric, count(*) AS heads, avg(value) AS mean, min(value) AS low, max(value) AS high FROM head_scores_history
WHERE analysis_id = $analysis AND metric IN ('retained_induction', 'retained_previous_token', 'retained_duplicate_token')
GROUP BY metric ORDER BY metric;
