"""The static bundle: opens from disk in a real browser, asks nobody, and holds the numbers of the trace."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import PATIENCE, shot
from hostile_trace import write_hostile

import sparselens as sl
from sparselens.dashboards.export.bundle import Bundle, bundle, write
from sparselens.dashboards.export.bundle_data import chosen_heads, over_all, text_of
from sparselens.dashboards.export.page_template import policy, script_data, style, templates
from sparselens.dashboards.export.pair import prompts_of, settled_pair
from sparselens.dashboards.export.table import csv_text
from sparselens.dashboards.export.token import token_class, token_levels
from sparselens.dashboards.query import Source
from sparselens.workbench.cli import main

A, B = "run-0-dense", "run-2-sink-window"


def made(trace: Path, a: str = A, b: str = B, heads: str = "3", prompts: tuple[str, ...] = ()) -> Bundle:
    source = Source(trace)
    settled = settled_pair(source, a, b)
    return bundle(source, settled, prompts_of(source, settled, prompts), heads)


@pytest.fixture(scope="module")
def small(trace: Path) -> Bundle:
    """The bundle of the small trace: three of twelve heads, every prompt."""
    return made(trace, prompts=("all",))


def rows(small: Bundle, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(small.files[f"data/{name}.csv"].decode())))


def data(small: Bundle) -> Any:
    found = re.search(r'id="data">(.*?)</script>', small.files["index.html"].decode(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


class Reader(HTMLParser):
    """What a browser would find: tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def pages(found: Bundle) -> dict[str, Reader]:
    return {name: Reader(body.decode()) for name, body in found.files.items() if name.endswith(".html")}


def test_numbers_of_the_page_and_of_its_table_are_those_of_sql(small: Bundle, trace: Path) -> None:
    with sl.connect(trace) as connection:
        expected = connection.sql(
            "SELECT layer, head, avg(write_error) AS write_error, avg(js) AS js FROM diffs "
            f"WHERE run_a = '{A}' AND run_b = '{B}' AND scope = 'end_to_end' AND rows = 'span:answer' "
            "GROUP BY ALL ORDER BY layer, head"
        ).df()
    everything = data(small)["over"][0]
    table = [row for row in rows(small, "heads") if row["over"] == "all"]
    for metric in ("write_error", "js"):
        assert everything["values"][metric] == pytest.approx(expected[metric].to_list(), rel=1e-5)
        assert [float(row[metric]) for row in table] == pytest.approx(expected[metric].to_list())
    first = expected.sort_values("write_error", ascending=False).iloc[0]
    assert small.heads[0] == f"L{first.layer:.0f}H{first['head']:.0f}"


def test_losses_of_tokens_are_those_of_sql(small: Bundle, trace: Path) -> None:
    with sl.connect(trace) as connection:
        expected = connection.sql(
            f"SELECT sum(nll) AS nll, count(*) AS n FROM predictions WHERE run_id = '{B}'"
        ).df()
    found = [float(row["nll_b"]) for row in rows(small, "tokens") if row["nll_b"]]
    assert len(found) == expected["n"][0]
    assert sum(found) == pytest.approx(expected["nll"][0], abs=1e-4 * len(found))


def test_every_dropped_key_of_the_answers_rows_that_is_listed_was_dropped(small: Bundle, trace: Path) -> None:
    listed = [row for row in rows(small, "keys") if row["kept"] == "False"]
    assert listed
    with sl.connect(trace) as connection:
        for row in listed[:10]:
            layer, head = re.findall(r"\d+", row["head"])
            found = connection.sql(
                f"SELECT kept, p_base FROM edges WHERE run_id = '{B}' AND prompt_id = '{row['prompt_id']}' "
                f"AND layer = {layer} AND head = {head} AND q_pos = {row['q_pos']} AND k_pos = {row['k_pos']}"
            ).df()
            assert found["kept"].to_list() == [False]
            assert found["p_base"][0] == pytest.approx(float(row["p_base"]))


def test_it_says_which_heads_are_left_out(small: Bundle) -> None:
    assert len(small.heads) == 3
    assert small.left_out == 9
    assert {name for name in small.files if name.startswith("heads/")} == {
        f"heads/{name}.html" for name in small.heads
    }
    assert "9 are left out" in small.files["index.html"].decode()
    assert "pages of 9 other heads" in small.files["README.txt"].decode()


def test_heads_are_counted_or_named(trace: Path) -> None:
    source = Source(trace)
    numbers = over_all(source, settled_pair(source, A, B))
    assert chosen_heads(numbers, "L2H3, L0H0,L2H3") == ["L2H3", "L0H0"]
    assert len(chosen_heads(numbers, "99")) == 12
    assert chosen_heads(numbers, "0") == []
    for heads, says in (("L7H0", "3 layers of 4"), ("most", "not a head"), (" ,", "no heads were named")):
        with pytest.raises(ValueError, match=says):
            chosen_heads(numbers, heads)


