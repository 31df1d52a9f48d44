"""The browser's own code, compressed once and kept: Dash, the tables and the charts are 9 MB of JavaScript.

The best compression takes seconds a file. It is made beside the answers, kept in the user's cache by what the file
holds, and found there by every later start; until it is ready a file goes out compressed quickly.
"""

from __future__ import annotations

import gzip
import logging
import os
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread, get_native_id

import platformdirs
import pyarrow as pa

LOG = logging.getLogger(__name__)
QUICK, BEST = 5, 11  # qualities of brotli
GIVES_WAY = 5  # how much a thread that compresses gives way, as `nice`


def folder() -> Path:
    """Where compressed files are kept between starts."""
    return Path(platformdirs.user_cache_dir("sparselens")) / "assets"


def encoding(accepted: str) -> str:
    """The shortest encoding that a request's `Accept-Encoding` allows: `br`, `gzip`, or nothing."""
    offers = {}
    for offer in accepted.lower().split(","):
        name, _, weight = offer.partition(";")
        offers[name.strip()] = weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return next((name for name in ("br", "gzip") if offers.get(name)), "")


def brotli(body: bytes, quality: int) -> bytes:
    """Brotli of the bytes, at a quality from 0 to 11."""
    return bytes(pa.Codec("brotli", compression_level=quality).compress(body, asbytes=True))


class Packer:
    """Compressed files by what they hold."""

    def __init__(self, kept_in: Callable[[], Path] = folder) -> None:
        self._kept_in = kept_in
        self._best: dict[str, bytes] = {}
        self._other: dict[tuple[str, str], bytes] = {}
        self._asked: set[str] = set()
        self._waiting: SimpleQueue[tuple[str, bytes]] = SimpleQueue()
        self._lock = Lock()

    def packed(self, body: bytes, how: str) -> bytes:
        """The bytes as `br` or `gzip`; any other encoding raises ValueError."""
        if how not in ("br", "gzip"):
            raise ValueError(f"no encoding {how!r}; there are br and gzip")
        name = sha256(body).hexdigest()
        if how == "br":
            best = self._best.get(name) or self._found(name)
            if best is not None:
                return best
            self._ask(name, body)
        made = self._other.get((name, how))
        if made is None:
            made = brotli(body, QUICK) if how == "br" else gzip.compress(body, 6)
            self._other[name, how] = made
        return made

    def best(self, body: bytes) -> bytes:
        """The bytes as `br`, as small as they get: waits for it, and keeps it."""
        name = sha256(body).hexdigest()
        found = self._best.get(name) or self._found(name)
        return found if found is not None else self._make(name, body)

    def _found(self, name: str) -> bytes | None:
        try:
            self._best[name] = (self._kept_in() / f"{name}.br").read_bytes()
        except OSError:
            return None
        return self._best[name]

    def _make(self, name: str, body: bytes) -> bytes:
        made = self._best[name] = brotli(body, BEST)
        file = self._kept_in() / f"{name}.br"
        draft = file.with_name(f".{name}-{os.getpid()}-{get_native_id()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(made)
            draft.replace(file)
        except OSError as problem:  # no cache to keep it in: it is made again by the next start
            LOG.info("compressed files are not kept: %s", problem)
        self._other.pop((name, "br"), None)
        return made

    def _ask(self, name: str, body: bytes) -> None:
        """Have the best made beside the answers, once."""
        with self._lock:
            if name in self._asked:
                return
            if not self._asked:
                Thread(target=self._work, name="compress", daemon=True).start()
            self._asked.add(name)
            self._waiting.put((name, body))

    def _work(self) -> None:
        if sys.platform == "linux":  # there a priority is a thread's
            os.setpriority(os.PRIO_PROCESS, get_native_id(), GIVES_WAY)
        while True:
            self._make(*self._waiting.get())
