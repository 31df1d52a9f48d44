-- name: prompts_of
SELECT run_id, prompt_id FROM run_prompts WHERE run_id IN (SELECT unnest($all_runs)) ORDER BY run_id, prompt_id;

-- name: prompts
SELECT p.prompt_id, p.name, coalesce(p.grp, p.prompt_id) AS cluster, p.n_tokens, p.bos_mode, p.prompt_set,
       coalesce(json_extract_string(p.metadata, '$.set'), p.prompt_set) AS call,
       json_extract_string(p.metadata, '$.family') AS family,
       TRY_CAST(json_extract_string(p.metadata, '$.depth') AS DOUBLE) AS depth
FROM prompts p WHERE p.prompt_id IN (SELECT prompt_id FROM run_prompts WHERE run_id = $base)
ORDER BY p.prompt_set, p.name, p.prompt_id;

-- name: scores
SELECT s.run_id, s.prompt_id, s.metric, s.value
FROM prompt_scores s WHERE s.run_id IN (SELECT unnest($all_runs)) AND s.value IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY s.run_id, s.prompt_id, s.metric
                           ORDER BY s.analysis_id = s.run_id DESC, s.analysis_id DESC, s.task) = 1
ORDER BY s.run_id, s.prompt_id, s.metric;

-- name: token_changes
SELECT run_b AS run_id, prompt_id, avg(kl) AS kl, avg(kl) FILTER (WHERE affected) AS kl_affected,
       avg(top1_same::INT) AS top1, avg(top1_same::INT) FILTER (WHERE affected) AS top1_affected
FROM token_diffs WHERE run_a = $base AND run_b IN (SELECT unnest($runs))
GROUP BY ALL ORDER BY run_b, prompt_id;

-- name: summaries
SELECT run_id, avg(density) AS density, avg(density_computed) AS density_computed, avg(kv_read_share) AS kv_read_share,
       avg(sink_mass) AS sink_mass
FROM head_stats
WHERE run_id IN (SELECT unnest($all_runs)) AND pattern = 'executed' AND rows = 'all'
  AND prompt_id IN (SELECT prompt_id FROM run_prompts WHERE run_id = $base)
GROUP BY run_id;

-- name: rows_there
SELECT DISTINCT run_b AS run_id, rows FROM diffs
WHERE run_a = $base AND run_b IN (SELECT unnest($runs)) AND scope = 'end_to_end' AND n_rows > 0;

-- name: heads
SELECT run_b AS run_id, scope, layer, head, 'L' || layer || 'H' || head AS head_name, count(*) AS n_prompts,
       sum(n_rows)::BIGINT AS n_rows, avg(write_error) AS write_error, avg(kept_mass) AS kept_mass,
       avg(kept_mass_nosink) AS kept_mass_nosink, avg(js) AS js, avg(top8_overlap) AS top8_overlap,
       avg(sink_change) AS sink_change
FROM diffs
WHERE run_a = $base AND run_b IN (SELECT unnest($runs)) AND rows = $rows AND n_rows > 0
GROUP BY ALL
ORDER BY run_b, scope, avg(write_error) DESC NULLS LAST, layer, head;

-- name: errors
SELECT d.run_b AS run_id, d.layer, d.head, d.prompt_id, d.write_error AS value, coalesce(p.grp, d.prompt_id) AS cluster
FROM diffs d JOIN prompts p USING (prompt_id)
WHERE d.run_a = $base AND d.run_b IN (SELECT unnest($runs)) AND d.scope = 'end_to_end' AND d.rows = $rows
  AND d.n_rows > 0 AND d.write_error IS NOT NULL
ORDER BY d.run_b, d.layer, d.head, d.prompt_id;

-- name: head_scores
SELECT r.run_id, s.layer, s.head, s.metric, s.value, s.prompt_set, s.rows, s.definition, w.name AS analysis
FROM head_scores s JOIN runs w ON w.run_id = s.analysis_id
JOIN runs r ON r.run_id IN (SELECT unnest($all_runs))
  AND (s.run_id = r.run_id
       OR (w.weight_hash = r.weight_hash AND w.tokenizer_hash = r.tokenizer_hash AND w.policy = r.policy
           AND json_extract_string(w.args, '$.run') IS NULL))
WHERE regexp_matches(s.metric, '^(previous_token|duplicate_token|induction|retrieval$|retained_|noise_write_error$'
                               || '|sink_rate$|sink_alpha$|sink_mass$|sink_mass_code$)')
  AND coalesce(s.params, '') NOT LIKE '%"ranking": true%'
QUALIFY row_number() OVER (PARTITION BY r.run_id, w.name = 'sinks', s.layer, s.head, s.metric, s.rows
                           ORDER BY w.created_at DESC, w.run_id DESC) = 1
ORDER BY r.run_id, s.metric, s.layer, s.head;

