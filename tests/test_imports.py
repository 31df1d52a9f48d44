"""The path goes one way: who may import whom, read from the sources and seen in a fresh interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "kernels": set(),
    "storage": set(),
    "workbench": {"kernels", "storage"},
    "analyses": {"workbench", "storage", "kernels"},
    "dashboards": {"storage", "analyses"},
}
"""Folder: which other folders it may import. The command line alone may also reach what comes after it."""

COMMAND_LINE = {"workbench/commands", "workbench/cli.py"}
HEAVY = ("torch", "transformers", "transformer_lens")


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere, also inside functions and under TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            found.add(module)
            if module == "sparselens":
                found.update(f"sparselens.{alias.name}" for alias in node.names)
    return found


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def on_the_command_line(path: Path) -> bool:
    name = str(path.relative_to(ROOT))
    return any(name.startswith(place) for place in COMMAND_LINE)


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_a_folder_imports_only_what_lies_before_it(folder: str) -> None:
    for path in files(folder):
        allowed = ALLOWED[folder] | {folder}
        if on_the_command_line(path):
            allowed = set(ALLOWED)
        for module in imports(path):
            parts = module.split(".")
            if parts[0] == "sparselens" and len(parts) > 1 and parts[1] in ALLOWED:
                assert parts[1] in allowed, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_no_folder_is_imported_by_its_bare_name(folder: str) -> None:
    for path in files(folder):
        bare = {module for module in imports(path) if module.split(".")[0] in ALLOWED}
        assert not bare, f"{path.relative_to(ROOT)} imports {bare}"


def test_storage_and_pages_never_name_torch() -> None:
    for path in [*files("storage"), *files("dashboards")]:
        heavy = {module for module in imports(path) if module.split(".")[0] in HEAVY}
        assert not heavy, f"{path.relative_to(ROOT)} imports {heavy}"


def test_kernels_do_not_know_transformers() -> None:
    for path in files("kernels"):
        assert not {module for module in imports(path) if module.startswith("transformer")}, path


def test_pages_and_what_they_import_never_load_torch() -> None:
    modules = [
        ".".join(("sparselens", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for path in [*files("dashboards"), *files("storage")]
    ]
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_check_itself_sees_a_wrong_import(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text("def f():\n    from sparselens import workbench\n    import sparselens.dashboards.app\n")
    assert imports(path) == {"sparselens", "sparselens.workbench", "sparselens.dashboards.app"}
