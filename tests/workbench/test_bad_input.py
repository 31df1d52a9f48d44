"""Bad input to `capture`: one line, exit code 2, and a trace that was there is as it was, byte for byte."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import pytest
from small_model import save_small_model

from sparselens.workbench import cli


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_small_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def trace(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace with one run."""
    path = tmp_path_factory.mktemp("captured") / "trace"
    assert cli.main(["capture", model, "--prompts", "repeats(length=20,n=1)", "--trace", str(path)]) == 0
    return path


def content(folder: Path) -> dict[str, str]:
    """Every file and folder below `folder`, with a hash of what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr with which a command line is refused."""
    capsys.readouterr()
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        (['{"id": "a", "text": "of the"}', '{"id": "b", "text": ""}'], ["line 2", "empty prompt"]),
        (['{"id": "a", "text": "of the"}', "", "{text: 3}"], ["line 3"]),
        (['{"id": "a", "text": "of the"}', "\x00\x01"], ["line 2"]),
        (['{"id": "a", "text": "of the"', '{"id": "b", "text": "of"}'], ["line 1"]),
        (['["of the"]'], ["line 1"]),
        ([json.dumps({"id": "a", "text": "word " * 300})], ["line 1", "context 128"]),
        (
            ['{"id": "a", "text": "of the object", "spans": {"x": [0, 6], "y": [3, 13]}}'],
            ["line 1", "overlapping spans: 'x' and 'y'"],
        ),
        (
            ['{"id": "a", "text": "abc", "spans": {"x": [0, 9]}}'],
            ["line 1", "outside the prompt's 3 characters"],
        ),
        (['{"id": "a", "token_ids": [1, 2], "spans": {"x": [1, 5]}}'], ["outside the prompt's 2 tokens"]),
        (['{"id": "a", "token_ids": [1, 99999]}'], ["line 1", "is no token id"]),
        (['{"id": "a", "text": "of", "anser": "x"}'], ["line 1", "unknown field 'anser'", "answer"]),
        ([], ["no prompts"]),
    ],
)
def test_an_unfit_line_of_a_file_is_named(
    lines: list[str],
    messages: list[str],
    model: str,
    trace: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    before = content(trace)
    err = refused(capsys, "capture", model, "--prompts", str(file), "--trace", str(trace))
    for message in messages:
        assert message in err
    assert content(trace) == before


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--policy", "windw(window=4)", "sliding_window"),
        ("--policy", "a_shape(sinks=4)", "sink"),
        ("--policy", "a_shape(sink=-1)", "sink"),
        ("--policy", "a_shape(sink=4", "a_shape"),
        ("--policy", "@absent.json", "absent.json"),
        ("--policy", "absent.py:POLICY", "absent.py"),
        ("--base", "densest", "dense"),
        ("--phase", "prefil", "prefill"),
        ("--keep", "hook_nothing", "hook_nothing"),
        ("--keep", "blocks.0.attn.hook_pattern", "tokens × tokens"),
        ("--heads", "L0H9", "2 layers of 4 heads"),
        ("--layers", "7", "2 layers of 4 heads"),
        ("--prompts", "repeats(length=20,n=1)", "has the same tokens"),
    ],
)
def test_an_unfit_option_leaves_the_trace_as_it_was(
    option: str, value: str, message: str, model: str, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(trace)
    command = ["capture", model, "--prompts", "repeats(length=20,n=1)", "--trace", str(trace)]
    if option in {"--keep", "--phase", "--heads", "--layers"}:
        command += ["--policy", "a_shape(sink=2,window=4)"]
    assert message in refused(capsys, *command, option, value)
    assert content(trace) == before


def test_an_empty_standard_input_is_refused(
    model: str, trace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    before = content(trace)
    assert "no prompts" in refused(capsys, "capture", model, "--prompts", "-", "--trace", str(trace))
    assert content(trace) == before


def test_a_trace_of_a_newer_schema_is_refused_by_every_command(
    model: str, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    newer = tmp_path / "newer"
    shutil.copytree(trace, newer)
    card = json.loads((newer / "trace.json").read_text(encoding="utf-8"))
    (version,) = [name for name, value in card.items() if "version" in name and isinstance(value, int)]
    (newer / "trace.json").write_text(json.dumps(card | {version: card[version] + 1}), encoding="utf-8")
    before = content(newer)
    for command in (
        ["capture", model, "--prompts", "repeats(length=20,n=1)", "--trace", str(newer)],
        ["ls", "--trace", str(newer)],
        ["sql", "SELECT 1", "--trace", str(newer)],
    ):
        err = refused(capsys, *command)
        assert "newer" in err
        assert str(card[version] + 1) in err
    assert content(newer) == before


@pytest.mark.parametrize("place", ["under a file", "a file", "read-only folder"])
def test_a_folder_that_cannot_be_written_is_said(
    place: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine", encoding="utf-8")
    target = {
        "under a file": file / "trace",
        "a file": file,
        "read-only folder": tmp_path / "locked" / "trace",
    }[place]
    if place == "read-only folder":
        if os.geteuid() == 0:
            pytest.skip("root writes everywhere")
        target.parent.mkdir(mode=0o500)
    err = refused(capsys, "capture", model, "--prompts", "repeats(length=20,n=1)", "--trace", str(target))
    assert str(target) in err or str(file) in err
    assert file.read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {"notes.txt", *(["locked"] if place == "read-only folder" else [])}
    )


def test_a_folder_with_other_things_in_it_is_not_taken_for_a_trace(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "thesis.tex").write_text("mine", encoding="utf-8")
    before = content(tmp_path)
    refused(capsys, "capture", model, "--prompts", "repeats(length=20,n=1)", "--trace", str(tmp_path))
    assert content(tmp_path) == before
