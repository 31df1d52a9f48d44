"""The commands that test one head: give it back, cut it, attribute the answer; of this trace's model and prompts."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, html

from sparselens.analyses.cause.command import as_captured, call, shell
from sparselens.dashboards.drawing import drawn, place, tree
from sparselens.dashboards.page import chosen, message, panel, part, problem
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection

RUNS = """
SELECT run_id, model, dtype, coalesce(policy, '') AS policy FROM runs WHERE run_id IN ($a, $b)
"""
SETS = """
SELECT DISTINCT json_extract_string(p.metadata, '$.set') AS name, p.bos_mode AS bos FROM prompts p
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
        SourceError: the runs do not say which model they ran, or what they say holds control characters.

    """
    runs = {row["run_id"]: row for row in source.records(RUNS, a=selection.a, b=selection.b or None)}
    run = runs.get(selection.b) or runs.get(selection.a, {})
    if not run.get("model"):
        raise SourceError(
            "These runs do not say which model they ran, so there is no command to test the head."
        )
    base = runs.get(selection.a, {}).get("policy") or "dense"
    sets = source.records(SETS, run=run["run_id"])
    prompts, heads = sets[0]["name"] if sets else "", [selection.head_name]
    given = {
        "restore": call("restore", heads, prompts=prompts, base=base, check="0"),
        "ablate": call("ablate", heads, prompts=prompts, base=base),
        "attribution": call("attribution", [], prompts=prompts),
    }
    if run["policy"] == base:
        del given["restore"]
    policy = ["--policy", run["policy"]] if run["policy"] else []
    captured = as_captured(run["dtype"], sets[0]["bos"] if sets else None)
    options = ["--model", run["model"], *policy, *captured, "--trace", str(source.path)]
    try:
        return {name: shell(["analyse", asked, *options]) for name, asked in given.items()}
    except ValueError as problem:
        raise SourceError(f"{str(problem).capitalize()}.") from problem


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
