"""The package's public face, for handles that offer what lies further down the path.

Imports go one way, so a run cannot import the figures that pages and notebooks draw of it. It asks the root, which
knows every folder and loads on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def public(name: str) -> Any:
    """Return a public name of `sparselens`; `AttributeError` lists what there is."""
    return getattr(import_module("sparselens"), name)
