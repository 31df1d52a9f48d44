"""A report reads the same as text, Markdown and HTML, and nothing from a trace is read as markup."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from report_trace import HEADS, HOSTILE, LAYERS, POLICIES, analysis, planted

from sparselens.analyses.compare import compare
from sparselens.analyses.interval import Interval
from sparselens.analyses.report.html import bars, html
from sparselens.analyses.report.markdown import markdown, written
from sparselens.analyses.report.page import (
    Cell,
    Grid,
    Grids,
    Missing,
    Page,
    Paragraph,
    Section,
    Table,
    Verbatim,
    visible,
)
from sparselens.analyses.report.report import FORMATS, page, report
from sparselens.analyses.report.text import plain, text
from sparselens.workbench.cli import main
from sparselens.workbench.commands.report import Format


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted trace in which analyses have hostile words too."""
    path = tmp_path_factory.mktemp("forms") / "trace"
    _, run, *_ = planted(path, runs=2)
    evals = {"run_id": run, "task": HOSTILE, "metric": HOSTILE, "value": [0.5], "n": 1, "n_clusters": 1}
    analysis(path, "fidelity", POLICIES[0], {HOSTILE: HOSTILE}, {"evals": evals})
    row = {
        "base_run": run,
        "trial": [2],
        "kind": "run_dense",
        "heads": [[HOSTILE, "L1H2"]],
        "n_heads": 1,
        "order_by": HOSTILE,
        "metric": "gap_closed",
        "value": 0.5,
        "n": 2,
        "n_clusters": 2,
        "ci_low": 0.4,
        "ci_high": 0.6,
        "prompt_set": HOSTILE,
        "definition": HOSTILE,
    }
    told = {"folds": [{"tested": [HOSTILE], "n_tested": 1}], "estimate": {"words": HOSTILE}}
    analysis(path, "restore", POLICIES[0], {"policy": POLICIES[0]}, {"interventions": row}, **told)
    return path


