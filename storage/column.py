"""A column and a table of the trace, as declared: type, unit, meaning, order on disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa

NAME = pa.dictionary(pa.int32(), pa.string())  # a string with few different values (ids, kinds)
TEXT = pa.string()
BOOL = pa.bool_()
U8, U16, U32, U64, I32 = pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.int32()
F32, F64 = pa.float32(), pa.float64()
BYTES = pa.binary()
NAMES = pa.list_(pa.string())
IDS = pa.list_(pa.uint32())
VECTOR = pa.list_(pa.float32())
TIME = pa.timestamp("us")  # UTC

SQL_TYPES = {
    str(NAME): "VARCHAR",
    str(TEXT): "VARCHAR",
    str(BOOL): "BOOLEAN",
    str(U8): "UTINYINT",
    str(U16): "USMALLINT",
    str(U32): "UINTEGER",
    str(U64): "UBIGINT",
    str(I32): "INTEGER",
    str(F32): "FLOAT",
    str(F64): "DOUBLE",
    str(BYTES): "BLOB",
    str(NAMES): "VARCHAR[]",
    str(IDS): "UINTEGER[]",
    str(VECTOR): "FLOAT[]",
    str(TIME): "TIMESTAMP",
}


@dataclass(frozen=True)
class Column:
    """One column: arrow type, unit, and one precise sentence of meaning.

    `reveals` says that the prompt's words (or their token ids) can be read from it: `pack --strip-text`
    empties such a column.
    """

    name: str
    type: Any
    unit: str
    meaning: str
    nullable: bool = False
    reveals: bool = False

    @property
    def sql_type(self) -> str:
        """The DuckDB type, as `DESCRIBE` prints it."""
        return SQL_TYPES[str(self.type)]


@dataclass(frozen=True)
class Table:
    """One table of the trace.

    `writer` is the column that holds the id of the run that wrote the row: `run_id` where the row is about
    that run itself, `analysis_id` where it is about another run. Tables of the second kind have a
    `subject`: of the rows that agree in it (and, with `by_args`, in the writer's name and args) the view
    shows those of the newest complete writer, and `NAME_history` shows all.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    sort: tuple[str, ...] = ()
    writer: Literal["run_id", "analysis_id"] = "run_id"
    subject: tuple[str, ...] = ()
    by_args: bool = True
    shared: bool = False  # rows about a prompt, written by every run of it: the views show one copy
    stored: bool = True  # False: derived by the reader (`runs`)
    internal: bool = False  # not a public view

    def __getitem__(self, name: str) -> Column:
        """The column of that name; ValueError lists the columns there are."""
        if name not in self.names:
            raise ValueError(f"{self.name} has no column {name!r}; it has {', '.join(self.names)}")
        return self.columns[self.names.index(name)]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The column names in order."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def arrow(self) -> Any:
        """The arrow schema of one stored file."""
        return pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in self.columns])

    @property
    def history(self) -> bool:
        """Whether there is a `NAME_history` view."""
        return bool(self.subject)

    @property
    def groups(self) -> tuple[str, ...]:
        """The columns whose change may start a new row group: one prompt (or hook) and layer at a time."""
        return tuple(name for name in self.sort if name in ("prompt_id", "hook", "pattern", "layer"))