-- name: evals
SELECT r.run_id, e.task, e.metric, e.value, e.n, e.n_clusters, e.ci_low, e.ci_high, w.name AS analysis
FROM evals e JOIN runs w ON w.run_id = e.analysis_id
JOIN runs r ON r.run_id IN (SELECT unnest($all_runs))
  AND (e.run_id = r.run_id
       OR (w.weight_hash = r.weight_hash AND w.tokenizer_hash = r.tokenizer_hash AND w.policy = r.policy
           AND json_extract_string(w.args, '$.run') IS NULL))
QUALIFY row_number() OVER (PARTITION BY r.run_id, e.task, e.metric ORDER BY w.created_at DESC, w.run_id DESC) = 1
ORDER BY e.task, e.metric, r.run_id;

-- name: definitions
SELECT DISTINCT w.name AS analysis, json_extract_string(w.extra, '$.definitions') AS definitions
FROM evals e JOIN runs w ON w.run_id = e.analysis_id
WHERE e.run_id IN (SELECT unnest($all_runs)) AND json_extract_string(w.extra, '$.definitions') IS NOT NULL
ORDER BY w.name;

-- name: interventions
WITH every AS (
  SELECT r.run_id, w.name AS analysis, w.args, w.extra, w.created_at, i.*,
         count(DISTINCT i.draw) OVER (PARTITION BY r.run_id, i.analysis_id, i.kind, i.order_by,
                                      i.matched, i.n_heads) AS n_draws
  FROM interventions i JOIN runs w ON w.run_id = i.analysis_id
  JOIN runs b ON b.run_id = $base
  JOIN runs r ON r.run_id IN (SELECT unnest($runs))
  WHERE coalesce(json_extract_string(w.args, '$.policy'), w.policy) = r.policy
    AND coalesce(json_extract_string(w.args, '$.base'), b.policy) = b.policy
    AND (i.base_run IN (r.run_id, b.run_id)
         OR (w.weight_hash = r.weight_hash AND w.tokenizer_hash = r.tokenizer_hash))
)
SELECT * FROM every WHERE draw IS NULL
ORDER BY run_id, created_at, analysis_id, trial, fold NULLS FIRST, metric;

-- name: answers
SELECT n.run_id, n.prompt_id, n.pos, t.text, n.nll, n.top1_id, n.top1_id = t.token_id AS right
FROM predictions n
JOIN spans s ON s.prompt_id = n.prompt_id AND s.name = 'answer' AND n.pos >= s.start AND n.pos < s.stop
JOIN tokens t ON t.prompt_id = n.prompt_id AND t.pos = n.pos
WHERE n.run_id IN (SELECT unnest($all_runs)) AND n.prompt_id IN (SELECT unnest($prompts))
ORDER BY n.run_id, n.prompt_id, n.pos;

-- name: generated
SELECT run_id, prompt_id, string_agg(text, '' ORDER BY step) AS text FROM generations
WHERE run_id IN (SELECT unnest($all_runs)) AND prompt_id IN (SELECT unnest($prompts)) GROUP BY ALL;

-- name: worst_tokens
SELECT t.run_b AS run_id, t.prompt_id, t.pos, t.kl, t.nll_change, t.affected, a.top1_id AS base_id, b.top1_id AS run_top,
       a.top1_p AS base_p, b.top1_p AS run_p
FROM (
  SELECT * FROM token_diffs WHERE run_a = $base AND run_b IN (SELECT unnest($runs)) AND kl IS NOT NULL
  QUALIFY row_number() OVER (PARTITION BY run_b, prompt_id ORDER BY kl DESC, pos) <= $each
) t
JOIN predictions a ON a.run_id = t.run_a AND a.prompt_id = t.prompt_id AND a.pos = t.pos
JOIN predictions b ON b.run_id = t.run_b AND b.prompt_id = t.prompt_id AND b.pos = t.pos
QUALIFY row_number() OVER (PARTITION BY t.run_b ORDER BY t.kl DESC, t.prompt_id, t.pos) <= $top
ORDER BY t.run_b, t.kl DESC, t.prompt_id, t.pos;

-- name: contexts
SELECT w.prompt_id, w.pos, string_agg(t.text, '' ORDER BY t.pos) FILTER (WHERE t.pos < w.pos) AS before,
       any_value(t.text) FILTER (WHERE t.pos = w.pos) AS token
FROM (SELECT DISTINCT prompt_id, pos FROM (SELECT unnest($prompts) AS prompt_id, unnest($positions) AS pos)) w
JOIN tokens t ON t.prompt_id = w.prompt_id AND t.pos <= w.pos AND t.pos >= w.pos - $reach
GROUP BY ALL;

-- name: token_texts
SELECT token_id, any_value(text) AS text
FROM (SELECT token_id, text FROM tokens UNION ALL SELECT token_id, text FROM generations)
WHERE token_id IN (SELECT unnest($ids)) AND text IS NOT NULL GROUP BY token_id;
