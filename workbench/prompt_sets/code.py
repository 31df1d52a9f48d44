"""Source code: functions and classes of Python's standard library, cut to an exact number of tokens.

To compare heads on two kinds of text (`prose` is the other): a head that parks its attention on the first token in one
and works in the other is active in some domains and dormant in others (Guo et al., arXiv 2410.13835, GitHub against
Wikipedia). Docstrings are left out: they are prose.
"""

from __future__ import annotations

import ast
import random
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from sparselens.workbench.prompt_set import PromptSet

if TYPE_CHECKING:
    from sparselens.workbench.encoder import Encoder
    from sparselens.workbench.prompt import Prompt

MODULES = (
    "argparse", "bisect", "calendar", "cmd", "configparser", "contextlib", "copy", "csv", "dataclasses",
    "difflib", "functools", "graphlib", "heapq", "json.decoder", "pprint", "queue", "random",
    "sched", "selectors", "shlex", "statistics", "tempfile", "textwrap", "timeit", "tokenize", "traceback", "uuid",
    "weakref"
)  # fmt: skip
"""Modules written in Python that 3.11 to 3.14 all have."""
LINES = 4
"""Definitions shorter than this are left out."""


@dataclass(frozen=True)
class Code(PromptSet):
    """`n` stretches of `length` tokens, special tokens at the start included."""

    name: ClassVar[str] = "code"
    description: ClassVar[str] = (
        "source code (Python's own library), no answer: another kind of text than prose"
    )

    length: int = 512
    n: int = 4
    seed: int = 0

    def prompts(self, encoder: Encoder) -> list[Prompt]:
        """Each starts at another definition, evenly spread over the modules."""
        if self.n < 1:
            raise ValueError("code: n is at least 1")
        blocks = definitions()
        first = random.Random(self.seed).randrange(len(blocks))
        made = []
        for number in range(self.n):
            start = (first + number * len(blocks) // self.n) % len(blocks)
            ids = self._ids(encoder, [*blocks[start:], *blocks[:start]])
            made.append(
                encoder.prompt(
                    {"token_ids": ids, "metadata": {"set": str(self), "definition": start}},
                    name=f"code-{self.length}-{self.seed}-{number}",
                    prompt_set=self.name,
                    bos_mode=encoder.bos_mode,
                )
            )
        return made

    def _ids(self, encoder: Encoder, order: list[str]) -> list[int]:
        """Return the first `length` tokens of these definitions; as few of them as will do are tokenised."""
        taken = 8
        while True:
            ids = encoder.encode("\n\n\n".join(order[:taken]))[0]
            if len(ids) >= self.length:
                return list(ids[: self.length])
            if taken >= len(order):
                raise ValueError(f"code: there are {len(ids)} tokens of it, length is {self.length}")
            taken *= 2


@cache
def definitions() -> tuple[str, ...]:
    """Every function and class at the top of the modules, without docstrings, in the order of modules and lines."""
    return tuple(block for name in MODULES for block in _blocks(_source(name)))


def _source(module: str) -> str:
    """Return a module's text; `ValueError` where this Python has the module without it."""
    spec = find_spec(module)
    loader: Any = None if spec is None else spec.loader
    text = None if loader is None else loader.get_source(module)
    if text is None:
        raise ValueError(f"code: this Python has no source of its module {module}")
    return str(text)


def _blocks(source: str) -> list[str]:
    lines = source.splitlines()
    tree = ast.parse(source)
    dropped: set[int] = set()
    for node in ast.walk(tree):
        dropped.update(_docstring(node))
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            start = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            kept = [lines[at - 1] for at in range(start, (node.end_lineno or start) + 1) if at not in dropped]
            text = re.sub(r"\n\s*\n(\s*\n)+", "\n\n", "\n".join(kept).rstrip())
            if len(kept) >= LINES and text.isascii():
                found.append(text)
    return found


def _docstring(node: ast.AST) -> range:
    """Return the lines of a definition's docstring; none where it is all that there is."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or len(node.body) < 2:
        return range(0)
    first = node.body[0]
    if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
        return range(0)
    if not isinstance(first.value.value, str):
        return range(0)
    return range(first.lineno, (first.end_lineno or first.lineno) + 1)


PROMPT_SET = Code
