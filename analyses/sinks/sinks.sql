-- name: prompts
SELECT p.prompt_id, coalesce(p.grp, p.prompt_id) AS cluster, coalesce(p.prompt_set, '') AS prompt_set, p.n_tokens
FROM prompts p WHERE p.prompt_id IN (SELECT prompt_id FROM run_prompts WHERE run_id = $run) ORDER BY p.prompt_id;

-- name: there
SELECT run_id, 'row_stats' AS name FROM row_stats WHERE run_id IN ($run, $base) GROUP BY ALL
UNION ALL SELECT run_id, 'token_stats' FROM token_stats WHERE run_id IN ($run, $base) AND resid_norm IS NOT NULL GROUP BY ALL
UNION ALL SELECT run_id, 'value_norms' FROM value_norms WHERE run_id IN ($run, $base) GROUP BY ALL
UNION ALL SELECT run_id, 'predictions' FROM predictions WHERE run_id IN ($run, $base) GROUP BY ALL
UNION ALL SELECT run_id, 'selections' FROM selections WHERE run_id = $run GROUP BY ALL
UNION ALL SELECT run_id, 'edges' FROM edges WHERE run_id = $run GROUP BY ALL
UNION ALL SELECT run_b, 'token_diffs' FROM token_diffs WHERE run_b = $run AND affected IS NOT NULL GROUP BY ALL;

-- name: alphas
SELECT prompt_id, layer, head, avg(sink_mass) AS alpha
FROM row_stats WHERE run_id = $run AND pattern = 'executed' AND q_pos < $window
GROUP BY ALL HAVING count(*) = $window;

-- name: drains
SELECT prompt_id, layer, head,
       any_value(value_write_norm) FILTER (WHERE pos = 0)
         / nullif(avg(value_write_norm) FILTER (WHERE pos > 0), 0) AS drain
FROM value_norms WHERE run_id = $run GROUP BY ALL;

-- name: peaks
WITH written AS (
  SELECT prompt_id, layer, pos, avg(value_write_norm) AS written FROM value_norms WHERE run_id = $run GROUP BY ALL
), stats AS (
  SELECT t.prompt_id, t.layer, t.pos, t.resid_norm, t.received_mass, w.written,
         t.pos > 0 AND t.pos < p.n_tokens - greatest($edge, p.n_tokens // $edge) AND t.received_mass > $received AS sinks
  FROM token_stats t JOIN prompts p USING (prompt_id) LEFT JOIN written w USING (prompt_id, layer, pos)
  WHERE t.run_id = $run
)
SELECT prompt_id, layer,
       any_value(resid_norm) FILTER (WHERE pos = 0)
         / nullif(avg(resid_norm) FILTER (WHERE pos > 0), 0) AS residual_peak,
       max(resid_norm) FILTER (WHERE pos > 0)
         / nullif(median(resid_norm) FILTER (WHERE pos > 0), 0) AS residual_peak_other,
       count(*) FILTER (WHERE sinks)::DOUBLE AS other_sinks,
       avg(received_mass) FILTER (WHERE sinks) AS other_sinks_received,
       avg(resid_norm) FILTER (WHERE sinks)
         / nullif(median(resid_norm) FILTER (WHERE pos > 0 AND NOT sinks), 0) AS other_sinks_residual,
       avg(written) FILTER (WHERE sinks)
         / nullif(median(written) FILTER (WHERE pos > 0 AND NOT sinks), 0) AS other_sinks_write
FROM stats GROUP BY ALL;

-- name: layers
SELECT layer, max(value) FILTER (WHERE metric = 'sink_rate') AS sink_rate,
       max(value) FILTER (WHERE metric = 'sink_alpha') AS sink_alpha,
       max(value) FILTER (WHERE metric = 'value_drain') AS value_drain,
       max(value) FILTER (WHERE metric = 'residual_peak') AS residual_peak,
       max(value) FILTER (WHERE metric = 'residual_peak_other') AS residual_peak_other,
       max(value) FILTER (WHERE metric = 'other_sinks') AS other_sinks, max(n_clusters) AS clusters
FROM head_scores WHERE analysis_id = $analysis AND head IS NULL GROUP BY layer ORDER BY layer;

-- name: tokens
WITH written AS (
  SELECT prompt_id, layer, pos, avg(value_write_norm) AS written FROM value_norms WHERE run_id = $run GROUP BY ALL
), stats AS (
  SELECT t.prompt_id, t.layer, t.pos, t.received_mass, t.resid_norm, w.written,
         t.pos < p.n_tokens - greatest($edge, p.n_tokens // $edge) AND t.received_mass > $received AS sinks
  FROM token_stats t JOIN prompts p USING (prompt_id) LEFT JOIN written w USING (prompt_id, layer, pos)
  WHERE t.run_id = $run AND t.pos > 0
), usual AS (
  SELECT prompt_id, layer, median(resid_norm) FILTER (WHERE NOT sinks) AS resid_norm,
         median(written) FILTER (WHERE NOT sinks) AS written
  FROM stats GROUP BY ALL
)
SELECT k.text, count(*) AS times, count(DISTINCT s.prompt_id) AS prompts, list(DISTINCT s.layer ORDER BY s.layer) AS layers,
       avg(s.received_mass) AS received, avg(s.resid_norm / u.resid_norm) AS residual, avg(s.written / u.written) AS write
FROM stats s JOIN usual u USING (prompt_id, layer) JOIN tokens k USING (prompt_id, pos)
WHERE s.sinks GROUP BY k.text ORDER BY times DESC, k.text LIMIT $top;
