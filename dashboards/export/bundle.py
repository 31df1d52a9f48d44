"""A comparison as files that open from disk: pages, figures and tables, without server and network."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from sparselens.dashboards.choice import Settled
from sparselens.dashboards.export import bundle_data as data
from sparselens.dashboards.export.asked import HEAD
from sparselens.dashboards.export.bundle_head import Part, damage_meanings, head_part, head_scores
from sparselens.dashboards.export.bundle_table import tables
from sparselens.dashboards.export.caption import policy_of, run_of
from sparselens.dashboards.export.draw import grid
from sparselens.dashboards.export.page_template import page, style, templates
from sparselens.dashboards.query import Source, SourceError

MARK = "sparselens-bundle.txt"
"""Lies in every bundle: a folder that holds it may be written anew."""


@dataclass(frozen=True)
class Bundle:
    """The files of a bundle by their paths in it; `heads` have a page, `left_out` of the model's heads have none."""

    files: dict[str, bytes]
    title: str
    heads: list[str]
    left_out: int
    prompts: list[str]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(len(content) for content in self.files.values())


def bundle(
    source: Source,
    settled: Settled,
    prompts: Sequence[str] = (),
    heads: str = "20",
    tell: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """The comparison of the settled pair on some prompts (ids), with a page for some heads.

    `heads` is how many of those that changed most over all prompts, or names. `tell` hears what is being drawn.
    """
    everything = data.over_all(source, settled)
    asked = data.prompts_asked(settled, prompts)
    numbers = [everything] + [
        data.over_prompt(source, settled, prompt, place) for place, prompt in enumerate(asked, 1)
    ]
    texts = [
        data.text_of(source, replace(settled.selection, prompt=prompt), place)
        for place, prompt in enumerate(asked, 1)
    ]
    names = data.chosen_heads(everything if everything.frame is not None else numbers[-1], heads)
    told: dict[str, list[Part]] = {}
    scores: dict[str, Any] = {}
    for name in names:
        tell(name)
        here = _at(settled, name)
        told[name] = [head_part(source, here, text) for text in texts]
        scores[name] = head_scores(source, here)
    title = _title(source, settled)
    left_out = settled.shape[0] * settled.shape[1] - len(names)
    about: dict[str, Any] = {
        "title": title,
        "cards": [data.card(source, everything.settled.selection, side) for side in ("a", "b")],
        "names": names,
        "left_out": left_out,
        "texts": texts,
        "selection": settled.selection,
        "version": metadata.version("sparselens"),
        "trace": source.path.name,
    }
    files = {"index.html": _index(source, settled, numbers, about).encode()}
    for place, name in enumerate(names):
        files[f"heads/{name}.html"] = _head_page(
            settled, name, place, told[name], scores[name], about
        ).encode()
        for part in told[name]:
            if part.figure is not None:
                files[f"figures/{name}-{part.text.place}.svg"] = part.figure.svg.encode()
    drawn, _ = data.attempt(lambda: grid(source, everything.settled))
    if drawn is not None:
        files[f"figures/grid-{settled.selection.metric}.svg"] = drawn.svg.encode()
    files |= tables(source, settled, numbers, texts, told, scores)
    files["README.txt"] = (
        templates().get_template("readme.txt.j2").render(**about, files=sorted(files)).encode()
    )
    files[MARK] = f"SparseLens {about['version']}\n".encode()
    return Bundle(files, title, names, left_out, asked)


def write(made: Bundle, out: Path) -> Path:
    """Write a bundle as a folder, or as a zip where the name ends so; a bundle that is there is replaced.

    Raises ValueError where something else is there.
    """
    if out.suffix.lower() == ".zip":
        if out.is_dir():
            raise ValueError(f"{out} is a folder: give a file that ends in .zip, or another folder")
        inside = out.stem
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in made.files.items():
                archive.writestr(f"{inside}/{name}", content)
        return out
    if out.exists() and not (out.is_dir() and ((out / MARK).exists() or not any(out.iterdir()))):
        raise ValueError(f"{out} is there already and is no bundle: name a folder that is empty or not there")
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for name, content in made.files.items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            (beside / name).write_bytes(content)
        beside.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return out


def _at(settled: Settled, name: str) -> Settled:
    found = HEAD.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is not a head")
    selection = replace(settled.selection, layer=int(found[1]), head=int(found[2]))
    return replace(settled, selection=selection)


def _title(source: Source, settled: Settled) -> str:
    selection = settled.selection
    a, b = (policy_of(run_of(source, selection, side)) for side in ("a", "b"))
    return f"{b} against {a}"


def _index(source: Source, settled: Settled, numbers: list[data.Numbers], about: dict[str, Any]) -> str:
    metrics = data.metrics_of(numbers)
    known = [each for each in numbers if each.frame is not None]
    if not known:
        raise SourceError(
            "No differences of B against A are stored for this pair, so there is nothing to compare.",
            f"sparselens diff {settled.selection.a} {settled.selection.b} --trace {source.path}",
        )
    names = [metric["name"] for metric in metrics]
    metric = settled.selection.metric if settled.selection.metric in names else names[0]
    roles = data.roles_of(source, settled.selection.a)
    first = known[0]
    sentence, over = data.headline(source, numbers[0].settled.selection)
    return page(
        "index.html.j2",
        "bundle.js",
        style(sheet="export.css", heads=settled.shape[1]),
        **about,
        sentence=sentence,
        over=over,
        metrics=metrics,
        metric=metric,
        numbers=numbers,
        first=first,
        grid=first.grid(metric, roles),
        roles=roles,
        rows=_ranked(first, names, metric, roles),
        data={
            "metrics": metrics,
            "heads": settled.shape[1],
            "pages": about["names"],
            "roles": {f"L{layer}H{head}": label for (layer, head), label in roles.items() if label},
            "over": [each.plain(names) for each in known],
        },
    )


def _ranked(
    numbers: data.Numbers, names: list[str], metric: str, roles: dict[tuple[int, int], str]
) -> list[dict[str, Any]]:
    """A row a head, the largest number (of signed ones the largest size) first, heads without one last."""
    across = numbers.settled.shape[1]
    values = {name: numbers.values(name) for name in names}
    rows = [
        {
            "name": f"L{at // across}H{at % across}",
            "values": [values[name][at] for name in names],
            "role": roles.get((at // across, at % across), ""),
            "sort": abs(values[metric][at] or 0.0) if values[metric][at] is not None else -1.0,
        }
        for at in range(len(values[metric]))
    ]
    return sorted(rows, key=lambda row: -row["sort"])


def _head_page(
    settled: Settled, name: str, place: int, parts: list[Part], scores: Any, about: dict[str, Any]
) -> str:
    names = about["names"]
    return page(
        "head.html.j2",
        "head.js",
        style(sheet="export.css", heads=settled.shape[1]),
        **about,
        name=name,
        before=names[place - 1] if place else "",
        after=names[place + 1] if place + 1 < len(names) else "",
        parts=parts,
        scores=scores[0],
        scores_why=scores[1],
        meanings=damage_meanings(),
    )
