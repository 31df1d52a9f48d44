-- name: shared
SELECT count(*) FILTER (WHERE a.prompt_id IS NOT NULL AND b.prompt_id IS NOT NULL) AS shared,
       count(DISTINCT a.prompt_id) AS in_a, count(DISTINCT b.prompt_id) AS in_b
FROM (SELECT DISTINCT prompt_id FROM predictions WHERE run_id = $run_a) a
FULL JOIN (SELECT DISTINCT prompt_id FROM predictions WHERE run_id = $run_b) b USING (prompt_id);

-- name: rows_there
SELECT scope, rows, count(DISTINCT prompt_id) AS prompts, count(write_error) AS with_error
FROM diffs WHERE run_a = $run_a AND run_b = $run_b AND n_rows > 0 GROUP BY ALL;

-- name: heads
SELECT d.layer, d.head, 'L' || d.layer || 'H' || d.head AS head_name, count(*) AS n_prompts,
       sum(d.n_rows)::BIGINT AS n_rows, avg(d.write_error) AS write_error, avg(d.kept_mass) AS kept_mass,
       avg(d.kept_mass_nosink) AS kept_mass_nosink, avg(d.js) AS js, avg(d.top8_overlap) AS top8_overlap,
       avg(d.out_cosine) AS out_cosine, avg(d.sink_change) AS sink_change, avg(d.entropy_change) AS entropy_change
FROM diffs d
WHERE d.run_a = $run_a AND d.run_b = $run_b AND d.scope = $scope AND d.rows = $rows AND d.n_rows > 0
GROUP BY d.layer, d.head
ORDER BY avg(d.write_error) DESC NULLS LAST, abs(avg(d.entropy_change)) DESC NULLS LAST, d.layer, d.head
LIMIT $top;

-- name: head_prompts
SELECT d.write_error AS value, coalesce(p.grp, d.prompt_id) AS cluster
FROM diffs d JOIN prompts p USING (prompt_id)
WHERE d.run_a = $run_a AND d.run_b = $run_b AND d.scope = $scope AND d.rows = $rows AND d.n_rows > 0
  AND d.layer = $layer AND d.head = $head
ORDER BY d.prompt_id;

-- name: scores
SELECT s.prompt_id, s.metric, s.run_id = $run_b AS is_b, s.value, coalesce(p.grp, s.prompt_id) AS cluster, p.prompt_set
FROM prompt_scores s JOIN prompts p USING (prompt_id)
WHERE s.run_id IN ($run_a, $run_b)
  AND prompt_id IN (SELECT prompt_id FROM prompt_scores WHERE run_id = $run_a
                    INTERSECT SELECT prompt_id FROM prompt_scores WHERE run_id = $run_b)
ORDER BY s.prompt_id, s.metric;

-- name: token_changes
SELECT t.prompt_id, coalesce(p.grp, t.prompt_id) AS cluster, avg(t.kl) AS kl_all,
       avg(t.kl) FILTER (WHERE t.affected) AS kl_affected,
       count(*) FILTER (WHERE t.affected) AS n_affected, count(*) AS n_rows,
       avg(t.nll_change) AS nll_change, avg(t.top1_same::INT) AS top1_same
FROM token_diffs t JOIN prompts p USING (prompt_id)
WHERE t.run_a = $run_a AND t.run_b = $run_b
GROUP BY ALL ORDER BY t.prompt_id;

-- name: density
SELECT avg(density) AS density, avg(density_computed) AS density_computed, count(DISTINCT prompt_id) AS n_prompts
FROM head_stats WHERE run_id = $run AND pattern = 'executed' AND rows = 'all';

-- name: roles
SELECT s.layer, s.head, s.metric, s.value
FROM head_scores s JOIN runs w ON w.run_id = s.analysis_id JOIN runs a ON a.run_id = $run_a
WHERE s.head IS NOT NULL AND coalesce(s.params, '') NOT LIKE '%"ranking": true%'
  AND (s.run_id = a.run_id
       OR (w.weight_hash = a.weight_hash AND w.tokenizer_hash = a.tokenizer_hash AND w.policy = a.policy))
QUALIFY row_number() OVER (PARTITION BY s.layer, s.head, s.metric ORDER BY w.created_at DESC, w.run_id DESC) = 1
ORDER BY s.layer, s.head;

-- name: fill_diffs
SELECT $run_a AS run_a, $run_b AS run_b, prompt_id, 'end_to_end' AS scope, b.rows, b.layer, b.head, b.n_rows,
       b.sink_mass - a.sink_mass AS sink_change, b.entropy - a.entropy AS entropy_change
FROM (SELECT * FROM head_stats WHERE run_id = $run_a AND pattern = 'executed') a
JOIN (SELECT * FROM head_stats WHERE run_id = $run_b AND pattern = 'executed') b
  USING (prompt_id, rows, layer, head)
ORDER BY prompt_id, b.rows, b.layer, b.head;

-- name: fill_tokens
SELECT $run_a AS run_a, $run_b AS run_b, prompt_id, pos, b.nll - a.nll AS nll_change, a.top1_id = b.top1_id AS top1_same
FROM (SELECT * FROM predictions WHERE run_id = $run_a) a
JOIN (SELECT * FROM predictions WHERE run_id = $run_b) b USING (prompt_id, pos)
ORDER BY prompt_id, pos;

-- name: prompt_sets
SELECT DISTINCT coalesce(json_extract_string(metadata, '$.set'), prompt_set) AS prompt_set
FROM prompts JOIN (SELECT DISTINCT prompt_id FROM predictions WHERE run_id = $run_a) USING (prompt_id)
ORDER BY prompt_set;

-- name: span_nll
SELECT avg(nll) AS nll FROM (
  SELECT p.prompt_id, avg(p.nll) AS nll
  FROM predictions p JOIN spans s ON p.prompt_id = s.prompt_id AND p.pos >= s.start AND p.pos < s.stop
  WHERE p.run_id = $run AND s.name = $span GROUP BY p.prompt_id);
