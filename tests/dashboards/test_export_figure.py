"""Figures outside the pages: their numbers are those of the tables, their texts are escaped, they stay small."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html import unescape
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hostile_trace import write_hostile
from needle_trace import BASE, RUN
from PIL import Image

import sparselens as sl
from sparselens.dashboards.app import create_app
from sparselens.dashboards.export.pair import KINDS, figure_of
from sparselens.dashboards.export.svg import clean, element, lines, png
from sparselens.dashboards.query import Source, SourceError
from sparselens.workbench.cli import main

A, B = "run-0-dense", "run-2-sink-window"
SVG = "{http://www.w3.org/2000/svg}"


def titles(svg: str) -> list[str]:
    """What hovering the parts of a figure says; raises where the SVG is not well formed."""
    return [each.text or "" for each in ET.fromstring(svg).iter(f"{SVG}title")]  # noqa: S314 - written by us


def test_texts_and_values_of_an_element_are_escaped() -> None:
    made = element("text", "<script>&", fill='"><script>', x=1.5, text_anchor="end", gone=None)
    assert made == '<text fill="&#34;&gt;&lt;script&gt;" x="1.5" text-anchor="end">&lt;script&gt;&amp;</text>'


def test_what_xml_cannot_hold_is_replaced() -> None:
    assert clean("a\x00b\ud800c\u202ed\te\n") == "a�b�c�d\te\n"


def test_a_text_is_broken_into_lines_that_are_short_enough() -> None:
    assert lines("one two three", 8) == ["one two", "three"]
    assert max(map(len, lines("x" * 50, 20))) == 20


@pytest.mark.parametrize("scale", [0.0, -1.0, 9.0])
def test_a_scale_that_makes_no_picture_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="at most 8 pixels"):
        png("<svg/>", scale)


def test_the_grid_says_of_every_head_what_sql_says(trace: Path) -> None:
    figure = sl.pair_grid(trace, A, B, "js", rows="all")
    with sl.connect(trace) as connection:
        expected = connection.sql(
            "SELECT 'L' || layer || 'H' || head AS head_name, avg(js) AS js FROM diffs "
            f"WHERE run_a = '{A}' AND run_b = '{B}' AND scope = 'end_to_end' AND rows = 'all' GROUP BY head_name"
        ).df()
    drawn = figure.df().set_index("head_name")["js"]
    assert len(drawn) == 12
    assert drawn.to_dict() == pytest.approx(expected.set_index("head_name")["js"].to_dict())
    said = titles(figure.svg)[1:]
    assert said[5].startswith(f"L1H1 · {drawn['L1H1']:.3f}")
    assert "Model" in figure.caption
    assert "scope" in figure.caption.lower()


def test_a_score_of_one_run_is_that_run_s(trace: Path) -> None:
    figure = sl.run_heads(trace, B, "head_stats.entropy", rows="all")
    with sl.connect(trace) as connection:
        expected = connection.sql(
            f"SELECT avg(entropy) AS e FROM head_stats WHERE run_id = '{B}' AND rows = 'all' "
            "AND pattern = 'executed' AND layer = 2 AND head = 3"
        ).df()["e"][0]
    row = figure.df().set_index("head_name").loc["L2H3"]
    assert row["a"] == pytest.approx(expected)


def test_a_difference_of_a_run_is_asked_of_its_base(trace: Path) -> None:
    own = sl.run_heads(trace, B, "write_error", rows="all").df().set_index("head_name")["diff"]
    pair = sl.pair_grid(trace, A, B, rows="all").df().set_index("head_name")["write_error"]
    assert own.to_dict() == pytest.approx(pair.to_dict())


def test_the_map_holds_the_cells_that_the_trace_gives(trace: Path, patterns: dict[str, np.ndarray]) -> None:
    found = figure_of(Source(trace), "map", A, B, head="L1H2")
    cells = {(row["side"], row["query"], row["key"]): row["mass"] for row in found.rows}
    pattern = patterns[B][1, 2]
    for query, key in ((20, 0), (40, 33), (59, 59)):
        assert cells["b", query, key] == pytest.approx(pattern[query, key], abs=1e-6)
    assert "Exact cells" in found.caption


def test_the_maps_of_a_layer_are_the_pooled_ones_of_every_head(
    pooled_trace: Path, patterns: dict[str, np.ndarray]
) -> None:
    figure = figure_of(Source(pooled_trace), "layer", A, B, head="L1H0")
    cells = figure.df().set_index(["side", "head", "query", "key"])["mass"]
    for side, run in (("a", A), ("b", B)):
        expected = patterns[run][1].reshape(4, 15, 4, 15, 4).sum((2, 4)) / 4
        for head, q, k in ((0, 0, 0), (2, 7, 3), (3, 14, 14)):
            assert cells[side, head, 4 * q, 4 * k] == pytest.approx(expected[head, q, k], abs=1e-3)
    assert "4 × 4 tokens a cell" in figure.caption
    assert "L1H3" in figure.svg


@pytest.mark.parametrize(("metric", "column"), [("received", "received_mass"), ("norm", "resid_norm")])
def test_the_strips_are_the_stored_numbers_of_layers_and_tokens(
    needles: Path, metric: str, column: str
) -> None:
    figure = figure_of(Source(needles), "strip", BASE, RUN, prompt="prompt-0", metric=metric)
    with sl.connect(needles) as connection:
        stored = connection.sql(
            f"SELECT layer, pos, {column} AS value FROM token_stats WHERE run_id = '{RUN}' AND prompt_id = 'prompt-0'"
        ).df()
    if metric == "norm":
        later = stored[stored["pos"] > 0].groupby("layer")["value"].median()
        stored["value"] /= stored["layer"].map(later)
    drawn = figure.df().query("side == 'b'").set_index(["layer", "pos"])[metric]
    expected = stored.dropna().set_index(["layer", "pos"])["value"]
    assert len(drawn) == len(expected) > 0
    assert drawn.to_dict() == pytest.approx(expected.to_dict())
    assert figure.title.startswith("Residual norm" if metric == "norm" else "Received mass")


def test_a_strip_that_is_not_there_is_a_line_that_says_why(trace: Path) -> None:
    with pytest.raises(ValueError, match="there are received, norm"):
        figure_of(Source(trace), "strip", A, B, metric="beauty")
    with pytest.raises(ValueError, match="a figure of map has no metric: grid, heads, strip have one"):
        figure_of(Source(trace), "map", A, B, metric="js")
    with pytest.raises(SourceError, match="No token_stats are stored"):
        figure_of(Source(trace), "strip", A, B)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_figure_is_well_formed_and_has_a_caption(
    trace: Path, needles: Path, kind: str, theme: str
) -> None:
    where = (Source(needles), kind, BASE, RUN) if kind == "strip" else (Source(trace), kind, A, B)
    figure = figure_of(*where, theme=theme)
    root = ET.fromstring(figure.svg)  # noqa: S314 - written by us
    assert root.find(f"{SVG}title").text == figure.title  # type: ignore[union-attr]
    assert root.find(f"{SVG}desc").text == figure.caption  # type: ignore[union-attr]
    assert "verified" in figure.caption
    assert not re.findall(r"""(?:href|src)=["'](?!data:image/png)""", figure.svg)


