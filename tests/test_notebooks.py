"""The notebooks run from top to bottom; what is shipped of them is executed, small, and belongs to their code."""

from __future__ import annotations

import ast
import json
import re
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

import sparselens

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 1_000_000
QUICK = "first_look"
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """What `make notebooks` runs."""
    spec = spec_from_file_location("execute", FOLDER / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(path: Path, kind: str) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def outputs(path: Path) -> list[Any]:
    return [output for cell in cells(path, "code") for output in cell.outputs]


def troubles(notebook: Any) -> list[Any]:
    """Outputs that tell of an error or a warning."""
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [each for each in found if each.output_type == "error" or each.get("name") == "stderr"]


def said(notebook: Any) -> str:
    return "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )


def test_these_are_the_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["circuits", "features", QUICK, "retrieval_heads", "sinks"]


@pytest.mark.model
def test_the_first_look_runs(script: ModuleType) -> None:
    notebook = script.executed(nbformat.read(FOLDER / f"{QUICK}.ipynb", as_version=4))
    assert troubles(notebook) == []
    assert said(notebook).count("verified 3/3") >= 5


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.stem != QUICK], ids=lambda path: path.stem
)
def test_every_cell_runs_and_tells_the_shipped_story(path: Path, script: ModuleType) -> None:
    """Words are compared, not numbers: these move a little between machines."""
    shipped = nbformat.read(path, as_version=4)
    notebook = script.executed(nbformat.read(path, as_version=4))
    assert troubles(notebook) == []
    verdicts = [re.findall(r"holds|cannot be told", said(each)) for each in (notebook, shipped)]
    assert verdicts[0] == verdicts[1]


@EACH
def test_it_is_shipped_executed_and_small(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = cells(path, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert outputs(path)
    assert troubles(notebook) == []
    for output in outputs(path):
        assert str(Path.home()) not in json.dumps(output)
        assert str(ROOT) not in json.dumps(output)


@EACH
def test_the_stored_outputs_are_of_the_stored_code(path: Path, script: ModuleType) -> None:
    """`make notebooks` writes the hash of the code that it executed."""
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata["sparselens"]["code"] == script.code_hash(notebook)
    changed = next(cell for cell in notebook.cells if cell.cell_type == "code")
    changed.source += "\nprint(1)"
    assert notebook.metadata["sparselens"]["code"] != script.code_hash(notebook)


@EACH
def test_every_figure_has_a_picture(path: Path) -> None:
    """Where Plotly does not run, GitHub's view among them, the picture is what is seen."""
    figures = [
        output.data for output in outputs(path) if "application/vnd.plotly.v1+json" in output.get("data", {})
    ]
    assert figures
    for data in figures:
        assert data["image/png"].startswith("iVBOR")


@EACH
def test_it_reads_as_a_tutorial(path: Path) -> None:
    """Sentences before every cell of code, and pages that there are."""
    kinds = [cell.cell_type for cell in nbformat.read(path, as_version=4).cells]
    assert kinds[0] == kinds[-1] == "markdown"
    assert ("code", "code") not in pairwise(kinds)
    for cell in cells(path, "markdown"):
        assert len(cell.source.split()) >= 2  # "In words:" is a sentence
        for page in re.findall(r"`(docs/[a-z_]+\.md)`", cell.source):
            assert (ROOT / page).exists(), page
        for other in re.findall(r"`([a-z_]+\.ipynb)`", cell.source):
            assert (FOLDER / other).exists(), other


@EACH
def test_results_are_said_by_code(path: Path) -> None:
    """No number with an interval stands in a sentence that nothing computes."""
    for cell in cells(path, "markdown"):
        assert not re.findall(r"\d \[[-−]?\d", cell.source)


@EACH
def test_every_name_it_takes_from_the_package_exists(path: Path) -> None:
    for cell in cells(path, "code"):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sl":
                assert node.attr in sparselens.__all__
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sparselens"):
                for alias in node.names:
                    assert hasattr(import_module(str(node.module)), alias.name), alias.name
