"""The docs name everything there is, and show nothing that there is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from sparselens.kernels.policy import policies
from sparselens.workbench import cli
from sparselens.workbench.needle_family import FAMILIES
from sparselens.workbench.probe import probes
from sparselens.workbench.prompt_set import is_call, parse, prompt_sets

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
THINGS = {
    "command": sorted(cli.commands()),
    "policy": sorted(policies()),
    "probe": sorted(probes()),
    "prompt set": sorted(prompt_sets()),
    "needle family": sorted(FAMILIES),
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
