"""Policies as text: the call string, read and written.

    policy  := name | name(field=value, …) | name:field=value,…  | path/file.py:NAME[(…)] | @plan.json
    value   := number | true | false | none | word | "quoted" | [value, …] | policy

`parse(str(policy)) == policy`. A plan is a JSON object as `Policy.to_json` writes it, or `{"call": "…"}`.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from sparselens.kernels.policy_registry import maker
from sparselens.kernels.policy_type import Policy, field_hints

_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<word>[^\s\[\](),="]+)|(?P<mark>[\[\](),=]))""",
)
_NUMBER = re.compile(r"[+-]?(\d+|(\d+\.\d*|\.\d+)([eE][+-]?\d+)?|\d+[eE][+-]?\d+|inf)$")
_SHORT = re.compile(r"(?P<name>[A-Za-z_]\w*):(?P<fields>\w+=.*)$", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z_][\w./-]*$")
_NAMED = {"true": True, "false": False, "none": None}


class _Call:
    """A call as written: a name and its fields, before it is known what the name makes."""

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        self.name = name
        self.arguments = arguments


def parse(text: str) -> Policy:
    """Return the policy a call string stands for.

    Raises `ValueError` in one line on a syntax error, an unknown policy or field (with those there are), or a
    value of the wrong type.
    """
    text = text.strip()
    if text.startswith("@"):
        return _from_plan(Path(text[1:]).expanduser())
    short = _SHORT.match(text)
    if short:
        text = f"{short['name']}({short['fields']})"
    value, rest = _value(_tokens(text), text)
    if rest:
        raise ValueError(f"cannot read the policy {text!r} from {rest[0]!r} on")
    return build(_as_call(value, text))


def from_record(record: Mapping[str, Any]) -> Policy:
    """Return the policy of a JSON record: its `call`, or its `name` and `parameters`."""
    if "call" in record:
        return parse(str(record["call"]))
    if "name" not in record:
        raise ValueError(f"a policy record has 'call', or 'name' and 'parameters'; this has {sorted(record)}")
    return build(_Call(str(record["name"]), dict(record.get("parameters", {}))))


def _from_plan(path: Path) -> Policy:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read the policy plan {path}: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"the policy plan {path} is not a JSON object")
    return from_record(record)


def write_call(name: str, parameters: Mapping[str, Any]) -> str:
    """Return `name(field=value,…)`, or the name alone without fields."""
    written = ",".join(f"{key}={_written(value)}" for key, value in parameters.items())
    return f"{name}({written})" if written else name


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float, Policy)):
        return str(value)
    if isinstance(value, (tuple, list)):
        return f"[{','.join(_written(item) for item in value)}]"
    plain = _PLAIN.match(value) and value not in _NAMED and not _NUMBER.match(value)
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"cannot read the policy {text!r} at {text[at:]!r}")
        tokens.append(match[0].strip())
        at = match.end()
    return tokens


def _value(tokens: list[str], text: str) -> tuple[Any, list[str]]:
    if not tokens or tokens[0] in ("]", ")", ",", "=", "("):
        raise ValueError(f"cannot read the policy {text!r}: a value is missing")
    first, rest = tokens[0], tokens[1:]
    if first == "[":
        return _items(rest, "]", text)
    if rest and rest[0] == "(":
        pairs, rest = _items(rest[1:], ")", text)
        return _Call(first, _named(pairs, first)), rest
    return _atom(first), rest


def _items(tokens: list[str], end: str, text: str) -> tuple[list[Any], list[str]]:
    items: list[Any] = []
    while tokens and tokens[0] != end:
        if len(tokens) > 1 and tokens[1] == "=" and end == ")":
            value, rest = _value(tokens[2:], text)
            items.append((tokens[0], value))
        else:
            value, rest = _value(tokens, text)
            items.append(value)
        if not rest or rest[0] not in (",", end):
            raise ValueError(f"cannot read the policy {text!r}: expected ',' or {end!r} after {tokens[0]!r}")
        tokens = rest[1:] if rest[0] == "," else rest
    if not tokens:
        raise ValueError(f"cannot read the policy {text!r}: {end!r} is missing")
    return items, tokens[1:]


def _named(pairs: Iterable[Any], name: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for pair in pairs:
        if not isinstance(pair, tuple):
            raise ValueError(f"{name}: fields are written as field=value")
        if pair[0] in arguments:
            raise ValueError(f"{name}: the field {pair[0]!r} is given twice")
        arguments[pair[0]] = pair[1]
    return arguments


def _atom(token: str) -> Any:
    if token.startswith('"'):
        return json.loads(token)
    if token in _NAMED:
        return _NAMED[token]
    if _NUMBER.match(token):
        return int(token) if re.match(r"[+-]?\d+$", token) else float(token)
    return token


def _as_call(value: Any, text: str) -> _Call:
    if isinstance(value, _Call):
        return value
    if isinstance(value, str):
        return _Call(value, {})
    raise ValueError(f"{text!r} is not a policy")


def build(call: _Call) -> Policy:
    """Return the policy of a parsed call, its fields checked against the policy's own."""
    made = maker(call.name)
    if isinstance(made, Policy) and not call.arguments:
        return made
    hints = made.hints() if isinstance(made, Policy) else field_hints(made)
    for name in call.arguments:
        if name not in hints:
            raise ValueError(f"{call.name} has no field {name!r}; it has {', '.join(hints)}")
    values = {key: _coerce(value, hints[key], f"{call.name}.{key}") for key, value in call.arguments.items()}
    return made(**values)


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as the type of its field (scalars, `Policy`, `tuple[X, ...]`, `X | None`), or raise."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        return _coerce(value, next(arg for arg in get_args(hint) if arg is not type(None)), where)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_coerce(item, get_args(hint)[0], where) for item in value)
    if isinstance(hint, type) and issubclass(hint, Policy):
        return _policy(value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ValueError(f"{where} is {getattr(hint, '__name__', hint)}, not {_shown(value)!r}")


def _policy(value: Any, where: str) -> Policy:
    if isinstance(value, Policy):
        return value
    if isinstance(value, Mapping):
        return from_record(value)
    return build(_as_call(value, where))


def _shown(value: Any) -> Any:
    return f"{value.name}(…)" if isinstance(value, _Call) else value
