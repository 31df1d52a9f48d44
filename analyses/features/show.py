"""What `analyse features` prints: the comparison over each set of rows, and the features that changed most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparselens.analyses.analysis import Shown
from sparselens.analyses.interval import clustered_mean
from sparselens.storage.reader import Connection, connect
from sparselens.storage.trace import Trace

_DIFFS = """
SELECT d.rows, d.prompt_id, coalesce(p.grp, d.prompt_id) AS cluster, d.n_rows, d.n_compared, d.jaccard, d.cosine,
       d.l0_a, d.l0_b, d.error_a, d.error_b
FROM feature_diffs_history d JOIN prompts p USING (prompt_id)
WHERE d.analysis_id = $analysis ORDER BY d.rows, d.prompt_id"""

_CHANGES = """
SELECT feature, n_a, n_b, n_both, sum_a, sum_b, dropped
FROM feature_changes_history WHERE analysis_id = $analysis AND rows = $rows
ORDER BY abs(sum_b - sum_a) DESC, feature LIMIT $top"""

_MEANS = ("jaccard", "cosine", "l0_a", "l0_b", "error_a", "error_b")


def show(trace: Trace, analysis_id: str, options: Mapping[str, Any]) -> Shown:
    """Return a row for each set of rows, with 95 % intervals over prompts; notes on the features that changed most."""
    top = int(options.get("top", 5))
    with connect(trace.path) as connection:
        table = connection.sql(_DIFFS, {"analysis": analysis_id}, max_rows=None).arrow().to_pylist()
        names = sorted({row["rows"] for row in table}, key=lambda name: (name != "all", name))
        rows = [_row(name, [row for row in table if row["rows"] == name]) for name in names]
        notes = [_left_out(rows)] if rows else []
        best = next((name for name in ("span:answer", "affected", "all") if name in names), None)
        if best is not None:
            notes += _features(connection, analysis_id, best, top)
    return Shown(rows, notes)


def _row(name: str, table: list[dict[str, Any]]) -> dict[str, Any]:
    clusters = [row["cluster"] for row in table]
    means = {key: str(clustered_mean([_number(row[key]) for row in table], clusters)) for key in _MEANS}
    counts = {key: sum(row[key] for row in table) for key in ("n_rows", "n_compared")}
    return {"rows": name, "prompts": len(table)} | counts | means


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _left_out(rows: list[dict[str, Any]]) -> str:
    whole = rows[0]
    missing = whole["n_rows"] - whole["n_compared"]
    return f"{missing} of {whole['n_rows']} tokens are not compared: the SAE's error grows by more than 25 % there"


def _features(connection: Connection, analysis_id: str, rows: str, top: int) -> list[str]:
    """Return a line for each of the features whose activation changed most over some rows."""
    given = {"analysis": analysis_id, "rows": rows, "top": top}
    found = connection.sql(_CHANGES, given, max_rows=None).arrow().to_pylist()
    lines = []
    for row in found:
        fed = "" if row["dropped"] is None else f"; dropped keys fed {row['dropped']:.1f} of it"
        lines.append(
            f"{rows}: feature {row['feature']}: {row['sum_a']:.1f} → {row['sum_b']:.1f} in sum, active on"
            f" {row['n_a']} → {row['n_b']} tokens, {row['n_both']} the same{fed}"
        )
    return lines
