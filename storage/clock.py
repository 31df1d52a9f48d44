"""One thread that ends what takes too long: a thread for each query would cost a third of a short query."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from threading import Condition, Thread

IDLE = 3600.0  # seconds it sleeps when nothing runs


class Clock:
    """Calls functions when their time is up, unless they were called off."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._due: dict[int, tuple[float, Callable[[], None]]] = {}
        self._keys = count()
        self._wakes = 0.0
        self._thread: Thread | None = None

    def start(self, seconds: float, act: Callable[[], None]) -> int:
        """Have `act` called in so many seconds; it must be quick and may not raise. Returns what `stop` takes."""
        with self._changed:
            due, key = time.monotonic() + seconds, next(self._keys)
            self._due[key] = (due, act)
            if self._thread is None:
                self._thread = Thread(target=self._run, name="clock", daemon=True)
                self._thread.start()
            elif due < self._wakes:
                self._changed.notify()
        return key

    def stop(self, key: int) -> None:
        """Call it off. Once this returns `act` is not running and is not called any more."""
        with self._changed:
            self._due.pop(key, None)

    def _run(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for key in [key for key, (due, _) in self._due.items() if due <= now]:
                    self._due.pop(key)[1]()
                self._wakes = min((due for due, _ in self._due.values()), default=now + IDLE)
                self._changed.wait(self._wakes - now)


CLOCK = Clock()
