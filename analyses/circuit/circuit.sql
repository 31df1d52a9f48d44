-- name: curves
SELECT circuit, measure, asked, n_edges, value, ci_low, ci_high, n, n_clusters
FROM circuit_curves_history WHERE analysis_id = $analysis ORDER BY asked;

-- name: about
SELECT * FROM circuits_history WHERE analysis_id = $analysis;

-- name: evals
SELECT metric, value, ci_low, ci_high, n, n_clusters FROM evals_history WHERE analysis_id = $analysis;

-- name: nodes
SELECT * FROM circuit_nodes_history WHERE analysis_id = $analysis;

-- name: overlaps
SELECT * FROM circuit_overlaps_history WHERE analysis_id = $analysis;

-- name: reads
SELECT read, circuit, count(*) AS heads, sum(mass_base) AS mass_base, sum(mass) AS mass,
       sum(mass_base * kept) / nullif(sum(mass_base), 0) AS kept, any_value(n) AS n,
       arg_max('L' || layer || 'H' || head, mass_base) AS best, max(mass_base) AS best_mass,
       arg_max(kept, mass_base) AS best_kept, arg_max(mass, mass_base) AS best_under
FROM circuit_reads_history WHERE analysis_id = $analysis GROUP BY read, circuit ORDER BY read, circuit;
