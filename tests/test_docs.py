"""The docs name everything there is, and show nothing that there is not."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import warnings
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

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

from .kernels import test_laws
from .kernels.policy_case import Case

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
OBEYED = {
    "test_a_padded_sequence_is_treated_as_if_alone": "padded",
    "test_a_budget_for_everything_is_dense": "generous",
    "test_a_larger_budget_keeps_a_superset": "nested",
    "test_decoding_keeps_what_the_last_row_of_the_prefill_keeps": "decode",
    "test_keys_after_a_query_do_not_matter": "future",
    "test_grouped_queries_choose_as_with_repeated_keys": "repeated",
}
"""The tests of the laws that a case may name as exceptions."""
COMMANDS = get_command(cli.application())


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


def command_of(line: str) -> Any:
    """The command that a shown line calls, of a group the one named after it; None for bare options."""
    words = line.split("sparselens ", 1)[1].split()
    if words[0].startswith("-"):
        return None
    command: Any = COMMANDS
    for word in words:
        if not hasattr(command, "commands"):
            break
        assert word in command.commands, f"{line}: there is no {word}"
        command = command.commands[word]
    return command


def test_shown_commands_and_their_options_exist() -> None:
    for page, line in commands_shown():
        command = command_of(line)
        if command is None:
            continue
        options = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
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
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
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
        for _, call in re.findall(r"--(?:policy|base) ([\"'])(.+?)\1", line):
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


def taught() -> list[str]:
    """The Python of the page of policies: a function, a class, and the class's case."""
    return [block for name, block in blocks("python") if name == "policies.md"]


def test_the_policy_function_that_the_page_teaches_works(tmp_path: Path) -> None:
    (file := tmp_path / "strided.py").write_text(taught()[0])
    made = parse_policy(f"{file}:strided(window=4,stride=5,sink=1)")
    kept = made.select(small_call(), Memory()).kept(small_call(), 0, 40)[0, 0]
    query, key = torch.arange(40)[:, None], torch.arange(40)[None]
    assert torch.equal(kept, (key <= query) & ((key < 1) | (query - key < 4) | (key % 5 == 0)))


def test_the_policy_class_that_the_page_teaches_obeys_the_laws_of_its_case(tmp_path: Path) -> None:
    _, policy, case = taught()
    (file := tmp_path / "mean_blocks.py").write_text(policy)
    made = eval(compile(case, "case", "eval"), {"Case": Case})  # noqa: S307
    assert parse_policy(f"{file}:MeanBlocks").name.endswith(":MeanBlocks")
    here = replace(
        made,
        **{
            name: getattr(made, name).replace("mean_blocks(", f"{file}:MeanBlocks(")
            for name in ("text", "generous", "wider")
        },
    )
    laws = [
        law
        for name, law in vars(test_laws).items()
        if name.startswith("test_") and "case" in law.__annotations__
    ]
    assert len(laws) >= 14
    kept = 0
    for law in laws:
        if here.obeys(OBEYED.get(law.__name__, "")):
            law(here)
            kept += 1
    assert kept >= 10


POLICY_PAGES = sorted((ROOT / "docs").glob("policies*.md"))


def section(name: str) -> str:
    """What the one heading of a policy stands over."""
    found = [
        text
        for page in POLICY_PAGES
        for text in re.findall(rf"^### `{name}`\n(.*?)(?=^##|\Z)", page.read_text(), re.DOTALL | re.MULTILINE)
    ]
    assert len(found) == 1, f"{name} has {len(found)} headings in {[page.name for page in POLICY_PAGES]}"
    return found[0]


@pytest.mark.parametrize("name", sorted(policies()))
def test_every_policy_has_a_heading_with_its_fields_and_a_picture(name: str) -> None:
    text = section(name)
    for field in fields(policies()[name]):
        if field.name not in SHARED:
            assert re.search(rf"`{field.name}\b", text), f"{name}: {field.name}"
    assert f"](images/masks/{name}.png)" in text, f"the section of {name} shows no picture"
    data = (ROOT / "docs" / "images" / "masks" / f"{name}.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(data) <= 15_000


def test_the_page_of_masks_shows_the_policies_there_are() -> None:
    records = json.loads((ROOT / "docs" / "images" / "masks" / "masks.json").read_text())
    assert set(records) == set(policies()), "make masks"
    text = page("masks.md")
    for name, record in records.items():
        assert str(parse_policy(record["call"])) == record["call"]
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"`{record['call']}`" in row
        assert f"| {record['density']:.3f} | {record['kept_mass']:.3f} |" in row
        assert (record["density"] < 1) == (name != "dense"), f"{name} keeps everything in its picture"


def rows_of(page_name: str, first: str) -> list[list[str]]:
    """The cells of the table whose first column has that heading."""
    lines = iter(page(page_name).splitlines())
    next(line for line in lines if line.startswith(f"| {first} |"))
    next(lines)
    table = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def said(value: object) -> str:
    """Yes or no; a property is decided by a policy inside."""
    return ("yes" if value else "no") if isinstance(value, bool) else "as the policy within"


def test_the_table_of_policies_says_what_the_registry_says() -> None:
    table = {row[0].strip("`"): row for row in rows_of("policies.md", "policy")}
    assert list(table) == sorted(policies())
    for name, kind in policies().items():
        _, where, phase, _, budget, _, _, ahead, off_label, evidence = table[name]
        target = re.fullmatch(r"\[[a-z]+\]\(([a-z_.]*)#(\w+)\)", where)
        assert target is not None, where
        assert f"### `{name}`" in page(target[1] or "policies.md")
        assert target[2] == slug(f"`{name}`")
        assert phase == next(field.default for field in fields(kind) if field.name == "phase")
        assert all(f"`{field}`" in budget for field in kind.budget), name
        assert ahead == said(kind.lookahead), name
        assert off_label == said(kind.off_label), name
        assert evidence == kind.evidence, name


def test_the_table_of_exceptions_is_that_of_the_cases() -> None:
    expected = {
        (parse_policy(case.text).name, law, reason)
        for case in test_laws.CASES
        for law, reason in case.exceptions.items()
    }
    found = {
        (name.strip("`"), law.strip(" `"), reason)
        for name, laws, reason in rows_of("policies.md", "breaks")
        for law in laws.split(",")
    }
    assert found == expected


def test_heads_that_share_are_said_to_share() -> None:
    """A policy of which any case tells the heads of a group apart does not say that they share."""
    table = {row[0].strip("`"): row[6] for row in rows_of("policies.md", "policy")}
    for case in test_laws.CASES:
        if not case.by_group:
            assert table[parse_policy(case.text).name].split()[0] not in ("all", "group"), case.text


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
