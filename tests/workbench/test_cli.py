"""The command line: quick help, one-line errors, lists with names, and a capture from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_model import save_small_model
from typer.main import get_command

from sparselens.workbench import cli
from sparselens.workbench.commands.capture import numbers

COMMANDS = sorted(cli.commands())


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command line."""
    capsys.readouterr()
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_small_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def trace(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace with a dense base and a window, two prompts each."""
    path = tmp_path_factory.mktemp("captured") / "trace"
    command = ["capture", model, "--prompts", "repeats(length=40,n=2)", "--trace", str(path)]
    assert cli.main([*command, "--policy", "sliding_window(window=8)", "--run", "r"]) == 0
    return path


def test_help_answers_in_well_under_a_second_without_torch() -> None:
    code = (
        "import sys, time; from sparselens.workbench.cli import main; main(['--help'])\n"
        "print(time.process_time());"
        "main(['capture', '--help']);"
        "print([m for m in ('torch', 'transformers', 'duckdb', 'dash', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds = [float(line) for line in done.stdout.splitlines() if line.replace(".", "").isdigit()]
    # processor seconds of the whole process: the clock of a busy machine says nothing about us
    assert seconds[0] < 0.7
    assert done.stdout.rstrip().endswith("[]")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_explained(name: str) -> None:
    command = get_command(cli.application()).commands[name]
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name} has no help"


@pytest.mark.parametrize("name", ["models", "policies", "probes", "prompts"])
def test_lists_give_objects_with_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, name, "--json")
    listed = json.loads(out)
    assert code == 0
    assert listed
    assert all(entry["name"] for entry in listed)
    code, plain, _ = run(capsys, name)
    assert code == 0
    assert all(any(line.startswith(entry["name"]) for line in plain.splitlines()) for entry in listed)


def test_the_card_of_a_policy_says_what_to_know(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "policies", "vertical_slash")
    assert code == 0
    for said in (
        "tile=64",
        "looks ahead  yes",
        "short input",
        "arXiv:2407.02490",
        "read in the authors' code",
    ):
        assert said in out
    code, out, _ = run(capsys, "policies", "vertical_slash", "--json")
    card = json.loads(out)[0]
    assert (card["phase"], card["off_label"], card["lookahead"]) == ("prefill", False, True)
    code, _, said = run(capsys, "policies", "vertical")
    assert code == 2
    assert "there are a_shape" in said


def test_a_command_file_is_all_that_lists_a_command() -> None:
    folder = Path(cli.folder.__path__[0])
    assert {path.stem for path in folder.glob("[a-z]*.py")} == set(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "There are analyse, analyses, calibrate, capture"),
        (["capture"], "Missing argument"),
        (["sql", "SELECT 1", "--trace", "/nowhere"], "is not a trace"),
        (["sql", "SELECT 1", "--trace", "x", "--format", "xml"], "xml"),
        (["ls", "--trace", "/nowhere"], "is not a trace"),
        (["view", "--trace", "/nowhere"], "is not a trace"),
        (["show", "x", "--trace", "/nowhere"], "is not a trace"),
        (["capture", "MODEL", "--trace", "T", "--prompts", "x", "--policy", "windw(window=4)"], "there are"),
        (["capture", "MODEL", "--trace", "T", "--prompts", "x", "--policy", "a_shape(size=4)"], "size"),
        (["capture", "MODEL", "--trace", "T", "--prompts", "needls(n=1)"], "unknown prompt set"),
        (
            ["capture", "MODEL", "--trace", "T", "--prompts", "repeats(n=1)"],
            "256 tokens, the model's context 128",
        ),
        (["capture", "MODEL", "--trace", "T", "--prompts", "absent.jsonl"], "absent.jsonl: No such file"),
        (["capture", "MODEL", "--trace", "T", "--prompts", "repeats(n=1)", "--kernel", "x"], "there are"),
        (
            ["capture", "MODEL", "--trace", "T", "--prompts", "repeats(n=1)", "--no-base"],
            "nothing to capture",
        ),
        (["capture", "MODEL", "--trace", "T", "--prompts", "repeats(length=9,n=1)", "--heads", "L9H1"], "L9"),
        (
            ["capture", "MODEL", "--trace", "T", "--prompts", "repeats(length=9,n=1)", "--layers", "a"],
            "0,5,10-14",
        ),
        (["capture", "MODEL", "--trace", "T", "--prompts", "repeats(n=1)", "--dtype", "int8"], "float32"),
        (
            ["capture", "smollm-135m", "--trace", "T", "--prompts", "repeats(n=1)"],
            "did you mean 'smollm2-135m'",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "trace"
    given = [{"MODEL": model, "T": str(target)}.get(part, part) for part in arguments]
    code, out, err = run(capsys, *given)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not target.exists()


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparselens.workbench.listing.show", stopped)
    assert run(capsys, "models")[0] == 130


def test_a_fault_of_ours_keeps_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("sparselens.workbench.listing.show", broken)
    with pytest.raises(RuntimeError, match="ours"):
        cli.main(["models"])


def test_layers_are_written_as_ranges() -> None:
    assert numbers("0,5,10-12") == [0, 5, 10, 11, 12]
    with pytest.raises(ValueError, match="'x' is no layer"):
        numbers("1,x")


def test_a_capture_is_listed_shown_and_asked(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "ls", "--trace", str(trace), "--json")
    assert code == 0
    runs = json.loads(out)
    assert [entry["policy"] for entry in runs] == ["dense", "sliding_window(window=8)"]
    assert all(entry["status"] == "complete" and entry["n_prompts"] == 2 for entry in runs)
    code, out, _ = run(capsys, "show", runs[1]["run_id"], "--trace", str(trace), "--json")
    shown = json.loads(out)
    assert shown["rows"]["head_stats"] > 0
    assert shown["command"].startswith("sparselens ")
    query = "SELECT layer, head, max(density) AS density FROM head_stats GROUP BY ALL ORDER BY ALL"
    code, out, _ = run(capsys, "sql", query, "--trace", str(trace), "--format", "json")
    assert code == 0
    assert [(row["layer"], row["head"]) for row in json.loads(out)] == [
        (i, j) for i in range(2) for j in range(4)
    ]


def test_sql_writes_every_format(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = "SELECT name, n_tokens FROM prompts ORDER BY name"
    _, table, _ = run(capsys, "sql", query, "--trace", str(trace))
    assert table.split()[:2] == ["name", "n_tokens"]
    _, csv, _ = run(capsys, "sql", query, "--trace", str(trace), "--format", "csv")
    assert csv.splitlines()[0] == "name,n_tokens"
    assert len(csv.splitlines()) == 3
    path = tmp_path / "out.parquet"
    code, out, _ = run(
        capsys, "sql", query, "--trace", str(trace), "--format", "parquet", "--output", str(path)
    )
    assert (code, out) == (0, "")
    from pyarrow import parquet

    assert parquet.read_table(path).column("n_tokens").to_pylist() == [40, 40]
    _, _, err = run(capsys, "sql", query, "--trace", str(trace), "--max-rows", "1")
    assert "only the first 1 rows" in err


@pytest.mark.parametrize("query", ["DROP TABLE runs", "COPY runs TO 'x'", "SELECT 1; SELECT 2", "SELEC 1"])
def test_sql_refuses_what_is_no_question(query: str, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "sql", query, "--trace", str(trace))
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_dry_run_says_sizes_and_writes_nothing(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "trace"
    code, out, _ = run(
        capsys,
        "capture",
        model,
        "--prompts",
        "repeats(length=40,n=2)",
        "--trace",
        str(target),
        "--dry-run",
        "--json",
    )
    assert code == 0
    rows = json.loads(out)
    assert rows[-1]["name"] == "total"
    assert rows[-1]["megabytes"] == pytest.approx(sum(row["megabytes"] for row in rows[:-1]))
    assert not target.exists()


def test_rerun_comes_out_equal(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "ls", "--trace", str(trace), "--json")
    for entry in json.loads(out):
        code, out, _ = run(capsys, "rerun", entry["run_id"], "--trace", str(trace), "--json")
        assert code == 0
        rows = json.loads(out)
        assert {"predictions", "head_stats"} <= {row["table"] for row in rows}
        assert all(row["rows"] > 0 and row["missing"] == 0 and row["largest"] < 1e-5 for row in rows)


def test_rerun_refuses_other_weights(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    other = save_small_model(tmp_path / "other")
    changed = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        next(changed.parameters()).add_(1.0)
    changed.save_pretrained(other)
    _, out, _ = run(capsys, "ls", "--trace", str(trace), "--json")
    code, _, err = run(
        capsys, "rerun", json.loads(out)[0]["run_id"], "--trace", str(trace), "--model", str(other)
    )
    assert code == 2
    assert "weight_hash" in err


def test_a_packed_trace_and_a_merged_one_answer_alike(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = "SELECT run_id, count(*) AS n FROM predictions GROUP BY ALL ORDER BY ALL"
    assert run(capsys, "pack", str(tmp_path / "one.duckdb"), "--trace", str(trace))[0] == 0
    assert run(capsys, "merge", str(trace), "--trace", str(tmp_path / "merged"))[0] == 0
    answers = [
        run(capsys, "sql", query, "--trace", str(place), "--format", "json")[1]
        for place in (trace, tmp_path / "one.duckdb", tmp_path / "merged")
    ]
    assert answers[0] == answers[1] == answers[2]
    assert len(json.loads(answers[0])) == 2
