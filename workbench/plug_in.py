"""Plug-ins of the workbench: one file each in a folder, found by the constant it exposes; nothing else lists them."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


def plug_ins(folder: ModuleType, constant: str, named: Callable[[Any], str]) -> dict[str, Any]:
    """Return what the modules of `folder` expose as `constant`, by name, in the order of the files.

    `named` gives an object's name. Raises `ValueError` where two files have the same.
    """
    found: dict[str, Any] = {}
    for module in sorted(entry.name for entry in pkgutil.iter_modules(folder.__path__)):
        made = getattr(import_module(f"{folder.__name__}.{module}"), constant)
        if named(made) in found:
            raise ValueError(
                f"two files of {folder.__name__} are for {named(made)!r}: {module}.py and another"
            )
        found[named(made)] = made
    return found
