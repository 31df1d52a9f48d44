"""Analyses: one question each, found by the constant `ANALYSIS` of its file; nothing else lists it.

A question is a file here, or `question.py` in a folder of its own that holds its parts.

An analysis runs a `Session` or reads the tables of a trace. Its rows go back into the trace as a run of kind
`analysis`, all at once when it ends. Equal arguments on the same weights are answered by the run that is there; one
that was interrupted is taken up where it stopped (`sparselens.analyses.ledger`).
"""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparselens.analyses.ledger import Ledger, forget
from sparselens.analyses.runs import find_run
from sparselens.storage.reader import connect
from sparselens.storage.schema import table as declared
from sparselens.storage.trace import Run, Trace
from sparselens.storage.writer import RunWriter
from sparselens.workbench.recorded import require_recorded_model

if TYPE_CHECKING:
    from sparselens.workbench.prompt import Prompt
    from sparselens.workbench.session import Session

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Findings:
    """What an analysis found: column blocks by `(table, columns)`, and fields of the run's record.

    Rows lack `run_id` (`base_run` of interventions): `Analysis.run` fills in the run that they are about. `prompts`:
    those that rows name by `prompt_id`; they go into the trace with their tokens and spans.
    """

    rows: list[tuple[str, dict[str, Any]]]
    record: dict[str, Any] = field(default_factory=dict)
    prompts: Sequence[Prompt] = ()


@dataclass(frozen=True)
class Setting:
    """What an analysis is given: the session (None for one that reads tables), the trace, its parameters.

    `ledger` keeps the numbers of every unit that is done, so that an interrupted analysis can go on.
    """

    session: Session | None
    trace: Trace
    parameters: Any
    progress: bool = False
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def model(self) -> Session:
        """The session; `ValueError` where an analysis needs one and has none."""
        if self.session is None:
            raise ValueError("this analysis runs a model: give one")
        return self.session


@dataclass(frozen=True)
class Shown:
    """What the command prints of an analysis: a table and notes under it."""

    rows: list[dict[str, Any]]
    notes: list[str]


