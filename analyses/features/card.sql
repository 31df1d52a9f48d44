-- name: saes
SELECT DISTINCT s.sae, s.name, s.hook, s.layer, s.features FROM saes s
WHERE starts_with(s.sae, $sae) ORDER BY s.sae;

-- name: runs
SELECT r.run_id, r.name, r.policy FROM runs r
WHERE r.run_id IN (SELECT DISTINCT run_id FROM feature_tokens WHERE sae = $sae) ORDER BY r.created_at, r.run_id;

-- name: against
SELECT run_b FROM feature_sources WHERE run_id = $run AND sae = $sae
GROUP BY run_b ORDER BY run_b <> $run, max(analysis_id) DESC LIMIT 1;

-- name: extent
SELECT count(*)::BIGINT AS n_tokens, coalesce(sum(unstored_sum), 0) AS unstored,
       coalesce(sum(activation_sum), 0) AS activation
FROM feature_tokens WHERE run_id = $run AND sae = $sae;

-- name: activity
SELECT count(*)::BIGINT AS n_active, avg(activation) AS mean, max(activation) AS largest
FROM features WHERE run_id = $run AND sae = $sae AND feature = $feature;

-- name: examples
WITH places AS (
  SELECT prompt_id, pos, activation FROM features WHERE run_id = $run AND sae = $sae AND feature = $feature
  ORDER BY activation DESC, prompt_id, pos LIMIT $top)
SELECT e.prompt_id, p.name, e.pos AS example, e.activation, t.pos, coalesce(t.text, '⟨id ' || t.token_id || '⟩') AS text
FROM places e JOIN prompts p ON p.prompt_id = e.prompt_id JOIN tokens t ON t.prompt_id = e.prompt_id
  AND t.pos BETWEEN e.pos::BIGINT - $before AND e.pos::BIGINT + $after
ORDER BY e.activation DESC, e.prompt_id, e.pos, t.pos;

-- name: sources
WITH places AS (
  SELECT prompt_id, pos FROM features WHERE run_id = $run AND sae = $sae AND feature = $feature
  ORDER BY activation DESC, prompt_id, pos LIMIT $top)
SELECT s.prompt_id, s.pos AS example, s.head, s.k_pos, coalesce(t.text, '⟨id ' || t.token_id || '⟩') AS text, s.value,
       s.dropped, s.pre, s.unstored
FROM feature_sources s JOIN places e ON e.prompt_id = s.prompt_id AND e.pos = s.pos
LEFT JOIN tokens t ON t.prompt_id = s.prompt_id AND t.pos = s.k_pos
WHERE s.run_id = $run AND s.run_b = $against AND s.sae = $sae AND s.feature = $feature
ORDER BY abs(s.value) DESC;

-- name: tokens
SELECT coalesce(t.text, '⟨id ' || t.token_id || '⟩') AS token, count(*)::BIGINT AS n, avg(f.activation) AS mean,
       max(f.activation) AS largest
FROM features f JOIN tokens t USING (prompt_id, pos)
WHERE f.run_id = $run AND f.sae = $sae AND f.feature = $feature
GROUP BY token ORDER BY n DESC, mean DESC LIMIT $top;

-- name: heads
WITH told AS (
  SELECT prompt_id, pos, any_value(pre) AS pre, any_value(unstored) AS unstored FROM feature_sources
  WHERE run_id = $run AND run_b = $against AND sae = $sae AND feature = $feature GROUP BY prompt_id, pos)
SELECT s.head, sum(s.value) AS value, sum(s.value) FILTER (WHERE s.dropped) AS dropped,
       (SELECT count(*) FROM told)::BIGINT AS n_told, (SELECT sum(unstored) FROM told) AS unstored,
       (SELECT sum(pre) FROM told) AS pre
FROM feature_sources s
WHERE s.run_id = $run AND s.run_b = $against AND s.sae = $sae AND s.feature = $feature
GROUP BY s.head ORDER BY abs(sum(s.value)) DESC;

-- name: changes
SELECT r.name AS run, c.rows, c.n_compared, c.n_a, c.n_b, c.n_both, c.sum_a, c.sum_b, c.dropped
FROM feature_changes c JOIN runs r ON r.run_id = c.run_b
WHERE c.run_a = $run AND c.sae = $sae AND c.feature = $feature ORDER BY r.name, c.rows;
