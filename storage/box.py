"""Queries in a process of their own, which is ended when one of them takes too long or too much.

DuckDB stops a query between calls of functions; one call may run for minutes or build a text of gigabytes that
its memory limit does not count, and deep nesting may end the process. Whoever serves others, as the pages do,
asks a `Box`: the same door, behind it a process that has a limit on its memory (Linux), cannot write files, has
none of the environment's variables, and is ended after `timeout` and started again for the next query.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import duckdb
import pyarrow as pa

from sparselens.storage.door import MAX_ROWS, Result
from sparselens.storage.guard import SqlError, one_line
from sparselens.storage.reader import connect

MEMORY = "1 GB"  # of DuckDB
BEYOND = 3 << 30  # bytes of address space over what the process has at the start
MAX_BYTES = 64 << 20
STARTING = 60.0  # seconds until the trace is open
GRACE = 1.0  # seconds for DuckDB to stop by itself
KEPT_VARIABLES = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "SYSTEMROOT",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
)
TOO_MUCH = "stopped: the query needs more memory than it is given"


class Box:
    """A trace behind the door, in another process; one query at a time, any thread may ask."""

    def __init__(self, path: Path | str, *, memory: str = MEMORY) -> None:
        self.path, self.memory = Path(path), memory
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def sql(
        self, text: str, *, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES, timeout: float = 10.0
    ) -> Result:
        """Run one query as `Connection.sql` does; SqlError in one line, at the latest a second after `timeout`.

        A query waits for the one before it as long as it may run itself.
        """
        if not self._lock.acquire(timeout=timeout):
            raise SqlError("stopped: an earlier query is still running")
        try:
            process = self._started()
            asked = {"text": text, "max_rows": max_rows, "max_bytes": max_bytes, "timeout": timeout}
            return self._answer(process, asked, timeout)
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the process; the next query starts another one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _started(self) -> subprocess.Popen[bytes]:
        """The running process, its trace open."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        command = [sys.executable, "-P", "-m", "sparselens.storage.box", str(self.path), self.memory]
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept,
            start_new_session=True,
        )
        said, _ = self._read(self._process, STARTING)
        if said is None or "problem" in said:
            self.close()
            raise SqlError(said["problem"] if said else f"{self.path} could not be opened for queries")
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], asked: dict[str, Any], timeout: float) -> Result:
        """Send one query and take its rows; a process that is ended or ends itself is said as what it was."""
        try:
            _pipe(process.stdin).write(json.dumps(asked).encode() + b"\n")
            _pipe(process.stdin).flush()
            said, late = self._read(process, timeout + GRACE)
        except BrokenPipeError:
            said, late = None, False
        if said is None:
            self.close()
            raise SqlError(f"stopped after {timeout:g} s: the query takes too long" if late else TOO_MUCH)
        if "problem" in said:
            raise SqlError(said["problem"])
        table = pa.ipc.open_stream(said.pop("body")).read_all()
        return Result(table, said["truncated"], said["elapsed"], said["types"])

    @staticmethod
    def _read(process: subprocess.Popen[bytes], seconds: float) -> tuple[dict[str, Any] | None, bool]:
        """What the process says, None if it ends before; and whether it was ended here for being late."""
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            line = _pipe(process.stdout).readline()
            said = json.loads(line) if line.endswith(b"\n") else None
            if said is not None:
                said["body"] = _pipe(process.stdout).read(said.get("size", 0))
                said = None if len(said["body"]) < said.get("size", 0) else said
        finally:
            timer.cancel()
        return said, late.is_set()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ValueError("the process has no pipe")
    return pipe


def limit(more: int = BEYOND) -> None:
    """Forbid this process to grow by more than so many bytes of address space, and to write files; Linux only."""
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    top = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (top, top))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _reply(out: IO[bytes], said: dict[str, Any], body: bytes = b"") -> None:
    out.write(json.dumps({**said, "size": len(body)}).encode() + b"\n" + body)
    out.flush()


def _packed(table: Any) -> bytes:
    """A table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def serve(path: Path, memory: str, requests: IO[bytes], out: IO[bytes]) -> None:
    """Answer queries, a JSON object a line, until the asking side closes the pipe."""
    try:
        connection = connect(path, memory=memory, threads=2)
    except (ValueError, OSError, duckdb.Error) as problem:
        _reply(out, {"problem": one_line(problem)})
        return
    limit()
    _reply(out, {})
    with Path(os.devnull).open("wb") as nowhere:
        for line in requests:
            asked = json.loads(line)
            # also when whoever asked is gone
            faulthandler.dump_traceback_later(asked["timeout"] + 2 * GRACE, exit=True, file=nowhere)
            try:
                found = connection.sql(**asked)
                said = {"truncated": found.truncated, "elapsed": found.elapsed, "types": found.types}
                _reply(out, said, _packed(found.table))
            except MemoryError:
                _reply(out, {"problem": TOO_MUCH})
            except (ValueError, OSError, duckdb.Error, pa.ArrowException) as problem:
                _reply(out, {"problem": one_line(problem)})
            faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2], sys.stdin.buffer, sys.stdout.buffer)