@pytest.mark.parametrize("side", ["a", "b", "diff"])
@pytest.mark.parametrize("way", ["reads", "readers"])
def test_the_text_of_a_head_is_of_the_side_and_the_way_that_are_chosen(
    trace: Path, side: str, way: str
) -> None:
    figure = figure_of(Source(trace), "reads", A, B, head="L1H1", q=30, side=side, way=way)
    assert ("what query 30 reads" in figure.title) == (way == "reads")
    assert {"a": "under A", "b": "under B", "diff": "mass B − A"}[side] in figure.caption
    keys = figure.df()["key"]
    assert (keys <= 30).all() if way == "reads" else (keys >= 30).all()


def test_png_and_svg_are_written_by_their_ending(trace: Path, tmp_path: Path) -> None:
    figure = sl.pair_grid(trace, A, B)
    assert figure.save(tmp_path / "grid.svg").read_text().startswith("<svg ")
    picture = Image.open(figure.save(tmp_path / "grid.png"))
    width = float(re.search(r'width="(\d+)', figure.svg)[1])  # type: ignore[index]
    assert picture.width == 2 * width
    with pytest.raises(ValueError, match="svg or png, not 'pdf'"):
        figure.save(tmp_path / "grid.pdf")


def test_words_are_in_the_picture(trace: Path) -> None:
    """Without fonts a picture would have no text and nobody would say so."""
    figure = sl.pair_grid(trace, A, B)
    ink = np.asarray(Image.open(BytesIO(figure.png(1.0))).convert("L"))
    assert (ink[:40] < 128).sum() > 100


