"""The docs name everything there is, and show nothing that there is not."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import warnings
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
import torch
from typer.main import get_command

import sparselens
from sparselens.analyses.analysis import analyses
from sparselens.dashboards.selection import CHOICES, READERS
from sparselens.dashboards.shell import KEYS
from sparselens.kernels.call import Allowed, AttentionCall
from sparselens.kernels.policy import Memory, policies
from sparselens.kernels.policy import parse as parse_policy
from sparselens.kernels.policy_type import SHARED
from sparselens.storage import schema
from sparselens.workbench import cli, verify
from sparselens.workbench.needle_family import FAMILIES
from sparselens.workbench.probe import probes
from sparselens.workbench.prompt_set import is_call, parse, prompt_sets
from sparselens.workbench.session import Session

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
THINGS = {
    "command": sorted(cli.commands()),
    "policy": sorted(policies()),
    "probe": sorted(probes()),
    "prompt set": sorted(prompt_sets()),
    "needle family": sorted(FAMILIES),
    "analysis": sorted(analyses()),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in THINGS.items() for name in names])
def test_everything_there_is_is_named_in_the_docs(kind: str, name: str) -> None:
    pattern = rf"sparselens {re.escape(name)}\b" if kind == "command" else rf"`{re.escape(name)}\b"
    assert re.search(pattern, TEXT), f"the {kind} {name} is in none of {[page.name for page in PAGES]}"


def blocks(language: str) -> list[tuple[str, str]]:
    """`(page, code)` of every fenced block of a language."""
    return [
        (page.name, block)
        for page in PAGES
        for block in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    ]


def commands_shown() -> list[tuple[str, str]]:
    joined = [(page, block.replace("\\\n", " ")) for page, block in blocks("bash")]
    return [
        (page, line.strip())
        for page, block in joined
        for line in block.splitlines()
        if re.match(r"\s*(\.venv/bin/)?sparselens ", line)
    ]


def test_shown_commands_and_their_options_exist() -> None:
    known = get_command(cli.application()).commands
    for page, line in commands_shown():
        name = line.split("sparselens ", 1)[1].split()[0]
        if name.startswith("-"):
            continue
        assert name in known, f"{page}: {line}"
        options = {
            option
            for parameter in known[name].params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        for option in re.findall(r"(?<=\s)--[a-z-]+", line):
            assert option in options | {"--help"}, f"{page}: {line} has no {option}"


def test_shown_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page, block in blocks("bash"):
        for target in re.findall(r"^make ([a-z-]+)", block, re.MULTILINE):
            assert target in targets, f"{page}: make {target}"


def test_shown_prompt_sets_and_python_can_be_read() -> None:
    for page, block in blocks("python"):
        compile(block, page, "exec")
    for name in prompt_sets():
        for call in re.findall(rf"[`'\"]({name}\([^`'\"]*\))[`'\"]", TEXT):
            assert is_call(call)
            parse(call)


def test_every_link_to_a_file_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_every_link_into_a_page_finds_its_heading() -> None:
    for source in PAGES:
        for target, anchor in re.findall(r"\]\(([^):]*\.md)?#([^)\s]+)\)", source.read_text()):
            found = (source.parent / target) if target else source
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{source.name} links to {target}#{anchor}"


def test_the_pictures_are_there_and_small() -> None:
    shown = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert {Path(path).name for _, path in shown} == {"compare.png", "head.png"}
    for text, path in shown:
        data = (ROOT / path).read_bytes()
        width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert width >= 1200
        assert height >= 700
        assert len(data) < 400_000
        assert len(text) > 20


def test_shown_shell_blocks_can_be_read() -> None:
    for name, block in blocks("bash"):
        checked = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, f"{name}: {checked.stderr}"


def test_shown_policies_and_prompts_of_commands_exist() -> None:
    for _, line in commands_shown():
        for call in re.findall(r"--(?:policy|base) [\"']([^\"']+)[\"']", line):
            if ".py:" not in call:
                assert str(parse_policy(call))
        for call in re.findall(r"--prompts [\"']([^\"']+)[\"']", line):
            assert is_call(call)
            parse(call)


@pytest.mark.parametrize(("name", "block"), blocks("python"))
def test_shown_python_uses_names_that_exist(name: str, block: str) -> None:
    known = {
        "sl": set(sparselens.__all__),
        "session": {*dir(Session), *(field.name for field in fields(Session))},
    }
    for node in ast.walk(ast.parse(block, name)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
            assert node.attr in known[node.value.id], f"{name}: {node.value.id}.{node.attr}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sparselens"):
            for alias in node.names:
                assert hasattr(import_module(str(node.module)), alias.name), f"{name}: {alias.name}"


@pytest.mark.model
def test_the_python_of_the_readme_and_of_the_session_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = [(name, block) for name, block in blocks("python") if name in ("README.md", "session.md")]
    assert len(shown) >= 4
    for number, (name, block) in enumerate(shown):
        (file := tmp_path / f"block{number}.py").write_text(block)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # listening to the pattern warns, on purpose
            exec(compile(block, str(file), "exec"), {"__name__": f"{name} {number}"})  # noqa: S102


def small_call(layer: int = 0) -> AttentionCall:
    index = torch.arange(40)
    query, key, value = (torch.randn(1, heads, 40, 8) for heads in (4, 2, 2))
    positions = index[None]
    return AttentionCall(query, key, value, positions, positions, Allowed(index, index), 1.0, layer=layer)


def test_the_policies_that_the_page_teaches_work(tmp_path: Path) -> None:
    function, kind = (block for name, block in blocks("python") if name == "policies.md")
    file = tmp_path / "strided.py"
    file.write_text(function)
    made = parse_policy(f"{file}:strided(window=4,stride=5,sink=1)")
    kept = made.select(small_call(), Memory()).kept(small_call(), 0, 40)[0, 0]
    query, key = torch.arange(40)[:, None], torch.arange(40)[None]
    assert torch.equal(kept, (key <= query) & ((key < 1) | (query - key < 4) | (key % 5 == 0)))
    (other := tmp_path / "narrowing.py").write_text(kind)
    narrow = parse_policy(f"{other}:Narrowing(window=16,every=1)")
    assert str(narrow) == f"{other}:Narrowing(window=16,every=1)"
    wide, slim = (
        narrow.select(small_call(layer), Memory()).counts(small_call(layer)).sum() for layer in (0, 3)
    )
    assert wide > slim


@pytest.mark.parametrize("name", sorted(policies()))
def test_every_field_of_a_policy_is_on_its_page(name: str) -> None:
    text = page("policies.md")
    own = re.search(rf"### `{name}`\n(.*?)(?=\n##)", text, re.DOTALL) or re.search(rf"\| `{name}` \|.*", text)
    assert own is not None
    for field in fields(policies()[name]):
        if field.name not in SHARED:
            assert re.search(rf"`{field.name}\b", own[0]), f"{name}: {field.name}"


def test_every_url_parameter_and_key_is_on_the_page_of_pages() -> None:
    text = page("pages.md")
    for name in READERS:
        assert re.search(rf"^\|.*`{name}`.* \|", text, re.MULTILINE), name
        for value in CHOICES.get(name, ()):
            assert f"`{value}`" in text, f"{name}={value}"
    for keys, _ in KEYS:
        for key in keys.split():
            assert key in text, key


def test_every_table_is_named() -> None:
    for name in schema.PUBLIC:
        assert f"`{name}`" in TEXT or f"## {name}\n" in TEXT, name


def test_tolerances_are_those_of_the_code() -> None:
    text = page("verify.md")
    for said in (
        f"at least {verify.ROWS} rows",
        f"Of every {verify.EVERY} prompts one",
        f"{verify.NLL} nats",
    ):
        assert said in text


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem
)
def test_benchmarks_say_what_their_results_say(path: Path) -> None:
    text = page("benchmarks.md")
    assert f"benchmarks/{path.stem}.py" in text
    if path.stem == "kernels":
        for row in json.loads(path.read_text())["rows"]:
            line = next(line for line in text.splitlines() if line.startswith(f"| {row['row']} |"))
            assert f" {row['speed_up']:.2f} × | {row['ratio']:.2f} |" in line
