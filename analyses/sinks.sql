-- name: numbers
WITH alphas AS (
  SELECT prompt_id, layer, head, avg(sink_mass) AS alpha
  FROM row_stats WHERE run_id = $run AND pattern = 'executed' AND q_pos < $window
  GROUP BY ALL HAVING count(*) = $window
), drains AS (
  SELECT prompt_id, layer, head,
         any_value(value_write_norm) FILTER (WHERE pos = 0) / avg(value_write_norm) FILTER (WHERE pos > 0) AS drain
  FROM value_norms WHERE run_id = $run GROUP BY ALL
), stats AS (
  SELECT t.prompt_id, t.layer, t.pos, t.resid_norm, t.received_mass, p.n_tokens
  FROM token_stats t JOIN prompts p USING (prompt_id) WHERE t.run_id = $run
), peaks AS (
  SELECT prompt_id, layer,
         any_value(resid_norm) FILTER (WHERE pos = 0) / avg(resid_norm) FILTER (WHERE pos > 0) AS peak,
         max(resid_norm) FILTER (WHERE pos > 0) / median(resid_norm) FILTER (WHERE pos > 0) AS other_peak,
         count(*) FILTER (WHERE pos > 0 AND pos < n_tokens - $edge AND received_mass > $received) AS others
  FROM stats GROUP BY ALL
), every AS (
  SELECT 'sink_rate' AS metric, layer, -1 AS head, prompt_id, avg((alpha > $epsilon)::INT) AS value, count(*) AS n
  FROM alphas GROUP BY ALL
  UNION ALL SELECT 'sink_alpha', layer, -1, prompt_id, avg(alpha), count(*) FROM alphas GROUP BY ALL
  UNION ALL SELECT 'value_drain', layer, -1, prompt_id, avg(drain), count(*) FROM drains GROUP BY ALL
  UNION ALL SELECT 'value_drain', layer, head, prompt_id, drain, 1 FROM drains
  UNION ALL SELECT 'residual_peak', layer, -1, prompt_id, peak, 1 FROM peaks
  UNION ALL SELECT 'residual_peak_other', layer, -1, prompt_id, other_peak, 1 FROM peaks
  UNION ALL SELECT 'other_sinks', layer, -1, prompt_id, others, 1 FROM peaks
)
SELECT e.metric, e.layer, e.head, e.prompt_id, coalesce(p.grp, e.prompt_id) AS cluster, e.value::DOUBLE AS value, e.n,
       p.prompt_set
FROM every e JOIN prompts p USING (prompt_id) WHERE e.value IS NOT NULL
ORDER BY e.metric, e.layer, e.head, e.prompt_id;

-- name: layers
SELECT layer, max(value) FILTER (WHERE metric = 'sink_rate') AS sink_rate,
       max(value) FILTER (WHERE metric = 'sink_alpha') AS sink_alpha,
       max(value) FILTER (WHERE metric = 'value_drain') AS value_drain,
       max(value) FILTER (WHERE metric = 'residual_peak') AS residual_peak,
       max(value) FILTER (WHERE metric = 'residual_peak_other') AS residual_peak_other,
       max(value) FILTER (WHERE metric = 'other_sinks') AS other_sinks, max(n_clusters) AS clusters
FROM head_scores WHERE analysis_id = $analysis AND head IS NULL GROUP BY layer ORDER BY layer;

-- name: tokens
SELECT k.text, count(*) AS times, count(DISTINCT t.layer) AS layers
FROM token_stats t JOIN tokens k USING (prompt_id, pos) JOIN prompts p USING (prompt_id)
WHERE t.run_id = $run AND t.pos > 0 AND t.pos < p.n_tokens - $edge AND t.received_mass > $received
GROUP BY k.text ORDER BY times DESC, k.text LIMIT $top;
