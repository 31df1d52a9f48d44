"""The notebook runs from top to bottom, and what is shipped of it is small, executed and tells a story."""

from __future__ import annotations

import ast
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest

import sparselens

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 150_000
SECONDS = 280


def cells(path: Path, kind: str) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def test_there_is_a_notebook() -> None:
    assert [path.name for path in NOTEBOOKS] == ["first_look.ipynb"]


@pytest.mark.model
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path: Path, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    said = "".join(output.get("text", "") for output in outputs)
    assert said.count("verified 3/3") >= 5
    assert any("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_shipped_executed_and_small(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    nbformat.validate(nbformat.read(path, as_version=4))
    code = cells(path, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert str(Path.home()) not in json.dumps(output)
            assert str(FOLDER.parent) not in json.dumps(output)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_reads_as_a_tutorial(path: Path) -> None:
    """Sentences before every cell of code, and only names that the package has."""
    kinds = [cell.cell_type for cell in nbformat.read(path, as_version=4).cells]
    assert kinds[0] == kinds[-1] == "markdown"
    assert ("code", "code") not in pairwise(kinds)
    assert all(len(cell.source.split()) >= 8 for cell in cells(path, "markdown"))
    for cell in cells(path, "code"):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sl":
                assert node.attr in sparselens.__all__