def test_a_view_of_a_head_is_small_and_reaches_nothing(trace: Path) -> None:
    view = sl.open_run(trace, B).head("L1H2").view()
    html = view._repr_html_()
    assert len(html) < 300_000
    assert 'sandbox="allow-scripts"' in html
    inside = unescape(re.search(r'srcdoc="([^"]*)"', html)[1])  # type: ignore[index]
    assert "default-src &#39;none&#39;" in inside
    assert not re.findall(r"https?://(?!www\.w3\.org)", inside)
    assert " &lt;script&gt;alert(1)&lt;/script&gt;</span>" in inside  # the prompt's own words, as text
    assert inside.count("<script") == 2  # its data and its own code
    assert view.df()["a"].sum() <= 1 + 1e-6


def test_handles_lead_to_the_same_figures(trace: Path) -> None:
    run = sl.open_run(trace, B)
    assert run.heads("entropy").rows == sl.run_heads(trace, B, "entropy").rows
    diff = sl.diff(trace, A, B)
    assert diff.grid("js").rows == sl.pair_grid(trace, A, B, "js").rows
    compared = sl.compare(A, [B], trace=trace)
    assert compared.grid("js").rows == diff.grid("js").rows
    assert compared.head("L0H1").view(query=30).title == run.head("L0H1").view(query=30).title


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda trace: sl.open_run(trace, "nobody"), "no run 'nobody'.*run-0-dense"),
        (lambda trace: sl.run_heads(trace, A, "beauty"), "no score 'beauty'.*head_stats.entropy"),
        (lambda trace: sl.pair_grid(trace, A, B, prompt="nothing"), "no prompt 'nothing'.*they have"),
        (lambda trace: sl.pair_grid(trace, A, B, rows="span:x"), "no rows 'span:x'.*span:answer"),
        (lambda trace: sl.pair_grid(trace, A, B, scope="x"), "no scope 'x'.*end_to_end"),
        (lambda trace: sl.pair_grid(trace, A, A), "the same run"),
        (lambda trace: sl.show_head(trace, B, "L9H0"), "no head L9H0.*3 layers of 4 heads"),
        (lambda trace: sl.show_head(trace, B, "L99999H0"), "not a head"),
        (lambda trace: sl.show_head(trace, B, "L0H0", query=60), "0 to 59"),
        (lambda trace: sl.pair_grid(trace, A, B, theme="pink"), "no theme 'pink'.*light, dark"),
    ],
)
def test_what_is_not_there_is_said_with_what_there_is(trace: Path, ask: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ask(trace)  # type: ignore[operator]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace with markup in every text."""
    path = tmp_path_factory.mktemp("traces") / "hostile"
    write_hostile(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_markup_of_a_hostile_trace_stays_text(hostile: Path, kind: str) -> None:
    try:
        figure = figure_of(Source(hostile), kind, "run-0", "run-1")
    except SourceError:
        assert kind != "text"  # that one has all it needs; others are refused with a line, as on the pages
        return
    root = ET.fromstring(figure.svg)  # noqa: S314 - it must be well formed
    known = {"svg", "title", "desc", "rect", "text", "g", "path", "image"}
    assert {each.tag.removeprefix(SVG) for each in root.iter()} <= known


@pytest.mark.parametrize(
    ("kind", "form"), [("grid", "svg"), ("map", "png"), ("heads", "svg"), ("text", "svg")]
)
def test_pages_hand_out_their_figures_as_files(trace: Path, kind: str, form: str) -> None:
    client = create_app(trace).server.test_client()
    answer = client.get(f"/view/figure/{kind}.{form}?a={A}&b={B}&over=all&theme=dark")
    assert answer.status_code == 200
    assert answer.headers["Content-Disposition"].endswith(f".{form}")
    assert answer.data.startswith(b"<svg " if form == "svg" else b"\x89PNG")


@pytest.mark.parametrize("name", ["sculpture.svg", "grid.pdf"])
def test_an_unknown_figure_is_a_line_that_says_which_there_are(trace: Path, name: str) -> None:
    answer = create_app(trace).server.test_client().get(f"/view/figure/{name}")
    assert answer.status_code == 404
    assert "grid, map, layer, text, reads, strip, heads as svg and png" in answer.text


def test_the_command_writes_a_figure(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "map.png"
    words = ["export", "figure", "map", "--trace", str(trace), "--a", A, "--b", B, "--head", "L1H1"]
    assert main([*words, "--out", str(out), "--json"]) == 0
    assert '"title": "L1H1, attention map' in capsys.readouterr().out
    assert Image.open(out).format == "PNG"
    assert main([*words, "--out", str(tmp_path / "map.tiff")]) == 2
    assert "--format svg" in capsys.readouterr().err