@dataclass(frozen=True)
class Analysis:
    """One question that is asked of a model or of a trace.

    `parameters` is a frozen dataclass whose fields are the arguments and all have defaults; its `__post_init__`
    refuses values that make no sense. `find` answers; `cost` says beforehand what that takes; `show` turns the
    stored rows of an analysis run into what is printed, `figure` into a plotly figure. `needs_model` False: it reads
    the tables of a run, which its parameters call `run` (and `base`, where it compares two). `model_of_run` True: it
    reads the tables of such a run and runs the model that is recorded there as well. `completed` puts what the trace
    says into the parameters, where an answer is about all of it.
    """

    name: str
    question: str
    parameters: type[Any]
    find: Callable[[Setting], Findings]
    cost: Callable[[Setting], str]
    show: Callable[[Trace, str, Mapping[str, Any]], Shown]
    needs_model: bool = True
    model_of_run: bool = False
    figure: Callable[[Trace, str, Mapping[str, Any]], Any] | None = None
    completed: Callable[[Trace, Any], Any] | None = None

    @property
    def reads_run(self) -> bool:
        """Whether it reads the tables of a run."""
        return self.model_of_run or not self.needs_model

    def run(
        self,
        session: Session | None,
        trace: str | Path | Trace,
        *,
        again: bool = False,
        progress: bool = False,
        **arguments: Any,
    ) -> str:
        """Answer the question, store the rows in `trace`, and return the id of the analysis run.

        A complete run of the same arguments, weights and tokenizer is returned as it is unless `again`; an interrupted
        one is taken up again. Raises `ValueError` for unknown arguments, and where a session is needed and missing;
        then nothing is written.
        """
        setting = self.setting(session, trace, progress=progress, **arguments)
        done = self.done(setting)
        if done is not None and not again:
            return done.run_id
        stopped = None if again else self.stopped(setting)
        started = time.monotonic()
        with ExitStack() as stack:
            opened: list[RunWriter] = []

            def writer() -> RunWriter:
                if not opened:
                    opened.append(stack.enter_context(self._writer(setting, stopped)))
                return opened[0]

            ledger = Ledger(lambda: writer().folder, resumed=None if stopped is None else stopped.folder)
            findings = self.find(replace(setting, ledger=ledger))
            run, subject = writer(), self._subject(setting, findings.record, done)
            about = {"run_id": subject or run.run_id}
            if not findings.prompts or not run.finished_prompts():
                _write(run, findings, about["run_id"])
            parents = findings.record.get("parents", [subject] if subject else [])
            extra = {**findings.record.get("extra", {}), "subject": about["run_id"]}
            seconds = {} if stopped is not None else {"seconds": time.monotonic() - started}
            run.finish({**findings.record, **seconds, "parents": parents, "extra": extra})
            forget(run.folder)
        return run.run_id

    def _writer(self, setting: Setting, stopped: Run | None) -> RunWriter:
        """Return the run that is written: the interrupted one, or a new one."""
        if stopped is not None:
            return RunWriter.resume(setting.trace, stopped.run_id)
        return RunWriter.start(setting.trace, meta=self._identity(setting))

    def _identity(self, setting: Setting) -> dict[str, Any]:
        """Return what a run's record says from its start: question, arguments, model, policy's source."""
        found = {"kind": "analysis", "name": self.name, "args": asdict(setting.parameters)}
        found |= model_card(setting.session)
        if hasattr(setting.parameters, "policy"):  # its file may change under the same name
            from sparselens.kernels.policy import parse as parse_policy

            found["policy_hash"] = parse_policy(setting.parameters.policy).hash
        return found

    def setting(
        self, session: Session | None, trace: str | Path | Trace, *, progress: bool = False, **arguments: Any
    ) -> Setting:
        """Return what `find` takes: arguments checked, the trace opened (made, where a model is run)."""
        if self.needs_model and session is None:
            raise ValueError(f"the analysis {self.name} runs a model: give one")
        if not isinstance(trace, Trace):
            trace = Trace.open(trace) if self.reads_run else Trace.create(trace)
        parameters = self.settle(arguments)
        if self.completed is not None:
            parameters = self.completed(trace, parameters)
        if not self.reads_run:
            return Setting(session, trace, parameters, progress)
        named = {name: value for name in ("run", "base") if (value := getattr(parameters, name, ""))}
        with connect(trace.path) as connection:  # the runs themselves: others may bear these names tomorrow
            found = {name: find_run(connection, value)["run_id"] for name, value in named.items()}
        parameters = replace(parameters, **found)
        if session is None or not self.model_of_run:
            return Setting(None, trace, parameters, progress)
        require_recorded_model(session, trace.run(parameters.run))
        return Setting(session, trace, parameters, progress)

    def settle(self, arguments: Mapping[str, Any]) -> Any:
        """Return the parameters with these values; `ValueError` on an unknown name or a value of another type."""
        known = self.defaults()
        for name in arguments:
            if name not in known:
                raise ValueError(
                    f"{self.name} has no parameter {name!r}; it has {', '.join(known) or 'none'}"
                )
        typed = {name: _typed(self.name, name, value, known[name]) for name, value in arguments.items()}
        parameters = self.parameters(**typed)
        self._refuse_decode(getattr(parameters, "policy", None))
        return parameters

    def _refuse_decode(self, policy: str | None) -> None:
        """Raise `ValueError` on a policy that acts on decode alone: whole texts would run dense under it."""
        if policy is None:
            return
        from sparselens.kernels.policy import parse as parse_policy

        if parse_policy(policy).decodes_only:
            raise ValueError(
                f"{self.name} runs whole texts, and {policy} keeps everything until a token is decoded: give it a phase"
                " that prefills, or capture it with --decode"
            )

    def defaults(self) -> dict[str, Any]:
        """Return the parameters and their defaults."""
        return {
            each.name: None if each.default is MISSING else each.default for each in fields(self.parameters)
        }

    def done(self, setting: Setting) -> Run | None:
        """Return the newest complete run of the same arguments, weights, tokenizer and policy source, if any."""
        return self._same(setting, "complete")

    def stopped(self, setting: Setting) -> Run | None:
        """Return the newest interrupted run of the same, which can be taken up again, if any."""
        return self._same(setting, "interrupted")

    def _same(self, setting: Setting, status: str) -> Run | None:
        wanted = self._identity(setting)
        wanted["args"] = json.loads(json.dumps(wanted["args"]))
        names = ("kind", "name", "args", "weight_hash", "tokenizer_hash", "dtype", "policy_hash")
        same = {name: wanted[name] for name in names if name in wanted}
        found = [
            run
            for run in setting.trace.runs()
            if run.status == status
            and all(getattr(run.record, name) == value for name, value in same.items())
        ]
        return found[-1] if found else None

    def _subject(self, setting: Setting, record: Mapping[str, Any], done: Run | None) -> str | None:
        """Return the run that the rows are about: of the same weights, tokenizer and policy; None: itself.

        An analysis that is done again stays about the same run, so that the newer rows take the older ones' place.
        """
        if done is not None:
            return str(done.record.extra["subject"])
        if setting.session is None or self.reads_run:
            return str(record["parents"][0])
        source = setting.session.provenance
        wanted = (source.weight_hash, source.tokenizer_hash, record["policy"])
        found = [
            run.run_id
            for run in setting.trace.runs()
            if run.record.kind == "capture"
            and run.status == "complete"
            and (run.record.weight_hash, run.record.tokenizer_hash, run.record.policy) == wanted
        ]
        return found[-1] if found else None


