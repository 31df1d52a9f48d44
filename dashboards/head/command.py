"""The commands that test one head: give it back, cut it, attribute the answer; of this trace's model and prompts."""

from __future__ import annotations

import shlex
from typing import Any

from dash import Dash, Input, html

from sparselens.dashboards.drawing import drawn, place, tree
from sparselens.dashboards.page import chosen, message, panel, part, problem
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection

RUNS = """
SELECT run_id, model, dtype, coalesce(policy, '') AS policy FROM runs WHERE run_id IN ($a, $b)
"""
SETS = """
SELECT DISTINCT json_extract_string(p.metadata, '$.set') AS name FROM prompts p
WHERE p.prompt_id IN (SELECT prompt_id FROM run_prompts WHERE run_id = $run)
  AND p.prompt_id IN (SELECT prompt_id FROM spans WHERE name = 'answer')
  AND json_extract_string(p.metadata, '$.set') IS NOT NULL
ORDER BY name
"""
COMMAND_FIELDS = part("a", "b", "layer", "head")
MEANT = {
    "restore": (
        "Restore this head",
        "gives it back under B's policy: how much of the answer's loss returns?",
    ),
    "ablate": ("Ablate this head", "cuts it in the base: how much does the answer's loss rise?"),
    "attribution": ("Attribution under B", "which tokens the answer needs, against what every head reads"),
}


def commands(source: Source, selection: Selection) -> dict[str, str]:
    """The command of each test in a shell's spelling, by analysis; a base that dropped nothing has no restore.

    Raises:
        SourceError: the runs do not say which model they ran.

    """
    runs = {row["run_id"]: row for row in source.records(RUNS, a=selection.a, b=selection.b or None)}
    run = runs.get(selection.b) or runs.get(selection.a, {})
    if not run.get("model"):
        raise SourceError(
            "These runs do not say which model they ran, so there is no command to test the head."
        )
    base = runs.get(selection.a, {}).get("policy") or "dense"
    sets = source.records(SETS, run=run["run_id"])
    on = {"prompts": written(sets[0]["name"])} if sets else {}
    heads = {"heads": f"[{selection.head_name}]", "orders": "[given]", "matched": "[given]"}
    against = {} if base.partition("(")[0] == "dense" else {"base": written(base)}
    given = {
        "restore": {**heads, "check": "0", **on, **against},
        "ablate": {**heads, **on, **against},
        "attribution": on,
    }
    if run["policy"] == base:
        del given["restore"]
    return {
        name: shlex.join(["sparselens", "analyse", _call(name, parameters), *_options(source, run)])
        for name, parameters in given.items()
    }


def written(value: str) -> str:
    """A value as an analysis call has it: a call or a word as it is, anything else, such as a path, in quotes."""
    plain = value.partition("(")[0]
    return value if plain.isidentifier() and (plain == value or value.endswith(")")) else repr(value)


def _call(name: str, parameters: dict[str, str]) -> str:
    return f"{name}({','.join(f'{key}={value}' for key, value in parameters.items())})"


def _options(source: Source, run: dict[str, Any]) -> list[str]:
    found = ["--model", run["model"]]
    if run["policy"]:
        found += ["--policy", run["policy"]]
    if run["dtype"] not in (None, "float32"):
        found += ["--dtype", run["dtype"]]
    return [*found, "--trace", str(source.path)]


def commands_panel() -> Any:
    """The panel before anything is drawn in it."""
    return panel(
        "Test this head",
        place("head-commands"),
        note="what it shows is rows of the trace again",
        name="panel-commands",
    )


def commands_figure(found: dict[str, str]) -> list[Any]:
    """Each command with what it answers and a button that copies it."""
    return [
        html.Div(
            [
                html.Div(
                    [
                        html.Button(
                            "Copy",
                            type="button",
                            className="action",
                            **{"data-copy": f"command-{name}", "aria-label": f"Copy: {MEANT[name][0]}"},
                        ),
                        html.B(MEANT[name][0]),
                        html.Span(MEANT[name][1], className="note"),
                    ],
                    className="command-head",
                ),
                html.Pre(line, className="command", id=f"command-{name}"),
            ],
            className="test-command",
        )
        for name, line in found.items()
    ]


def register_commands(app: Dash, source: Source) -> None:
    """Wire the panel to the selection."""

    def draw(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or selection.layer is None:
            return None
        try:
            found = commands(source, selection)
        except SourceError as trouble:
            return tree(problem(trouble))
        return tree(commands_figure(found) if found else message("There is nothing to test."))

    app.callback(drawn("head-commands"), Input(COMMAND_FIELDS, "data"))(draw)
