"""The one job of a server: what it says, how it ends, that it ends with whoever started it; and what is not started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from sparselens.analyses.analysis import parse
from sparselens.analyses.cause.command import Wish, cost, foreign, policy_names, sets_in
from sparselens.dashboards.compare.repair_panel import job_figure, started
from sparselens.dashboards.compare.repair_wish import refusal
from sparselens.dashboards.job import Job, State, seen
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection
from sparselens.kernels.policy import policies

GOOD: dict[str, Any] = {
    "model": "smollm2-135m",
    "policy": "per_head(default=a_shape(sink=4,window=64),full=[L18H6])",
    "base": "dense",
    "prompts": "needles(length=[384],families=[passkey,pet],n=4)",
    "heads": ("L18H6", "L20H1"),
}


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for a condition; a test that waits in vain fails."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


def ended(job: Job) -> State:
    until(lambda: not job.state().running)
    return job.state()


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_job_says_its_lines_and_that_it_is_done() -> None:
    job = Job()
    assert job.state() == State()
    job.start("a count", script("import sys; print('one'); print('two'); print(sys.stderr.isatty())"))
    state = ended(job)
    assert (state.name, state.code, state.lines) == ("a count", 0, ("one", "two", "True"))
    assert "is done" in str(job_figure(state))


def test_a_failure_shows_its_last_line() -> None:
    job = Job()
    job.start("a try", script("import sys; print('error: no such thing', file=sys.stderr); sys.exit(2)"))
    state = ended(job)
    assert (state.code, state.last) == (2, "error: no such thing")
    assert "failed after" in str(job_figure(state))
    assert "no such thing" in str(job_figure(state))


def test_one_job_at_a_time_and_it_can_be_stopped() -> None:
    job = Job()
    job.start("a wait", script("import time; print('waits', flush=True); time.sleep(600)"))
    until(lambda: job.state().last == "waits")
    with pytest.raises(ValueError, match="a wait is still running: one at a time"):
        job.start("another", script("print()"))
    job.stop()
    state = ended(job)
    assert state.stopped
    assert "was stopped" in str(job_figure(state))
    job.start("another", script("print('again')"))
    assert ended(job).lines == ("again",)


def test_a_job_ends_when_its_server_is_killed(tmp_path: Path) -> None:
    """The server gets no chance to clean up: the pipe that holds its job closes all the same."""
    inner = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    outer = (
        "import sys, time; from sparselens.dashboards.job import Job; job = Job(); "
        f"job.start('x', [sys.executable, '-c', {inner!r}]); time.sleep(600)"
    )
    server = subprocess.Popen(script(outer))
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    child = int((tmp_path / "pid").read_text())
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    until(lambda: not _runs(child))


def _runs(pid: int) -> bool:
    try:
        return b"\nState:\tZ" not in Path(f"/proc/{pid}/status").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_bar_is_read_as_its_newest_state() -> None:
    drawn = "\r\x1b[2Kfold 0 ━━━╸    1/4 10 tokens/s\r\x1b[2Kfold 0 ━━━━━╸  2/4 12 tokens/s"
    assert seen(drawn) == "fold 0 · 2/4 12 tokens/s"
    assert seen("plain\r") == "plain"
    assert seen("\x1b[1mbold\x1b[0m\x1b") == "bold"


def test_the_command_is_what_the_command_line_reads() -> None:
    wish = Wish(**GOOD)
    assert wish.refused() == ""
    command, call, *options = wish.arguments("trace dir")
    assert command == "analyse"
    assert options == ["--model", "smollm2-135m", "--policy", GOOD["policy"], "--trace", "trace dir"]
    analysis, arguments = parse(call)
    settled = analysis.settle({**arguments, "policy": wish.policy})
    assert (settled.heads, settled.orders, settled.matched) == (GOOD["heads"], ("given",), ("given",))
    assert settled.prompts.replace(" ", "") == GOOD["prompts"]
    assert (settled.draws, settled.check, settled.base) == (3, 0, "dense")
    assert wish.line("trace dir").endswith("--trace 'trace dir'")
    other = Wish(**GOOD, dtype="bfloat16", bos="left out")
    assert other.refused() == ""
    _, call, *options = other.arguments("t")
    assert options[4:] == ["--dtype", "bfloat16", "--no-bos", "--trace", "t"]
    assert Wish(**GOOD, dtype="float32", bos="template").arguments("t") == wish.arguments("t")


def test_every_policy_of_the_package_is_known_without_importing_it() -> None:
    assert policy_names() == set(policies())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"heads": ()}, "no heads are picked"),
        ({"heads": ("L1H1,L2H2)]+evil(",)}, "no heads are picked"),
        ({"model": "somebody/model"}, "none of `sparselens models`"),
        ({"model": "../model"}, "none of `sparselens models`"),
        ({"policy": "evil.py:POLICY"}, "no call that is read here"),
        ({"policy": "@plan.json"}, "no call that is read here"),
        ({"policy": "evil(window=3)"}, "none of the package's: 'evil'"),
        ({"policy": "os.system(a=1)"}, "none of the package's: 'os.system'"),
        ({"policy": "duo_attention(plan=plan)"}, "reads a file (plan=…)"),
        ({"policy": "per_head(default=double_sparsity(plan=x))"}, "reads a file (plan=…)"),
        ({"policy": 'a_shape(sink="evil.py:P")'}, "no number and no word"),
        ({"policy": "a_shape(sink=a.b)"}, "no number and no word"),
        ({"policy": "a_shape(**x)"}, "values without names"),
        ({"policy": "(" * 3_000}, "no call that is read here"),
        ({"policy": "[" * 90_000}, "no call that is read here"),
        ({"policy": "--trace"}, "no call"),
        ({"policy": ""}, "no call that is read here"),
        ({"policy_source": "def choose(): ..."}, "comes from a file"),
        ({"dtype": "int8; rm"}, "none of float32, bfloat16"),
        ({"base": "mine.py:BASE"}, "its base is no call"),
        ({"prompts": ""}, "no answers, or are no built-in set"),
        ({"prompts": "/etc/passwd"}, "its prompts is no call"),
        ({"prompts": "secrets(n=3)"}, "none of the package's: 'secrets'"),
        ({"prompts": "needles(families=['a/b'])"}, "no number and no word"),
    ],
)
def test_what_a_trace_says_is_not_started(changed: dict[str, Any], said: str) -> None:
    assert said in Wish(**{**GOOD, **changed}).refused()


def test_plain_calls_are_the_packages_own() -> None:
    for text in ("dense", "dense()", "quest(budget=0.1)", "a_shape(sink=-1,window=[1,2.5],x=true)"):
        assert foreign(text, policy_names()) == ""


def test_the_sets_of_a_run_are_told_apart() -> None:
    both = "needles(length=[384],families=[passkey,pet],n=4), repeats(length=128,n=2)"
    assert sets_in(both) == ["needles(length=[384],families=[passkey,pet],n=4)", "repeats(length=128,n=2)"]
    assert sets_in("") == []


def test_the_cost_counts_every_pass() -> None:
    assert cost([384] * 4, None) == "4 prompts × 7 passes, 10,752 tokens"
    assert "at most about 108 s" in cost([384] * 4, 100.0)
    assert "at most about 3 min" in cost([384] * 4, 60.0)


def test_heads_that_the_model_lacks_or_that_leave_no_random_ones_are_refused() -> None:
    assert refusal(Wish(**GOOD), (30, 9)) == ""
    assert "L18H6 is no head of this model: it has 3 layers of 4 heads" in refusal(Wish(**GOOD), (3, 4))
    many = tuple(f"L{layer}H0" for layer in range(3))
    assert "3 heads are too many" in refusal(Wish(**{**GOOD, "heads": many}), (5, 1))


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "only a page of this server"),
        ({"Origin": "http://evil.example"}, "only a page of this server"),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"}, "only a page of this server"),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}, "none of `sparselens models`"),
    ],
)
def test_nothing_is_started_for_another_page_or_another_model(
    trace: Path, headers: dict[str, str], said: str
) -> None:
    """The small trace says its model is called `invented`."""
    job = Job()
    chosen = Selection.parse("?a=run-0-dense&b=run-2-sink-window&prompt=prompt-0&picked=L1H2")[0]
    with Flask("pages").test_request_context("/", method="POST", headers=headers):
        assert said in started(Source(trace), job, chosen)
    assert job.state() == State()


def test_control_characters_of_a_trace_do_not_get_into_a_command() -> None:
    """Pasted into a terminal, they could end the paste and type something else."""
    assert Wish(**GOOD).line("t").isprintable()
    for policy in ("dense\x1b[201~\x03rm x\n", "dense\u202e"):
        with pytest.raises(ValueError, match="control characters"):
            Wish(**{**GOOD, "policy": policy}).line("t")