def _write(run: RunWriter, findings: Findings, subject: str) -> None:
    """Write all rows as one part."""
    from sparselens.workbench.commit import add_prompt

    with run.part([prompt.id for prompt in findings.prompts]) as part:
        for prompt in findings.prompts:
            add_prompt(part, prompt)
        for table, columns in findings.rows:
            part.add(table, _about(table, subject) | columns)


def _about(table: str, subject: str) -> dict[str, str]:
    """Return the column that says which run a row is about, where the table has one."""
    names = declared(table).names
    column = next((name for name in ("run_id", "base_run") if name in names), None)
    return {} if column is None else {column: subject}


def model_card(session: Session | None) -> dict[str, Any]:
    """Return the fields of a run's record that say which model ran, and where."""
    if session is None:
        return {}
    from torch import get_num_threads

    source = session.provenance
    return {
        "model": source.name,
        "model_revision": source.revision,
        "weight_hash": source.weight_hash,
        "quantisation": source.quantisation,
        "tokenizer_hash": source.tokenizer_hash,
        "template_hash": source.template_hash,
        "dtype": str(session.dtype).removeprefix("torch."),
        "device": str(session.device),
        "threads": get_num_threads(),
    }


@cache
def analyses() -> Mapping[str, Analysis]:
    """Return every analysis by name: the files here that assign `ANALYSIS`; a name used twice raises."""
    return found_in(FOLDER, "sparselens.analyses")


def found_in(folder: Path, package: str) -> dict[str, Analysis]:
    """Return the analyses of a folder whose files, and those of its folders, are modules of `package`."""
    found: dict[str, Analysis] = {}
    for path in sorted((*folder.glob("*.py"), *folder.glob("*/*.py"))):
        if not _has_one(path):
            continue
        module = ".".join(path.relative_to(folder).with_suffix("").parts)
        analysis: Analysis = import_module(f"{package}.{module}").ANALYSIS
        if analysis.name in found:
            raise ValueError(f"two analyses are named {analysis.name!r}: {path.name} and another file")
        found[analysis.name] = analysis
    return dict(sorted(found.items()))


def _has_one(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(
        isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == "ANALYSIS" for target in node.targets)
        for node in body
    )


def parse(call: str) -> tuple[Analysis, dict[str, Any]]:
    """Return the analysis and the arguments of a call such as `roles(gaps=[0,50],sequences=8)`.

    Raises `ValueError` in one line for what cannot be read, and for a name that does not exist.
    """
    try:
        tree = ast.parse(call.strip() if "(" in call else f"{call.strip()}()", mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{call!r} cannot be read as an analysis: {error.msg}") from error
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.args:
        raise ValueError(f"{call!r} is not an analysis; write it as a call, such as roles(sequences=8)")
    name = tree.func.id
    if name not in analyses():
        raise ValueError(f"no analysis named {name!r}; there are {', '.join(analyses())}")
    try:
        return analyses()[name], {str(each.arg): _value(each.value) for each in tree.keywords}
    except ValueError as error:
        raise ValueError(f"{call!r}: values are numbers, words, calls and lists of them") from error


def _value(node: ast.expr) -> Any:
    """Return the value that an argument is written as: a bare word or call, such as a policy's, is its own text."""
    if isinstance(node, ast.Name):
        return {"true": True, "false": False}.get(node.id.lower(), node.id)
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_value(item) for item in node.elts)
    if isinstance(node, ast.Call):
        return ast.unparse(node)
    return ast.literal_eval(node)


def _typed(owner: str, name: str, value: Any, default: Any) -> Any:
    """`value` in the type of `default`: one item where a list is meant, a whole number as a float."""
    if isinstance(default, tuple):
        items = tuple(value) if isinstance(value, tuple | list) else (value,)
        if not items and default:
            raise ValueError(f"{owner}: {name} is an empty list")
        return tuple(_typed(owner, name, item, default[0] if default else "") for item in items)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise ValueError(f"{owner}: {name} is a {type(default).__name__}, not {value!r}")
    return value
