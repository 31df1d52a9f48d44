"""`sparselens export`: figures as SVG or PNG, and a comparison as pages that open from disk."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

COMMAND = typer.Typer(
    no_args_is_help=True, help="Write figures, or a whole comparison, that need no server and no network."
)


class Kind(StrEnum):
    """What a figure shows."""

    GRID = "grid"
    HEADS = "heads"
    MAP = "map"
    LAYER = "layer"
    TEXT = "text"
    READS = "reads"
    STRIP = "strip"


class Form(StrEnum):
    """How a figure is written."""

    SVG = "svg"
    PNG = "png"


@COMMAND.command()
def html(
    trace: Annotated[Path, typer.Option(help="The trace folder, or a file made by pack.")],
    a: Annotated[str, typer.Option("--a", help="The base: id, name or policy.")],
    b: Annotated[str, typer.Option("--b", help="The run that is looked at; changes are B - A.")],
    out: Annotated[Path, typer.Option(help="A folder, or a file that ends in .zip.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt by name or id, again for more; 'all'. [the first]")
    ] = None,
    heads: Annotated[
        str, typer.Option(help="How many heads get a page, most changed first; or L18H6,L17H3.")
    ] = "20",
    rows: Annotated[str, typer.Option(help="Over which query rows. [the answer's, else affected]")] = "",
    scope: Annotated[str, typer.Option(help="end_to_end, local_mask or local_policy. [end_to_end]")] = "",
    metric: Annotated[str, typer.Option(help="The metric that is shown first. [write_error]")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Say what was written as a JSON object.")] = False,
) -> None:
    """Write a comparison as a folder or zip of pages: open index.html from disk."""
    from sparselens.dashboards.export.bundle import bundle, write
    from sparselens.dashboards.export.pair import prompts_of, settled_pair
    from sparselens.dashboards.query import Source

    source = Source(trace)
    settled = settled_pair(source, a, b, rows=rows, scope=scope, metric=metric)
    terminal = sys.stderr.isatty()
    made = bundle(
        source,
        settled,
        prompts_of(source, settled, prompt or []),
        heads,
        lambda head: print(f"\r{head}    ", end="", file=sys.stderr) if terminal else None,
    )
    if terminal:
        print("\r          \r", end="", file=sys.stderr)
    path = write(made, out)
    size = path.stat().st_size if path.is_file() else made.size
    said = {
        "path": str(path),
        "index": None if path.is_file() else str(path / "index.html"),
        "title": made.title,
        "bytes": size,
        "files": len(made.files),
        "prompts": made.prompts,
        "heads": made.heads,
        "heads_left_out": made.left_out,
    }
    if as_json:
        print(json.dumps(said))
        return
    print(f"{path}: {made.title}; {len(made.files)} files, {size:,} bytes")
    print(f"{len(made.heads)} heads have a page, {made.left_out} are left out: {', '.join(made.heads)}")
    if path.is_dir():
        print(f"open {path / 'index.html'}")


@COMMAND.command()
def figure(
    kind: Annotated[
        Kind,
        typer.Argument(
            help="grid: what B changed, by head; heads: a score by head; map: a head's attention; layer: that of all "
            "heads of its layer; text: the tokens by loss; reads: what a query of a head reads; strip: the mass that "
            "tokens receive, by layer."
        ),
    ],
    trace: Annotated[Path, typer.Option(help="The trace folder, or a file made by pack.")],
    a: Annotated[str, typer.Option("--a", help="The base, or the only run: id, name or policy.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    b: Annotated[str, typer.Option("--b", help="The run that is looked at.")] = "",
    form: Annotated[Form | None, typer.Option("--format", help="svg or png. [by the file's ending]")] = None,
    prompt: Annotated[
        str, typer.Option(help="A prompt by name or id. [grid, heads: all; else the first]")
    ] = "",
    head: Annotated[str, typer.Option(help="L18H6, for map, layer, reads. [the most changed]")] = "",
    metric: Annotated[
        str,
        typer.Option(
            help="grid: write_error, js …; heads: table.metric, as head_scores.retrieval; strip: received or norm."
        ),
    ] = "",
    rows: Annotated[str, typer.Option(help="Over which query rows. [the answer's, else affected]")] = "",
    scope: Annotated[str, typer.Option(help="end_to_end, local_mask or local_policy. [end_to_end]")] = "",
    query: Annotated[
        int | None, typer.Option(min=0, help="The query of reads. [predicts the answer]")
    ] = None,
    shade: Annotated[str, typer.Option(help="text: diff, a or b.")] = "",
    hide_sink: Annotated[
        bool, typer.Option("--hide-sink", help="map, layer: leave the first key's column out.")
    ] = False,
    theme: Annotated[str, typer.Option(help="light or dark.")] = "light",
    scale: Annotated[float, typer.Option(help="Pixels of a PNG to one unit of the SVG.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Say what was written as a JSON object.")] = False,
) -> None:
    """Write one figure with title, scale and caption as SVG or PNG."""
    from sparselens.dashboards.export.pair import figure_of
    from sparselens.dashboards.query import Source

    chosen = form.value if form is not None else out.suffix.removeprefix(".").lower()
    if chosen not in {each.value for each in Form}:
        raise ValueError(f"{out} ends in neither .svg nor .png: give --format svg or --format png")
    made = figure_of(
        Source(trace), kind.value, a, b, theme=theme, prompt=prompt, head=head, metric=metric, rows=rows,
        scope=scope, q=query, shade=shade, hide="1" if hide_sink else "",
    )  # fmt: skip
    content = made.written(chosen, scale)
    out.write_bytes(content)
    if as_json:
        said = {"path": str(out), "title": made.title, "caption": made.caption, "bytes": len(content)}
        print(json.dumps(said))
        return
    print(f"{out}: {made.title}; {len(content):,} bytes")
    print(made.caption)
