"""Progress of a capture: a bar with tokens per second on a terminal, nothing on a pipe."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Counts prompts and tokens; `with Progress(prompts, tokens) as bar:`."""

    def __init__(self, prompts: int, tokens: int, *, enabled: bool = True) -> None:
        console = Console(file=sys.stderr)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not enabled or not console.is_terminal,
        )
        self._task = self._bar.add_task("capture", total=prompts, rate="")
        self._tokens = 0
        self._total = tokens
        self._started = time.perf_counter()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def says(self, text: str) -> None:
        """Show what is being worked on."""
        self._bar.update(self._task, description=text[:60])

    def advance(self, tokens: int) -> None:
        """Count tokens that have been run."""
        self._tokens += tokens
        seconds = max(time.perf_counter() - self._started, 1e-9)
        self._bar.update(self._task, rate=f"{self._tokens / seconds:,.0f} tokens/s")

    def finished_prompt(self) -> None:
        """Count a prompt that is complete in every run."""
        self._bar.advance(self._task)