def test_every_link_leads_to_a_file_of_the_bundle(small: Bundle) -> None:
    for name, page in pages(small).items():
        folder = Path(name).parent
        for tag, attributes in page.tags:
            link = attributes.get("href") or attributes.get("src")
            if link is None or tag == "image":
                continue
            target = (Path("/") / folder / link).resolve().relative_to("/")
            assert str(target) in small.files, f"{name}: {link}"


def test_every_page_allows_its_own_script_and_style_and_nothing_else(small: Bundle) -> None:
    for name, page in pages(small).items():
        said = next(each["content"] for tag, each in page.tags if tag == "meta" and "content" in each) or ""
        assert said.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
        assert "unsafe" not in said
        body = small.files[name].decode()
        code = re.findall(r"<script>(.*?)</script>", body, re.DOTALL)
        sheet = re.findall(r"<style>(.*?)</style>", body, re.DOTALL)
        assert [policy(sheet[0], code[0])] * len(code) == [said]
        assert not [
            each for _, each in page.tags if "style" in each or any(key.startswith("on") for key in each)
        ]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of a trace with markup in every text."""
    path = tmp_path_factory.mktemp("traces") / "hostile"
    write_hostile(path)
    return made(path, "run-0", "run-1", heads="4")


def test_only_what_is_drawn_here_is_markup_in_a_hostile_bundle(hostile: Bundle, small: Bundle) -> None:
    assert "&lt;script&gt;window.injected=1" in hostile.files["index.html"].decode()
    known = {tag for page in pages(small).values() for tag, _ in page.tags}
    for name, page in pages(hostile).items():
        assert {tag for tag, _ in page.tags} <= known | {"del"}, name
        assert not [each for _, each in page.tags if any(key.startswith("on") for key in each)]
        for _, attributes in page.tags:
            link = attributes.get("href") or ""
            assert link.startswith(("data:image/png", "heads/", "data/", "../", "L")) or not link
    json.loads(re.search(r'id="data">(.*?)</script>', hostile.files["index.html"].decode(), re.DOTALL)[1])  # type: ignore[index]


def test_data_in_a_script_element_cannot_end_it() -> None:
    said = script_data({"x": "</script><!--&"})
    assert "<" not in said
    assert "&" not in said
    assert json.loads(said) == {"x": "</script><!--&"}


def test_templates_escape_what_is_put_into_them() -> None:
    made_text = templates().from_string("{{ x }}").render(x="<b>\x00\ud800</b>")
    assert made_text == "&lt;b&gt;��&lt;/b&gt;"


def test_a_spreadsheet_runs_nothing_of_a_table() -> None:
    assert csv_text(("=a", "b"), [["@x", None], [-1.5, "ok"]]) == "'=a,b\r\n'@x,\r\n-1.5,ok\r\n"


def test_colours_of_both_themes_are_the_pages_own() -> None:
    sheet = style("system", heads=9)
    assert "--surface: #ffffff" in sheet
    assert "@media (prefers-color-scheme: dark){:root{--paper: #0f1115" in sheet
    assert "--heads:9" in sheet
    with pytest.raises(ValueError, match="system, light, dark"):
        style("pink")


def test_classes_of_a_token_follow_its_losses(trace: Path) -> None:
    source = Source(trace)
    text = text_of(source, settled_pair(source, A, B).selection, 1)
    for pos, levels in enumerate(
        zip(*(text.drawn["levels"][side] for side in ("diff", "a", "b")), strict=True)
    ):
        words = token_levels(text, pos).split(" ")
        assert len(words) == 3
        for word, level, nothing in zip(words, levels, (16, 0, 0), strict=True):
            assert (word == "") == (level is None or level == nothing)
            assert word == "" or int(re.findall(r"\d+", word)[0]) == level
        assert token_class(text, pos, "a").startswith(f" {words[1]}" if words[1] else "")


def test_a_bundle_may_be_written_anew_and_nothing_else_is_overwritten(small: Bundle, tmp_path: Path) -> None:
    folder = write(small, tmp_path / "bundle")
    (folder / "heads" / "old.html").write_text("gone")
    write(small, folder)
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == set(small.files)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="no bundle"):
        write(small, other)
    assert [file.name for file in other.iterdir()] == ["thesis.txt"]


def test_a_zip_holds_one_folder(small: Bundle, tmp_path: Path) -> None:
    with zipfile.ZipFile(write(small, tmp_path / "for-you.zip")) as archive:
        assert set(archive.namelist()) == {f"for-you/{name}" for name in small.files}
        assert archive.read("for-you/index.html") == small.files["index.html"]


def test_the_command_says_what_it_wrote(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "html", "--trace", str(trace), "--a", A, "--b", B, "--heads", "2"]
    assert main([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert Path(said["index"]).is_file()
    assert (len(said["heads"]), said["heads_left_out"]) == (2, 10)
    assert said["bytes"] == sum(
        file.stat().st_size for file in (tmp_path / "out").rglob("*") if file.is_file()
    )
    assert main([*words, "--out", str(tmp_path / "out2"), "--prompt", "nobody"]) == 2
    assert "no prompt 'nobody'" in capsys.readouterr().err
    assert main([*words[:6], "--b", A, "--out", str(tmp_path / "out2")]) == 2
    assert not (tmp_path / "out2").exists()


@pytest.fixture
def opened(browser: Any, small: Bundle, tmp_path: Path) -> Iterator[Any]:
    """A function that opens a file of the bundle from disk without a network; nothing may go wrong or be asked for."""
    folder = write(small, tmp_path / "bundle")
    trouble: list[str] = []
    contexts: list[Any] = []

    def show(path: Path = folder, **how: Any) -> Any:
        contexts.append(browser.new_context(offline=True, **how))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on(
            "console", lambda line: trouble.append(line.text) if line.type in {"error", "warning"} else None
        )
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda asked: None if _local(asked.url) else trouble.append(asked.url))
        page.goto((path / "index.html").as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert trouble == []


def _local(url: str) -> bool:
    return url.startswith(("file:", "data:"))


@pytest.mark.browser
def test_it_opens_from_disk_and_leads_to_a_head(small: Bundle, opened: Any) -> None:
    page = opened()
    numbers = data(small)
    assert page.locator(".sentence").inner_text().startswith("Answer NLL")
    assert page.locator(".cell").count() == 12
    page.select_option("#metric", "entropy_change")
    values = numbers["over"][0]["values"]["entropy_change"]
    most = max(range(12), key=lambda at: abs(values[at]))
    assert page.locator("#ranked tbody th").first.inner_text() == f"L{most // 4}H{most % 4}"
    place = page.locator(f'.cell[data-at="{most}"]')
    assert place.get_attribute("class").split()[1] in {"d0", "d32"}
    page.select_option("#over", "1")
    assert numbers["over"][1]["caption"] == page.locator("#caption").inner_text()
    shades = page.locator("#prompt-1 .token").nth(30)
    page.locator('#prompt-1 [data-shade="b"]').click()
    assert " s" in f" {shades.get_attribute('class')}"
    shot(page, "export-index")
    page.locator(f'a.cell[href="heads/{small.heads[0]}.html"]').click()
    assert page.locator("h1").inner_text() == small.heads[0]
    assert page.locator(".map .only-light image").first.is_visible()
    assert page.locator(".chip.out").count() > 0
    shot(page, "export-head")
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**/{small.heads[1]}.html")
    page.keyboard.press("Escape")
    page.wait_for_url("**/index.html")


@pytest.mark.browser
def test_it_follows_the_system_into_the_dark_and_onto_a_phone(small: Bundle, opened: Any) -> None:
    page = opened(color_scheme="dark", viewport={"width": 480, "height": 800})
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 17, 21)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 480
    assert [found["id"] for found in Axe().run(page).response["violations"]] == []
    page.goto(page.url.replace("index.html", f"heads/{small.heads[0]}.html"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 480
    assert [found["id"] for found in Axe().run(page).response["violations"]] == []
    assert page.locator(".map .only-dark image").first.is_visible()
    assert not page.locator(".map .only-light image").first.is_visible()


@pytest.mark.browser
def test_a_hostile_bundle_runs_no_script_of_the_trace(hostile: Bundle, opened: Any, tmp_path: Path) -> None:
    folder = write(hostile, tmp_path / "hostile")
    page = opened(folder)
    for name in ("index.html", *(f"heads/{file.name}" for file in sorted((folder / "heads").iterdir()))):
        page.goto((folder / name).as_uri())
        assert page.evaluate("window.injected") is None
        assert page.locator("iframe, img, a[href^=javascript]").count() == 0


@pytest.mark.browser
def test_pages_save_what_they_show(served: str, visit: Any) -> None:
    """The server's figures by their address, Plotly's drawn by the browser; both as SVG and PNG."""
    page = visit(f"{served}heads?a={A}&b={B}&over=all&score=head_stats.entropy&whose=b")
    page.wait_for_selector(".cell")
    page.wait_for_selector("#scatter .js-plotly-plot .point path, #scatter .point")
    for kind, starts in (
        ("heads.svg", b"<svg"),
        ("heads.png", b"\x89PNG"),
        ("graph.svg", b"<svg"),
        ("graph.png", b"\x89PNG"),
    ):
        with page.expect_download() as started:
            page.locator(f'[data-save="{kind}"]').first.click()
        content = Path(started.value.path()).read_bytes()
        assert content.startswith(starts), kind
        if kind == "heads.svg":
            assert "entropy of every head" in content.decode()
        if kind == "graph.svg":
            assert "Two scores" in content.decode()
            assert "query rows" in content.decode()  # the caption says what the numbers are over
            assert "A: dense" in content.decode()  # and of which runs they are
    page.goto(f"{served}sql?show=chart&sql=SELECT%20layer%2C%20head%20FROM%20head_stats")
    page.wait_for_selector("#query-chart .js-plotly-plot")
    with page.expect_download() as started:
        page.locator('[data-save="graph.svg"]').first.click()
    assert "SQL: SELECT layer, head FROM head_stats" in Path(started.value.path()).read_text()