class Reader(HTMLParser):
    """Counts tags, keeps attributes and the text of everything but the style."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in ("meta", "line", "rect", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "line", "rect", "wbr"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)


TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "nav", "section", "div"),
    *("h1", "h2", "h3", "p", "a", "ol", "li", "pre", "code", "wbr", "span"),
    *("figure", "figcaption", "table", "thead", "tbody", "tr", "th", "td"),
    *("svg", "line", "rect", "text", "title"),
}
ATTRIBUTES = {
    *("lang", "charset", "name", "content", "class", "style", "id", "href", "scope", "role", "tabindex"),
    *("aria-label", "aria-labelledby", "aria-hidden", "viewbox", "preserveaspectratio", "width", "height"),
    *("x", "y", "x1", "x2", "y1", "y2", "text-anchor"),
}


def test_hostile_text_is_escaped_in_html(trace: Path) -> None:
    source = report(trace, "dense", POLICIES[:2], form="html")
    read = Reader(source)
    assert set(read.tags) <= TAGS
    assert {name for name, _ in read.attributes} <= ATTRIBUTES
    assert read.open == []
    assert "<script" not in source
    assert visible(HOSTILE) in "".join(read.texts)
    assert "\x1b" not in source
    assert "\u202e" not in source


def test_the_html_stands_alone_and_has_names_for_what_it_draws(trace: Path) -> None:
    source = report(trace, "dense", POLICIES[:2], form="html")
    read = Reader(source)
    style = "".join(re.findall(r"<style>(.*?)</style>", source, re.DOTALL))
    assert not re.search(r"url\(|@import|https?:", style)
    links = [value for name, value in read.attributes if name == "href"]
    ids = {value for name, value in read.attributes if name == "id"}
    assert len(links) == 8
    assert all(value and value[0] == "#" and value[1:] in ids for value in links)
    assert len([name for name, _ in read.attributes if name == "id"]) == len(ids)
    labels = [value for name, value in read.attributes if name == "aria-label"]
    assert read.tags["svg"] + read.tags["table"] + 1 == len(labels)
    assert all(labels)
    assert read.tags["rect"] == LAYERS * HEADS * 2
    assert len(re.findall(r"<rect [^>]*><title>L\dH\d write_error ", source)) == LAYERS * HEADS * 2
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_hostile_text_is_harmless_in_markdown(trace: Path) -> None:
    source = report(trace, "dense", POLICIES[:2], form="markdown")
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(source)
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in (*tokens, *inline)}
    assert not kinds & {"html_block", "html_inline", "link_open", "image"}
    strong = sum(child.type == "strong_open" for child in inline)
    assert strong == 2  # the words "In short", once a run
    cells: list[int] = []
    for token in tokens:
        if token.type == "tr_open":
            cells.append(0)
        if token.type in ("td_open", "th_open"):
            cells[-1] += 1
    widths = [len(table.columns) for table in every_table(page(trace, "dense", POLICIES[:2]))]
    rows = [len(table.rows) + 1 for table in every_table(page(trace, "dense", POLICIES[:2]))]
    assert cells == [width for width, n in zip(widths, rows, strict=True) for _ in range(n)]
    shown = "".join(child.content for child in inline if child.type in ("text", "code_inline"))
    assert visible(HOSTILE) in shown
    assert "\x1b" not in source


def every_table(found: Page) -> list[Table]:
    return [block for each in found.sections for block in each.blocks if isinstance(block, Table)]


@pytest.mark.parametrize(
    "text",
    [HOSTILE, "a|b", "`", "``a`|", "\\|", " ", "a\nb", "<b>", "&amp;", "~~x~~", "$x$", "#1", "@name", "1. x"],
)
def test_any_text_comes_through_markdown_as_it_is(text: str) -> None:
    source = markdown(Page("t", [], [Section("k", "s", [Table("c", ("a", "b"), [("x", Verbatim(text))])])]))
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(source)
    cell = next(tokens[at + 1] for at, token in enumerate(tokens) if token.type == "td_open" and at)
    second = [tokens[at + 1] for at, token in enumerate(tokens) if token.type == "td_open"][1]
    assert cell.content == "x"
    shown = "".join(child.content for child in second.children or ())
    assert shown.strip() == visible(text).strip()
    alone = MarkdownIt("commonmark").parseInline(written(("so: ", text)))[0].children or ()
    assert {child.type for child in alone} <= {"text", "text_special", "code_inline", "softbreak"}


def test_hostile_text_moves_nothing_on_a_terminal(trace: Path) -> None:
    source = report(trace, "dense", POLICIES[:2])
    assert all(char.isprintable() or char == "\n" for char in source)
    assert visible(HOSTILE)[:20] in source


def test_all_forms_say_every_number(trace: Path) -> None:
    found = page(trace, "dense", POLICIES[:2])
    squeezed = {
        "text": re.sub(r"\s", "", text(found)),
        "html": re.sub(r"\s", "", "".join(Reader(html(found)).texts)),
        "markdown": re.sub(r"[\s\\`]", "", markdown(found)),
    }
    said = [cell for table in every_table(found) for row in table.rows for cell in row]
    numbers = {
        each
        for cell in said
        for each in re.findall(r"[+−]?\d[\d.,]*", plain(cell.words if isinstance(cell, Cell) else cell))
        if "alert" not in plain(cell.words if isinstance(cell, Cell) else cell)
    }
    assert len(numbers) > 80
    for form, source in squeezed.items():
        assert not [each for each in numbers if each not in source], form


def test_bars_of_a_scale_have_its_ends_and_its_marks() -> None:
    low, high = Interval(0.5, 0.25, 0.75, 4, 4), Interval(1.5, 1.0, 2.0, 4, 4)
    rows = [("a", Cell("x", low)), ("b", Cell("y", high)), ("c", "no bar")]
    (_, first), (_, second), (_, third) = bars(Table("t", ("", ""), rows, marks=(0.0, 1.0)))
    assert third is None
    assert first is not None
    assert second is not None
    assert first.marks == second.marks
    scale = (second.high - first.marks[0]) / 2
    assert first.marks[1] - first.marks[0] == pytest.approx(scale, abs=0.02)
    for bar, each in ((first, low), (second, high)):
        for at, value in ((bar.low, each.low), (bar.mean, each.mean), (bar.high, each.high)):
            assert at == pytest.approx(first.marks[0] + scale * value, abs=0.02)
    assert 0 < first.marks[0] < second.high < 100
    single = bars(Table("t", ("", "", ""), [("a", Cell("x", low), Cell("y", high))], scale="row"))[0]
    assert single[1] is not None
    assert single[2] is not None
    assert single[1].high < single[2].low


def test_a_head_without_an_interval_is_drawn_as_a_point() -> None:
    alone = Interval(0.5, float("nan"), float("nan"), 1, 1)
    bar = bars(Table("t", ("", ""), [("a", Cell("x", alone))]))[0][1]
    assert bar is not None
    assert bar.low == bar.mean == bar.high
    grid = Grid("g", "write_error", 1, 1, {(0, 0): alone})
    assert "L0H0 write_error 0.5" in html(Page("t", [], [Section("k", "s", [Grids("c", [grid], 0.0)])]))


def test_commands_stand_alone_in_every_form() -> None:
    command = "sparselens analyse roles --policy 'a_shape(sink=2,window=9)' --trace \"`x`\""
    found = Page("t", [], [Section("k", "s", [Missing("Nothing", [command]), Paragraph("end")])])
    assert f"\n  {command}\n" in text(found)
    assert f"\n```bash\n{command}\n```\n" in markdown(found)
    assert command in "".join(Reader(html(found)).texts)


def test_the_command_writes_what_the_function_returns(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["report", "dense", *POLICIES[:2], "--trace", str(trace)]
    assert main(asked) == 0
    assert capsys.readouterr().out == f"{report(trace, 'dense', POLICIES[:2]).rstrip()}\n"
    for name, form in (("a.html", "html"), ("a.md", "markdown"), ("a.txt", "text")):
        assert main([*asked, "--output", str(tmp_path / name)]) == 0
        assert f"{form}, " in capsys.readouterr().out
        expected = report(trace, "dense", POLICIES[:2], form=form)
        assert (tmp_path / name).read_text(encoding="utf-8") == f"{expected.rstrip()}\n"
    assert main([*asked, "--format", "markdown", "--top", "2"]) == 0
    assert capsys.readouterr().out.startswith("# ")
    assert main([*asked, "--output", str(tmp_path / "none" / "a.html")]) == 2
    assert "No such file" in capsys.readouterr().err
    assert main(["report", "dense", "dense", "--trace", str(trace)]) == 2
    assert capsys.readouterr().err.startswith("error: 'dense' is the base itself")
    assert {each.value for each in Format} == set(FORMATS)


def test_a_comparison_shows_itself_in_a_notebook(trace: Path) -> None:
    compared = compare("dense", POLICIES[:2], trace=trace)
    part = compared._repr_html_()
    read = Reader(part)
    assert set(read.tags) <= TAGS - {"html", "head", "body", "main", "nav", "meta"}
    assert not [value for name, value in read.attributes if name == "id"]
    assert part.startswith('<div class="sparselens">')
    selectors = re.findall(r"^(\S.*) \{$", re.findall(r"<style>\n(.*?)</style>", part, re.DOTALL)[0], re.M)
    assert selectors == [".sparselens"]  # no rule reaches the notebook around it
    assert compared._repr_markdown_() == report(trace, "dense", POLICIES[:2], form="markdown")
    assert str(compared) == compared.report() == report(trace, "dense", POLICIES[:2])


def test_the_template_is_in_the_package_and_never_switches_escaping_off() -> None:
    from importlib.resources import files

    source = files("sparselens.analyses.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    assert "|safe" not in re.sub(r"\s", "", source)
    assert "autoescape" not in source


def test_hostile_names_reach_every_part(trace: Path) -> None:
    found: Any = page(trace, "dense", POLICIES[:2])
    parts = {each.key for each in found.sections if visible(HOSTILE)[:12] in text(Page("t", [], [each]))}
    assert {"kept", "repair", "prompts", "method"} <= parts
