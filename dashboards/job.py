"""One command at a time, started by the server: what it says, how it ends, and that it ends with the server."""

from __future__ import annotations

import atexit
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

LINES = 60  # of its output that are kept
LONGEST = 4_000  # letters of a line
WIDTH = "100"  # columns of the terminal that the command sees
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BAR = re.compile(r"[━╸╺─]+")


@dataclass(frozen=True)
class State:
    """A job as it stands: `code` None while it runs; `lines` are the last ones, a bar's newest state at the end."""

    name: str = ""
    running: bool = False
    stopped: bool = False
    seconds: float = 0.0
    code: int | None = None
    lines: tuple[str, ...] = ()

    @property
    def last(self) -> str:
        """The last line it said."""
        return self.lines[-1] if self.lines else ""


class Job:
    """At most one process. Its output is read through a terminal of its own, so that progress bars are drawn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: deque[str] = deque(maxlen=LINES)
        self._name = ""
        self._drawn = ""  # the line that is being written, such as a bar
        self._stopped = False
        self._times = (0.0, 0.0)  # start and end
        atexit.register(self.stop)

    def start(self, name: str, argv: Sequence[str]) -> None:
        """Start a command; ValueError while another one runs."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                raise ValueError(f"{self._name} is still running: one at a time")
            reads, writes = _terminal()
            leash = [sys.executable, "-P", "-m", "sparselens.dashboards.leash", *argv]
            env = {**os.environ, "TERM": "xterm", "COLUMNS": WIDTH, "NO_COLOR": "1"}
            try:
                process = subprocess.Popen(
                    leash,
                    stdin=subprocess.PIPE,
                    stdout=writes,
                    stderr=writes,
                    env=env,
                    start_new_session=True,
                )
            finally:
                os.close(writes)
            self._process, self._name, self._stopped = process, name, False
            self._lines, self._drawn = deque(maxlen=LINES), ""
            self._times = (time.monotonic(), 0.0)
            threading.Thread(target=self._read, args=(process, reads, self._lines), daemon=True).start()

    def stop(self) -> None:
        """Interrupt the command, if one runs."""
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None or process.stdin is None:
                return
            self._stopped = True
            process.stdin.close()

    def state(self) -> State:
        """What there is to say now."""
        with self._lock:
            if self._process is None:
                return State()
            code = self._process.returncode
            start, end = self._times
            seconds = (end or time.monotonic()) - start
            lines = (*self._lines, *([self._drawn] if self._drawn else []))
            return State(self._name, end == 0.0, self._stopped, seconds, code, lines)

    def _read(self, process: subprocess.Popen[bytes], reads: int, lines: deque[str]) -> None:
        rest = ""
        with os.fdopen(reads, "rb", buffering=0) as output:
            while said := _chunk(output.fileno()):
                *whole, rest = (rest + said.decode("utf-8", "replace")).split("\n")
                lines.extend(line for each in whole if (line := seen(each)))
                self._drawn = seen(rest)
                rest = rest[-LONGEST:]
        process.wait()
        with self._lock:
            self._times = (self._times[0], time.monotonic())


def _terminal() -> tuple[int, int]:
    """The ends of a pseudo-terminal, or of a pipe where there are none: to read, to write."""
    if sys.platform == "win32":
        return os.pipe()
    import pty

    return pty.openpty()


def _chunk(reads: int) -> bytes:
    """Some of what was said; empty at the end, which a pseudo-terminal shows as an error."""
    try:
        return os.read(reads, 65_536)
    except OSError:
        return b""


def seen(line: str) -> str:
    """A line as a terminal shows it: without escapes, from the last carriage return on, a bar as a dot."""
    shown = _ESCAPES.sub("", line).replace("\x1b", "").rstrip("\r").rpartition("\r")[2]
    return " ".join(_BAR.sub("·", shown).split())[:LONGEST]
