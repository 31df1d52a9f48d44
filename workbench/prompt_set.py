"""Built-in prompt sets: one file each in `prompt_sets/`, found by its constant `PROMPT_SET`.

A set is a frozen dataclass whose fields are its parameters, written as a call, the same in Python and on the
command line: `needles(length=1024,depths=[0.1,0.5,0.9])`. Printing and parsing round-trip.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, fields
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar

from sparselens.workbench.call_text import arguments as read_arguments
from sparselens.workbench.call_text import built, defaults
from sparselens.workbench.plug_in import plug_ins

if TYPE_CHECKING:
    from sparselens.workbench.encoder import Encoder
    from sparselens.workbench.prompt import Prompt

_CALL = re.compile(r"^([A-Za-z_][A-Za-z0-9_]*)\s*(?:\((.*)\)|:(.*))?$", re.DOTALL)


@dataclass(frozen=True)
class PromptSet:
    """What every built-in set is: parameters as fields, `name` and `description`, and its prompts."""

    name: ClassVar[str]
    description: ClassVar[str]

    def prompts(self, encoder: Encoder) -> list[Prompt]:
        """The set's prompts for one tokenizer: the same for the same parameters and seed."""
        raise NotImplementedError

    def __str__(self) -> str:
        changed = [
            f"{entry.name}={_written(getattr(self, entry.name))}"
            for entry in fields(self)
            if getattr(self, entry.name) != entry.default
        ]
        return f"{self.name}({','.join(changed)})"

    @classmethod
    def parameters(cls) -> dict[str, Any]:
        """The parameters and their defaults."""
        return defaults(cls)


@cache
def _found() -> dict[str, type[PromptSet]]:
    from sparselens.workbench import prompt_sets as folder

    return plug_ins(folder, "PROMPT_SET", attrgetter("name"))


def prompt_sets() -> dict[str, type[PromptSet]]:
    """Every built-in set by name."""
    return dict(_found())


def is_call(text: str) -> bool:
    """Whether a text is a built-in set's name or call, rather than a file's name."""
    match = _CALL.match(text.strip())
    return match is not None and (match[1] in _found() or match[2] is not None)


def parse(text: str) -> PromptSet:
    """The set that a call describes; `needles:length=512,n=4` is a shorthand for flat ones.

    Raises ValueError for an unknown set or parameter (listing what there is) and for a value of another type.
    """
    match = _CALL.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a prompt set; write it as a call, such as needles(length=512)")
    name, arguments = match[1], match[2] or match[3] or ""
    if name not in _found():
        close = difflib.get_close_matches(name, _found(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown prompt set {name!r}; {hint}there are {', '.join(_found())}")
    return build(name, read_arguments(name, arguments))


def build(name: str, arguments: dict[str, Any]) -> PromptSet:
    """A set from its name and parameters; ValueError for unknown ones and for wrong types."""
    found = _found()[name]
    return built(found, name, found.parameters(), arguments)


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(_written(item) for item in value)}]"
    return str(value)
