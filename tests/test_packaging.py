"""What is packaged: every folder, every data file, and an import that stays light."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from setuptools import build_meta

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS = ("analyses", "dashboards", "kernels", "storage", "workbench")
DATA = {".sql", ".j2", ".css", ".js", ".svg", ".json", ".woff2", ".safetensors"}


def sources() -> list[Path]:
    """Every file of the five folders that a package should hold."""
    return sorted(
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and (path.suffix == ".py" or path.suffix in DATA)
        and "__pycache__" not in path.parts
    )


def test_the_packages_are_the_folders() -> None:
    found = {path.parent for path in sources() if path.name == "__init__.py"}
    named = {".".join(("sparselens", *path.relative_to(ROOT).parts)) for path in found}
    assert set(SETUPTOOLS["packages"]) == named | {"sparselens"}


def test_every_folder_with_python_is_a_package() -> None:
    for path in sources():
        if path.suffix == ".py":
            assert (path.parent / "__init__.py").exists(), f"{path.parent} has no __init__.py"


def test_the_root_holds_one_python_file() -> None:
    assert [path.name for path in ROOT.glob("*.py")] == ["__init__.py"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel built from a copy of what is packaged."""
    copy = tmp_path_factory.mktemp("source")
    for path in [
        *sources(),
        *(ROOT / name for name in ("__init__.py", "py.typed", "pyproject.toml", "LICENSE")),
    ]:
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (copy / "README.md").write_text("")
    out = tmp_path_factory.mktemp("wheel")
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(out)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_file_under_one_name(wheel: set[str]) -> None:
    expected = {f"sparselens/{path.relative_to(ROOT)}" for path in sources()}
    assert expected - wheel == set()
    assert {"sparselens/__init__.py", "sparselens/py.typed"} <= wheel
    assert {name.split("/")[0] for name in wheel if "dist-info" not in name} == {"sparselens"}


def test_the_wheel_has_the_command(wheel: set[str]) -> None:
    assert any(name.endswith("entry_points.txt") for name in wheel)
    assert PROJECT["project"]["scripts"] == {"sparselens": "sparselens.workbench.cli:main"}
    assert hasattr(build_meta, "build_wheel")


@pytest.mark.parametrize(
    "statement", ["import sparselens", "import sparselens.workbench.cli", "dir(sparselens)"]
)
def test_importing_is_light(statement: str) -> None:
    heavy = {"torch", "transformers", "dash"}
    code = f"import sys, sparselens; {statement}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_at_home() -> None:
    code = "import sparselens as sl; [getattr(sl, name) for name in sl.__all__]"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_an_unknown_public_name_lists_what_there_is() -> None:
    import sparselens

    with pytest.raises(AttributeError, match=r"it has .*load"):
        _ = sparselens.lode


def test_every_link_for_the_type_checkers_leads_to_its_folder() -> None:
    links = ROOT / "typings" / "sparselens"
    for folder in FOLDERS:
        assert (links / folder).resolve() == ROOT / folder


def test_what_is_pinned_is_what_is_asked_for() -> None:
    from packaging.requirements import Requirement

    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and line[0] != "#"
    )
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    project = PROJECT["project"]
    asked = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    for text in asked:
        requirement = Requirement(text)
        name = requirement.name.lower().replace("_", "-")
        assert name in pinned, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(pinned[name], prereleases=True), (
            f"{text}, pinned {pinned[name]}"
        )
