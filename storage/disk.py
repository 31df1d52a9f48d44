"""Files that appear whole or not at all, and survive a power cut: temporary name, fsync, rename."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp-"  # in the name of everything that is not finished; readers never look at it


class TraceError(ValueError):
    """A trace that cannot be read or written, said in one line."""


@contextmanager
def explained(action: str, path: Path) -> Iterator[None]:
    """Turn an operating-system error into one line: what could not be done, where, and why."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise TraceError(f"cannot {action} {path}: {reason}") from error


def temporary(path: Path) -> Path:
    """A name beside `path` that no reader looks at and no other process uses."""
    return path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}-{secrets.token_hex(3)}")


def sync(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace `path` by `data` in one step; a reader sees the old or the new content."""
    draft = temporary(path)
    try:
        draft.write_bytes(data)
        if durable:
            sync(draft)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def publish_folder(draft: Path, path: Path) -> None:
    """Give a finished folder its name; FileExistsError if the name is taken."""
    for file in sorted(draft.iterdir()):
        sync(file)
    sync(draft)
    if path.exists():
        raise FileExistsError(17, "it exists already", str(path))
    draft.rename(path)
    sync(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder in one step for readers: first it loses its name, then its content."""
    doomed = temporary(path)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
