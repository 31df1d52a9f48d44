-- head_edges: What one head reads under the base and under the policy, strongest first (touches one head)
WITH pair AS (
  SELECT parents[1] AS a, run_id AS b FROM runs
  WHERE kind = 'capture' AND status = 'complete' AND len(parents) > 0 ORDER BY created_at DESC, run_id LIMIT 1),
prompt AS (SELECT min(prompt_id) AS id FROM run_prompts WHERE run_id = (SELECT b FROM pair))
SELECT run_id, q_pos, k_pos, p, p_base, kept
FROM edges
WHERE layer = 18 AND head = 6 AND prompt_id = (SELECT id FROM prompt)
  AND run_id IN (SELECT unnest([a, b]) FROM pair)
ORDER BY p DESC LIMIT 200;

-- head_edges_everywhere: The same head over all prompts: where its mass went, by distance (touches one head)
SELECT r.name AS run, CASE WHEN k_pos = 0 THEN 'first token' WHEN q_pos - k_pos < 64 THEN 'near' ELSE 'far' END
    AS where_to, sum(p) AS mass, count(*) AS edges
FROM edges JOIN runs AS r USING (run_id)
WHERE layer = 18 AND head = 6
GROUP BY ALL ORDER BY ALL;

-- changed_heads: Which heads change most what they write on the answer's rows (summary)
SELECT d.run_b, 'L' || layer || 'H' || head AS head_name, avg(write_error) AS write_error, avg(kept_mass) AS kept_mass,
  count(*) AS prompts
FROM diffs AS d
WHERE scope = 'end_to_end' AND rows = 'span:answer'
GROUP BY ALL ORDER BY write_error DESC LIMIT 50;

-- two_runs: Two runs joined head by head: entropy and mass on the first token, B − A (summary)
SELECT b.run_id, b.head_name, avg(b.entropy - a.entropy) AS entropy_change, avg(b.sink_mass - a.sink_mass) AS sink_change
FROM head_stats AS b JOIN runs AS r ON r.run_id = b.run_id
JOIN head_stats AS a ON a.run_id = r.parents[1] AND a.prompt_id = b.prompt_id AND a.layer = b.layer AND a.head = b.head
  AND a.pattern = b.pattern AND a.rows = b.rows
WHERE b.pattern = 'executed' AND b.rows = 'all'
GROUP BY ALL ORDER BY abs(sink_change) DESC LIMIT 50;

-- needle: How much of the needle one head reads from the rows that predict the answer (touches one head)
WITH asked AS (
  SELECT prompt_id, max(start) FILTER (name = 'answer') - 1 AS first_row, max(stop) FILTER (name = 'answer') - 2 AS last_row,
    max(start) FILTER (name = 'needle') AS start, max(stop) FILTER (name = 'needle') AS stop
  FROM spans GROUP BY prompt_id)
SELECT e.run_id, e.prompt_id, sum(e.p) / (max(last_row - first_row) + 1) AS mass_on_needle
FROM edges AS e JOIN asked USING (prompt_id)
WHERE e.layer = 18 AND e.head = 6
  AND e.q_pos BETWEEN first_row AND last_row AND e.k_pos >= asked.start AND e.k_pos < asked.stop
GROUP BY ALL ORDER BY ALL;

-- worst_tokens: Tokens whose prediction suffers most, with their text (summary)
SELECT d.run_b, p.name AS prompt, d.pos, t.text, d.nll_change, d.kl
FROM token_diffs AS d JOIN tokens AS t USING (prompt_id, pos) JOIN prompts AS p USING (prompt_id)
ORDER BY d.nll_change DESC LIMIT 50;

-- answer_loss: Loss on the answer's tokens, run by run (summary)
SELECT r.name AS run, r.policy, avg(nll) AS answer_nll, count(*) AS tokens
FROM predictions AS p JOIN spans AS s ON s.prompt_id = p.prompt_id AND s.name = 'answer'
  AND p.pos >= s.start AND p.pos < s.stop
JOIN runs AS r USING (run_id)
GROUP BY ALL ORDER BY answer_nll;

-- density: What share of keys each policy keeps, and of the dense mass, by layer (summary)
SELECT r.name AS run, layer, avg(density) AS density, avg(kept_mass) AS kept_mass, avg(kept_mass_nosink) AS without_sink
FROM head_stats JOIN runs AS r USING (run_id)
WHERE pattern = 'executed' AND rows = 'all'
GROUP BY ALL ORDER BY ALL;

-- dropped: Where the base's strong edges were cut, head by head (scans all edges)
SELECT run_id, layer, head, count(*) AS cut, sum(p_base) AS mass
FROM edges
WHERE NOT kept AND p_base > 0.1
GROUP BY ALL ORDER BY mass DESC LIMIT 50;

-- sinks: Mass on the first token over all heads and runs, rows from 8 on (scans all edges)
SELECT run_id, layer, head, sum(p) AS mass, avg(p) AS mean_where_stored, count(*) AS rows_with_it
FROM edges
WHERE k_pos = 0 AND q_pos >= 8
GROUP BY ALL ORDER BY mass DESC LIMIT 50;
