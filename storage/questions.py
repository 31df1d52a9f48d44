"""The ten documented questions: sample queries of the SQL page, and what benchmarks/queries.py times."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files

_HEADING = re.compile(r"^-- (?P<name>\w+): (?P<title>.+?) \((?P<cost>[^()]+)\)\n", re.MULTILINE)


@dataclass(frozen=True)
class Question:
    """A question to a trace: its name, the sentence, what it reads, the query."""

    name: str
    title: str
    cost: str  # `touches one head`, `summary` or `scans all edges`
    sql: str

    @property
    def limit(self) -> float:
        """Seconds it may take on 20 prompts of 512 tokens and three policies, warm, two threads."""
        return 2.0 if self.cost == "scans all edges" else 0.1


def questions() -> list[Question]:
    """The questions in the order of `questions.sql`."""
    text = (files("sparselens.storage") / "questions.sql").read_text(encoding="utf-8")
    headings = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    return [
        Question(found["name"], found["title"], found["cost"], text[found.end() : end].strip().rstrip(";"))
        for found, end in zip(headings, ends, strict=True)
    ]
