-- name: evals
SELECT metric, value, ci_low, ci_high, n, n_clusters FROM evals WHERE analysis_id = $analysis;

-- name: heads
WITH mine AS (
  SELECT metric, layer, head, value, ci_low, ci_high, n, n_clusters,
         row_number() OVER (PARTITION BY metric ORDER BY value DESC NULLS LAST, layer, head) AS place
  FROM head_scores WHERE analysis_id = $analysis AND head IS NOT NULL AND list_contains($metrics, metric)
)
SELECT m.metric, 'L' || m.layer || 'H' || m.head AS unit, m.value, m.ci_low, m.ci_high, d.value AS dense,
       m.value - d.value AS change, m.n, m.n_clusters
FROM mine m
LEFT JOIN head_scores d ON d.analysis_id = $dense AND d.metric = m.metric AND d.layer = m.layer AND d.head = m.head
WHERE m.place <= $top
ORDER BY m.metric, m.place;

-- name: changes
SELECT b.metric, b.prompt_id, b.value - a.value AS change
FROM prompt_scores a JOIN prompt_scores b USING (prompt_id, task, metric)
WHERE a.analysis_id = $dense AND b.analysis_id = $analysis AND a.value IS NOT NULL AND b.value IS NOT NULL
ORDER BY b.metric, b.prompt_id;
