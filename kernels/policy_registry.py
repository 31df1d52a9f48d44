"""Which policies there are: the files of `kernels/policies/`, plug-ins, the user's own functions."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeAlias

from sparselens.kernels.kernel import assigns
from sparselens.kernels.policy_type import Policy

PolicyMaker: TypeAlias = type[Policy] | Policy
FOLDER = Path(__file__).parent / "policies"
GROUP = "sparselens.policies"
_functions: dict[str, Policy] = {}


@cache
def _built_in() -> dict[str, type[Policy]]:
    found: dict[str, type[Policy]] = {}
    for path in sorted(FOLDER.glob("*.py")):
        if assigns(path, "POLICY"):
            add(found, import_module(f"sparselens.kernels.policies.{path.stem}").POLICY)
    return found


@cache
def _installed() -> dict[str, type[Policy]]:
    found: dict[str, type[Policy]] = {}
    for entry in entry_points(group=GROUP):
        add(found, entry.load())
    return found


def add(found: dict[str, type[Policy]], kind: type[Policy]) -> None:
    """Add a policy class to `found`; raises `ValueError` when its name is taken."""
    if kind.name in found:
        raise ValueError(f"two policies are named {kind.name!r}")
    found[kind.name] = kind


def policies() -> dict[str, type[Policy]]:
    """Return the policy classes by name, built in and installed (entry points `sparselens.policies`)."""
    found = dict(_built_in())
    for kind in _installed().values():
        add(found, kind)
    return dict(sorted(found.items()))


def remember(policy: Policy) -> None:
    """Make a policy function known by its name in this process; raises `ValueError` on a built-in name."""
    if policy.name in policies():
        raise ValueError(f"there is a policy named {policy.name!r} already; call yours something else")
    _functions[policy.name] = policy


def maker(name: str) -> PolicyMaker:
    """Return what makes policies of that name: a class, or a function policy to be called with fields.

    `path/file.py:NAME` loads the user's file. Raises `ValueError` on an unknown name, with those there are.
    """
    if ".py:" in name:
        return from_file(name)
    known: dict[str, PolicyMaker] = {**policies(), **_functions}
    if name not in known:
        raise ValueError(f"no policy named {name!r}; there are {', '.join(sorted(known))}")
    return known[name]


def from_file(reference: str) -> PolicyMaker:
    """Return the policy (class, object or `@policy` function) called NAME in `path/file.py:NAME`."""
    path, _, name = reference.rpartition(":")
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"no file {path!r} for the policy {reference!r}")
    module = importlib.util.module_from_spec(spec := _spec(file))
    sys.modules[spec.name] = module
    if spec.loader is None:
        raise ValueError(f"{path!r} cannot be imported")
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if isinstance(found, Policy) or (isinstance(found, type) and issubclass(found, Policy)):
        return located(found, reference)
    there = sorted(key for key, value in vars(module).items() if isinstance(value, Policy))
    raise ValueError(f"no policy {name!r} in {path}; there are {', '.join(there) or 'none'}")


def located(found: PolicyMaker, reference: str) -> PolicyMaker:
    """Return the policy with `reference` as its name, so that its call string finds the file again."""
    if isinstance(found, type):
        return type(found.__name__, (found,), {"name": reference, "__module__": found.__module__})
    from sparselens.kernels.policy_function import Function

    return found.at(reference) if isinstance(found, Function) else found


def _spec(file: Path) -> importlib.machinery.ModuleSpec:
    name = f"sparselens_user_{file.stem}_{abs(hash(str(file.resolve())))}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None:
        raise ValueError(f"{file} is not a Python file")
    return spec
