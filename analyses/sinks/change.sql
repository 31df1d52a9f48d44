-- name: levels
WITH affected AS (
  SELECT DISTINCT prompt_id, (pos - 1)::UINTEGER AS q_pos FROM token_diffs
  WHERE run_b = $run AND affected AND pos > $first
)
SELECT prompt_id, layer, head, avg(sink_mass) FILTER (WHERE run_id = $base) AS sink_mass_base,
       avg(sink_mass) FILTER (WHERE run_id = $run) AS sink_mass_run,
       avg(entropy) FILTER (WHERE run_id = $run) - avg(entropy) FILTER (WHERE run_id = $base) AS entropy_change,
       avg(unstored_mass) FILTER (WHERE run_id = $run) AS unstored_mass
FROM row_stats SEMI JOIN affected USING (prompt_id, q_pos)
WHERE run_id IN ($base, $run) AND pattern = 'executed' GROUP BY ALL;

-- name: tokens
SELECT prompt_id, layer,
       count(*) FILTER (WHERE later AND now AND NOT was)::DOUBLE AS new_sinks,
       count(*) FILTER (WHERE later AND was AND NOT now)::DOUBLE AS lost_sinks,
       any_value(norm_change) FILTER (WHERE pos = 0) AS first_residual_change,
       avg(norm_change) FILTER (WHERE later AND was) AS other_residual_change
FROM (
  SELECT a.prompt_id, a.layer, a.pos, a.pos > 0 AND a.pos < p.n_tokens - greatest($edge, p.n_tokens // $edge) AS later,
         a.received_mass > $received AS was, b.received_mass > $received AS now,
         b.resid_norm / nullif(a.resid_norm, 0) - 1 AS norm_change
  FROM token_stats a JOIN token_stats b USING (prompt_id, layer, pos) JOIN prompts p USING (prompt_id)
  WHERE a.run_id = $base AND b.run_id = $run
) GROUP BY ALL;

-- name: drains
SELECT prompt_id, layer, head,
       any_value(value_write_norm) FILTER (WHERE pos = 0 AND run_id = $run)
         / nullif(avg(value_write_norm) FILTER (WHERE pos > 0 AND run_id = $run), 0)
       - any_value(value_write_norm) FILTER (WHERE pos = 0 AND run_id = $base)
         / nullif(avg(value_write_norm) FILTER (WHERE pos > 0 AND run_id = $base), 0) AS value_drain_change
FROM value_norms WHERE run_id IN ($base, $run)
GROUP BY ALL HAVING count(*) FILTER (WHERE run_id = $run) > 0;

-- name: losses
SELECT DISTINCT prompt_id, (d.pos - 1)::INT AS q_pos, a.nll AS base, b.nll AS run
FROM token_diffs d JOIN predictions a USING (prompt_id, pos) JOIN predictions b USING (prompt_id, pos)
WHERE d.run_b = $run AND d.affected AND d.pos > $first AND a.run_id = $base AND b.run_id = $run
ORDER BY prompt_id, q_pos;

-- name: selections
SELECT layer, head, data FROM selections WHERE run_id = $run AND prompt_id = $prompt ORDER BY layer, head;

-- name: edges
SELECT layer, head, q_pos, k_pos, p, p_base FROM edges WHERE run_id = $run AND prompt_id = $prompt AND layer >= $start AND layer < $stop AND k_pos > 0;

-- name: other_sinks
SELECT t.layer, t.pos FROM token_stats t JOIN prompts p USING (prompt_id)
WHERE t.run_id = $base AND t.prompt_id = $prompt AND t.pos > 0 AND t.pos < p.n_tokens - greatest($edge, p.n_tokens // $edge) AND t.received_mass > $received;

-- name: new_tokens
SELECT k.text, count(*) AS times, count(DISTINCT a.prompt_id) AS prompts,
       list(DISTINCT a.layer ORDER BY a.layer) AS layers, avg(b.received_mass) AS received,
       avg(a.received_mass) AS received_base, min(a.pos) AS nearest
FROM token_stats a JOIN token_stats b USING (prompt_id, layer, pos) JOIN prompts p USING (prompt_id)
     JOIN tokens k USING (prompt_id, pos)
WHERE a.run_id = $base AND b.run_id = $run AND a.pos > 0 AND a.pos < p.n_tokens - greatest($edge, p.n_tokens // $edge)
  AND b.received_mass > $received AND NOT a.received_mass > $received
GROUP BY k.text ORDER BY times DESC, k.text LIMIT $top;

-- name: policies
SELECT s.policy, b.policy AS base_policy, s.run_id, e.metric, e.value, e.n, e.n_clusters, e.ci_low, e.ci_high
FROM evals e JOIN runs a ON a.run_id = e.analysis_id JOIN runs s ON s.run_id = e.run_id
     JOIN runs b ON b.run_id = a.parents[2]
WHERE e.task = $task AND a.name = 'sinks' AND len(a.parents) = 2 AND a.parents[2] = $base
  AND a.args->>'epsilon' = $epsilon AND a.args->>'window' = $window AND a.args->>'received' = $received
ORDER BY a.created_at, e.metric;

-- name: densities
SELECT run_id, avg(density) AS density FROM head_stats WHERE pattern = 'executed' AND rows = 'all' GROUP BY run_id;

-- name: evals
SELECT metric, value, n, n_clusters, ci_low, ci_high FROM evals WHERE analysis_id = $analysis AND task = $task;

-- name: layers
SELECT layer, metric, value FROM head_scores WHERE analysis_id = $analysis AND head IS NULL;
