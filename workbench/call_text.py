"""The arguments of a call as text, `length=1024,depths=[0.1,0.5]`: read, and put into the types of their defaults."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

Made = TypeVar("Made")


def arguments(name: str, text: str) -> dict[str, Any]:
    """Return the parameters written `key=value, …` in a call of `name`; raises `ValueError` on anything else."""
    try:
        tree = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(tree, ast.Call) or tree.args:
            raise ValueError(f"{name}: parameters are written name=value")
        return {str(keyword.arg): _value(keyword.value) for keyword in tree.keywords}
    except SyntaxError as error:
        raise ValueError(f"{name}({text}) cannot be read: {error.msg}") from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "none": None}.get(node.id.lower(), node.id)
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_value(item) for item in node.elts)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"{ast.unparse(node)} is no value; write numbers, words and lists") from error


def typed(name: str, key: str, value: Any, default: Any) -> Any:
    """Return `value` in the type of `default`: one item where a list is meant, a whole number as a float.

    Raises `ValueError` on another type, and on an empty list.
    """
    if isinstance(default, tuple):
        items = tuple(value) if isinstance(value, tuple | list) else (value,)
        if not items:
            raise ValueError(f"{name}: {key} is an empty list")
        return tuple(typed(name, key, item, default[0]) for item in items)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise ValueError(f"{name}: {key} is a {type(default).__name__}, not {value!r}")
    return value


def defaults(kind: type[Any]) -> dict[str, Any]:
    """Return the fields of a dataclass and their defaults."""
    return {entry.name: None if entry.default is MISSING else entry.default for entry in fields(kind)}


def built(kind: Callable[..., Made], name: str, known: Mapping[str, Any], given: Mapping[str, Any]) -> Made:
    """Return `kind` with the given parameters, in the types of their defaults `known`.

    Raises `ValueError` on a parameter that is not known, with those there are, and on a value of another type.
    """
    for key in given:
        if key not in known:
            raise ValueError(f"{name} has no parameter {key!r}; it has {', '.join(known)}")
    return kind(**{key: typed(name, key, value, known[key]) for key, value in given.items()})
