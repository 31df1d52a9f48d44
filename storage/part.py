"""One part of a run: all tables of some whole prompts, written under a temporary name and renamed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from sparselens.storage.disk import explained, publish_folder, temporary
from sparselens.storage.manifest import RunRecord
from sparselens.storage.rows import arrow_rows
from sparselens.storage.schema import STORED, table
from sparselens.storage.shard import Shard


class Part:
    """Takes rows of some prompts; leaving it without error makes them part of the trace, all at once."""

    def __init__(
        self,
        folder: Path,
        record: RunRecord,
        prompt_ids: tuple[str, ...],
        *,
        committed: Callable[[Sequence[str]], None],
        owned: Callable[[], None],
    ) -> None:
        self._folder, self._record, self.prompt_ids = folder, record, prompt_ids
        self._committed, self._owned = committed, owned
        self._draft = temporary(folder / "part")
        self._shards: dict[str, Shard] = {}
        self._subjects: set[tuple[str, ...]] = set()
        self._n_tokens = 0
        self._open = False

    def add(self, name: str, columns: Mapping[str, Any]) -> None:
        """Take rows of a table: arrays of one length, scalars for all rows (see `rows.arrow_rows`).

        The id of the run is filled in, and the prompt where the part has only one. Rows sorted as the
        schema says are not moved. ValueError on an unknown table or column, a missing or unfit value, or a
        prompt that is not this part's.
        """
        if not self._open:
            raise ValueError("rows are added inside `with run.part(...) as part:`")
        declared = table(name)
        if not declared.stored or declared.internal:
            raise ValueError(
                f"{name} is derived; rows go to {', '.join(n for n, t in STORED.items() if not t.internal)}"
            )
        values = dict(columns)
        values.setdefault(declared.writer, self._record.run_id)
        if "prompt_id" in declared.names and "prompt_id" not in values and len(self.prompt_ids) == 1:
            values["prompt_id"] = self.prompt_ids[0]
        rows = arrow_rows(declared, values)
        self._check(name, declared.writer, rows)
        if declared.subject and len(rows):
            self._subjects |= _subjects(name, self._record.run_id, rows.select(list(declared.subject)))
        if name == "prompts":
            self._n_tokens += int(np.sum(rows.column("n_tokens").to_numpy()))
        with explained("write", self._draft.parent):
            self._shard(name).add(rows)

    def _check(self, name: str, writer: str, rows: Any) -> None:
        """Raise ValueError if rows claim another writer or another prompt; a part without prompts tells of any."""
        present = {writer: {self._record.run_id}}
        if self.prompt_ids:
            present["prompt_id"] = set(self.prompt_ids)
        for column, allowed in present.items():
            if column in rows.column_names:
                strange = sorted(set(_values(rows.column(column))) - allowed)
                if strange:
                    raise ValueError(f"{name}.{column} has {strange[0]!r}, which is not of this part")

    def _shard(self, name: str) -> Shard:
        if name not in self._shards:
            self._shards[name] = Shard(table(name), self._draft / f"{name}.parquet")
        return self._shards[name]

    def __enter__(self) -> Self:
        with explained("write", self._folder):
            self._draft.mkdir()
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        try:
            if kind is None:
                with explained("write", self._folder):
                    self._commit()
        finally:
            for shard in self._shards.values():
                shard.abandon()
            if self._draft.exists():
                shutil.rmtree(self._draft, ignore_errors=True)

    def _commit(self) -> None:
        """Close the files, force them to the disk, give the folder its name."""
        self._owned()
        if self._subjects:
            declared = STORED["subjects"]
            columns = dict(
                zip(declared.names, map(list, zip(*sorted(self._subjects), strict=True)), strict=True)
            )
            self._shard("subjects").add(arrow_rows(declared, columns))
        for shard in self._shards.values():
            shard.close()
        rows = {name: shard.n_rows for name, shard in self._shards.items() if shard.n_rows}
        about = {"prompt_ids": list(self.prompt_ids), "n_tokens": self._n_tokens, "rows": rows}
        (self._draft / "part.json").write_text(json.dumps(about), encoding="utf-8")
        publish_folder(self._draft, self._folder / self._name())
        self._committed(self.prompt_ids)

    def _name(self) -> str:
        """The next free name; parts without prompts are named apart, a resumed run removes them."""
        kind = "part" if self.prompt_ids else "part-summary"
        taken = [p.name.rsplit("-", 1)[1] for p in self._folder.glob(f"{kind}-*")]
        return f"{kind}-{max((int(n) for n in taken if n.isdigit()), default=-1) + 1:05d}"


def _values(column: Any) -> list[str]:
    """The different values of a dictionary column (values in use only)."""
    chunks = [chunk.dictionary.take(chunk.indices.unique()) for chunk in column.chunks]
    return [value for chunk in chunks for value in chunk.to_pylist()]


def _subjects(name: str, run_id: str, rows: Any) -> set[tuple[str, ...]]:
    """The different subjects of some rows, as rows of the table `subjects`."""
    plain = rows.cast(pa.schema([(column, pa.string()) for column in rows.column_names]))
    distinct = plain.group_by(plain.column_names).aggregate([]).to_pylist()
    return {
        (name, run_id, *[row[c] for c in plain.column_names], *[""] * (4 - plain.num_columns))
        for row in distinct
    }
