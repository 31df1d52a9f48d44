"""The views over stored rows, as SQL text: the same for `connect` and for trace.duckdb."""

from __future__ import annotations

from sparselens.storage.column import Table
from sparselens.storage.schema import PUBLIC, STORED, view_columns

# Which result is shown: of the writers of one subject the complete, then captures (their numbers are exact),
# then the newest. Analyses that are not complete are not shown at all.
SUPERSEDED = """
SELECT tbl, analysis_id, s1, s2, s3, s4 FROM (
  SELECT s.*, r.kind <> 'capture' AND r.status <> 'complete' AS unfinished,
    row_number() OVER (
      PARTITION BY tbl, s1, s2, s3, s4,
        CASE WHEN tbl IN ({by_subject}) THEN ''
          ELSE concat_ws(chr(31), r.kind, coalesce(r.name, ''), r.args) END
      ORDER BY r.status = 'complete' DESC, r.kind = 'capture' DESC, r.created_at DESC, r.run_id DESC
    ) AS place
  FROM (SELECT DISTINCT * FROM stored.subjects) AS s JOIN stored.runs AS r ON r.run_id = s.analysis_id)
WHERE place > 1 OR unfinished
"""

# Rows about a prompt are written by every run of it; the views show the copy of the newest run.
HOMES = "SELECT prompt_id, max(run_id) AS run_id FROM stored.prompts GROUP BY prompt_id"


def superseded() -> str:
    """The query for `stored.superseded`."""
    names = ", ".join(f"'{table.name}'" for table in STORED.values() if table.subject and not table.by_args)
    return SUPERSEDED.format(by_subject=names)


def public_views() -> dict[str, str]:
    """Name and query of every public view, over the schema `stored`."""
    views: dict[str, str] = {}
    for table in PUBLIC.values():
        views[table.name] = _view(table)
        if table.history:
            views[f"{table.name}_history"] = f"SELECT {_columns(table)} FROM stored.{table.name} AS t"
    views["run_prompts"] = "SELECT run_id, prompt_id FROM stored.prompts"
    return views


def _columns(table: Table) -> str:
    """The view's columns in order."""
    return ", ".join(f"t.{column.name}" for column in view_columns(table))


def _view(table: Table) -> str:
    """The query of one public view."""
    columns = _columns(table)
    if table.shared:
        homes = "SEMI JOIN stored.homes AS h USING (prompt_id, run_id)"
        return f"SELECT {columns} FROM stored.{table.name} AS t {homes}"
    if table.subject:
        same = [
            f"s.s{i} = t.{name}::VARCHAR" for i, name in enumerate(table.subject, 1)
        ]  # subjects are kept as text
        if table.writer not in table.subject:
            same.append(f"s.analysis_id = t.{table.writer}")
        return (
            f"SELECT {columns} FROM stored.{table.name} AS t ANTI JOIN stored.superseded AS s "
            f"ON s.tbl = '{table.name}' AND {' AND '.join(same)}"
        )
    return f"SELECT {columns} FROM stored.{table.name} AS t"


def comments(kind: str = "VIEW") -> list[str]:
    """COMMENT statements with unit and meaning for every view and column."""
    statements = []
    for table in PUBLIC.values():
        statements.append(f"COMMENT ON {kind} {table.name} IS {quoted(table.meaning)}")
        for column in view_columns(table):
            meaning = f"[{column.unit}] {column.meaning}" if column.unit else column.meaning
            statements.append(f"COMMENT ON COLUMN {table.name}.{column.name} IS {quoted(meaning)}")
    return statements


def quoted(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def parquet(files: list[str], *, older: bool = False) -> str:
    """A scan of these files; the first one's columns are the table's. `older`: some may lack columns (NULL)."""
    by_name = ", union_by_name = true" if older else ""
    return f"read_parquet([{', '.join(quoted(file) for file in files)}]{by_name})"
