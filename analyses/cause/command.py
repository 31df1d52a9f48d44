"""Commands about named heads, and whether a page may start one: what a trace says is not trusted.

A trace may come from anybody. Its model, policy and prompts are started from a page only where they are the package's
own, by name: no file, no plan, no hub id can be smuggled in. Nothing here imports torch.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

POLICIES = Path(__file__).resolve().parents[2] / "kernels" / "policies"
DRAWS = 3
"""Random sets beside the given heads: few, so that it ends soon."""
PASSES = 4 + DRAWS
"""Forward passes a prompt: the run, its base, the heads, a wider policy, the random sets."""
LONGEST = 4_000
BOS_OPTIONS = {"added": "--bos", "left out": "--no-bos"}
"""The option for each `prompts.bos_mode` that is not the commands' own."""
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_HEAD = re.compile(r"L\d{1,3}H\d{1,3}", re.ASCII)


@dataclass(frozen=True)
class Wish:
    """Heads that are to be given back: under which policy against which base, on which prompts."""

    model: str
    policy: str
    base: str
    prompts: str
    heads: tuple[str, ...]
    policy_source: str | None = None
    dtype: str | None = None
    bos: str | None = None

    def arguments(self, trace: Path | str) -> list[str]:
        """What follows `sparselens` on the command line."""
        asked = call("restore", self.heads, prompts=self.prompts, base=self.base, draws=str(DRAWS), check="0")
        run = ["--model", self.model, "--policy", self.policy, *as_captured(self.dtype, self.bos)]
        return ["analyse", asked, *run, "--trace", str(trace)]

    def line(self, trace: Path | str) -> str:
        """The command as one writes it in a shell; ValueError as `shell`."""
        return shell(self.arguments(trace))

    def refused(self) -> str:
        """Why a page does not start it; empty where it may."""
        from sparselens.workbench.models import (  # not at the top: pages are drawn without a workbench
            DTYPES,
            MODELS,
        )
        from sparselens.workbench.prompt_set import prompt_sets

        if not self.heads or not all(_HEAD.fullmatch(name) for name in self.heads):
            return "no heads are picked"
        if self.model not in MODELS:
            return f"its model {self.model[:60]!r} is none of `sparselens models`, and a page loads no other"
        if self.dtype not in (None, *DTYPES):
            return f"its dtype {self.dtype[:60]!r} is none of {', '.join(DTYPES)}"
        if self.policy_source:
            return "its policy comes from a file, whose code a page does not run"
        if not self.prompts:
            return "its prompts have no answers, or are no built-in set"
        own = {"policy": policy_names(), "base": policy_names(), "prompts": prompt_sets()}
        found = {name: foreign(getattr(self, name), names) for name, names in own.items()}
        return next((f"its {name} {why}" for name, why in found.items() if why), "")


def call(name: str, heads: Sequence[str], *, prompts: str = "", base: str = "", **more: str) -> str:
    """The call of an analysis of named heads (`restore`, `ablate`); without heads, of one about all (`attribution`).

    `prompts` and `base` are calls themselves; an empty one, and a dense base, stay the analysis' own.
    """
    about = {"heads": f"[{','.join(heads)}]", "orders": "[given]", "matched": "[given]"} if heads else {}
    on = {"prompts": written(prompts)} if prompts else {}
    against = {"base": written(base)} if base and named(base) != "dense" else {}
    said = {**about, **more, **on, **against}
    return f"{name}({','.join(f'{key}={value}' for key, value in said.items())})"


def as_captured(dtype: str | None, bos: str | None) -> list[str]:
    """The options that make a command read and run prompts as a capture did, beside model and policy."""
    typed = [] if dtype in (None, "float32") else ["--dtype", str(dtype)]
    return [*typed, *([BOS_OPTIONS[bos]] if bos in BOS_OPTIONS else [])]


def shell(arguments: Sequence[str]) -> str:
    """`sparselens` and its arguments as one writes them in a shell.

    Raises ValueError where what a trace says holds control characters: pasted, they would be keys that are pressed.
    """
    line = shlex.join(["sparselens", *arguments])
    if not line.isprintable():
        raise ValueError("what this trace says of the run holds control characters: no command is made of it")
    return line


def written(value: str) -> str:
    """A value of a call: as it is, quoted where it is more than a call of words and numbers, such as a path."""
    return value if not foreign(value, {named(value), *policy_names()}) else repr(value)


@cache
def policy_names() -> frozenset[str]:
    """The package's own policies: a file each."""
    return frozenset(path.stem for path in POLICIES.glob("*.py")) - {"__init__"}


def sets_in(text: str) -> list[str]:
    """The calls in a run's `prompt_set`, which are separated by commas: `needles(n=4), repeats(n=2)`."""
    found, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            found.append(text[start:at].strip())
            start = at + 1
    return [each for each in [*found, text[start:].strip()] if each]


def named(call: str) -> str:
    """The name of a call."""
    return call.partition("(")[0].strip()


def foreign(text: str, names: Collection[str]) -> str:
    """What in a call is not the package's own, as the end of a sentence; empty where all of it is.

    Calls of `names`, numbers and plain words are; quoted texts, dots, slashes and plans are not.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body if len(text) <= LONGEST else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None:
        return f"is no call that is read here: {text[:60]!r}"
    if not isinstance(tree, ast.Name | ast.Call):
        return f"is no call: {text[:60]!r}"
    return _foreign_call(tree, names)


def _foreign_call(node: ast.Name | ast.Call, names: Collection[str]) -> str:
    name = node if isinstance(node, ast.Name) else node.func
    if not isinstance(name, ast.Name) or name.id not in names:
        return f"is none of the package's: {ast.unparse(name)[:60]!r}"
    if isinstance(node, ast.Name):
        return ""
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        return "has values without names"
    for keyword in node.keywords:
        if str(keyword.arg) in ("plan", "path", "file"):
            return f"reads a file ({keyword.arg}=…)"
        if why := _foreign_value(keyword.value, names):
            return why
    return ""


def _foreign_value(node: ast.expr, names: Collection[str]) -> str:
    if isinstance(node, ast.List | ast.Tuple):
        return next((why for item in node.elts if (why := _foreign_value(item, names))), "")
    if isinstance(node, ast.Call):
        return _foreign_call(node, names)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _foreign_value(node.operand, names)
    plain = (isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float)) or (
        isinstance(node, ast.Name) and _WORD.fullmatch(node.id) is not None
    )
    return "" if plain else f"has a value that is no number and no word: {ast.unparse(node)[:60]!r}"


def cost(lengths: Sequence[int], rate: float | None) -> str:
    """What a restore of given heads on prompts of these lengths runs; `rate` in tokens a second, if it is known."""
    tokens = PASSES * sum(lengths)
    words = f"{len(lengths)} prompts × {PASSES} passes, {tokens:,} tokens"
    if not rate:
        return words
    minutes = tokens / rate / 60
    took = f"{minutes * 60:.0f} s" if minutes < 2 else f"{minutes:.0f} min"
    return f"{words}: at most about {took} at the speed at which this run was captured"
