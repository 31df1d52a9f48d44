"""Merging the parts of a complete run into large files; readers see each prompt once at every moment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sparselens.storage.disk import publish_folder, remove_folder, temporary, write_whole
from sparselens.storage.run_row import write_run_row
from sparselens.storage.schema import STORED
from sparselens.storage.shard import Shard
from sparselens.storage.trace import Run, read_run

LARGE = 24 << 20  # bytes; a part of this size is left as it is: rewriting it would cost as much as writing it
MERGED_SIZE = 256 << 20  # bytes; smaller neighbours are merged up to this size
MERGED = "part-merged-"


def compact(folder: Path) -> Run:
    """Merge the parts of a complete run; running it again, or after a crash at any point, is safe.

    The manifest is replaced once the merged files are on the disk; only then the old parts are removed.
    """
    run = read_run(folder)
    if run.record.folders is None:
        raise ValueError(f"run {run.run_id} is not complete: nothing to merge")
    write_run_row(folder, [run])  # a crash may have left the one of before
    tidy(run)
    groups = _groups(run.folders)
    if len(groups) == len(run.folders):
        return run
    names = tuple(
        _merge(folder, n, group) if len(group) > 1 else group[0].name for n, group in enumerate(groups)
    )
    write_whole(folder / "manifest.json", run.record.with_folders(names).to_json())
    done = read_run(folder)
    write_run_row(folder, [done])
    tidy(done)
    return done


def tidy(run: Run) -> None:
    """Remove folders that the manifest of a complete run does not name."""
    if run.record.folders is None:
        return
    for entry in [*run.folder.glob("part-*"), *run.folder.glob(".tmp-part*")]:
        if entry.is_dir() and entry.name not in run.record.folders:
            remove_folder(entry)


def _groups(folders: Sequence[Path]) -> list[list[Path]]:
    """Neighbouring parts to be merged into one folder each."""
    groups: list[list[Path]] = []
    room = 0
    for folder in folders:
        size = sum(file.stat().st_size for file in folder.iterdir())
        if size >= LARGE:
            groups.append([folder])
            room = 0
        elif size <= room:
            groups[-1].append(folder)
            room -= size
        else:
            groups.append([folder])
            room = MERGED_SIZE - size
    return groups


def _merge(folder: Path, index: int, parts: Sequence[Path]) -> str:
    """One merged folder; returns its name, which no earlier merge of the run used."""
    generation = sum(1 for _ in folder.glob(f"{MERGED}*"))
    name = f"{MERGED}{generation:03d}-{index:05d}"
    draft = temporary(folder / name)
    draft.mkdir()
    try:
        for table in STORED.values():
            files = [part / f"{table.name}.parquet" for part in parts]
            files = [file for file in files if file.exists()]
            if files:
                with Shard(table, draft / f"{table.name}.parquet") as shard:
                    for file in files:
                        _copy(file, shard)
        about = [json.loads((part / "part.json").read_bytes()) for part in parts]
        (draft / "part.json").write_text(json.dumps(_together(about)), encoding="utf-8")
        publish_folder(draft, folder / name)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return name


def _copy(file: Path, shard: Shard) -> None:
    """Append a part's file, row group by row group."""
    with pq.ParquetFile(file) as source:
        for group in range(source.num_row_groups):
            shard.add(source.read_row_group(group).cast(shard.table.arrow), ordered=True)


def _together(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`part.json` of several parts merged."""
    names = sorted({name for part in parts for name in part["rows"]})
    return {
        "prompt_ids": [prompt for part in parts for prompt in part["prompt_ids"]],
        "n_tokens": sum(part["n_tokens"] for part in parts),
        "rows": {name: sum(part["rows"].get(name, 0) for part in parts) for name in names},
    }
