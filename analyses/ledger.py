"""Numbers of finished units of an analysis (a prompt, a trial), so that an interrupted one goes on where it stopped.

They lie in the folder of the analysis run until it is complete, one file a unit, each there whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparselens.storage.disk import write_whole

UNITS = "units"


class Ledger:
    """Keeps what `once` computes; without a `folder` in memory only.

    `folder` gives the folder of the run. It is asked at the first number to be kept, and not before: an analysis
    that fails on its arguments leaves no run behind. `resumed` is the folder of an interrupted run, whose numbers
    count.
    """

    def __init__(self, folder: Callable[[], Path] | None = None, *, resumed: Path | None = None) -> None:
        self._folder, self._resumed = folder, resumed
        self._memory: dict[str, dict[str, Any]] = {}
        self.found = 0

    def once(self, key: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the arrays kept under `key` (a unit and all that its numbers depend on), else compute them."""
        if key in self._memory:
            return self._memory[key]
        kept = self._read(key)
        if kept is not None:
            self.found += 1
            return kept
        numbers = {name: np.asarray(value) for name, value in compute().items()}
        if self._folder is None:
            self._memory[key] = numbers
        else:
            self._write(self._folder(), key, numbers)
        return numbers

    def _read(self, key: str) -> dict[str, Any] | None:
        if self._resumed is None or not (path := _path(self._resumed, key)).exists():
            return None
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def _write(self, folder: Path, key: str, numbers: Mapping[str, Any]) -> None:
        path = _path(folder, key)
        path.parent.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **numbers)
        write_whole(path, buffer.getvalue(), durable=False)


def forget(folder: Path) -> None:
    """Remove the numbers of a run: its rows have them now."""
    shutil.rmtree(folder / UNITS, ignore_errors=True)


def _path(folder: Path, key: str) -> Path:
    return folder / UNITS / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
