"""The application: its pages, its routes, what it refuses, what it never does."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from sparselens.dashboards import app, page
from sparselens.dashboards.page import Page, message
from sparselens.dashboards.route import as_floats

VIEW = "a=run-0-dense&b=run-2-sink-window&prompt=prompt-0&layer=1&head=2"


@pytest.fixture(scope="module")
def client(trace: Path):  # type: ignore[no-untyped-def]
    return app.create_app(trace).server.test_client()


def test_every_file_of_pages_is_a_page() -> None:
    assert [(each.name, each.path) for each in page.pages()] == [
        ("Compare", "/"), ("Heads", "/heads"), ("Head", "/head"), ("Retrieval", "/retrieval"), ("Sinks", "/sinks"),
        ("Features", "/features"), ("Circuits", "/circuits"), ("Frontier", "/frontier"), ("Runs", "/runs"),
        ("SQL", "/sql"),
    ]  # fmt: skip


def test_two_pages_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparselens.dashboards.pages import runs

    monkeypatch.setattr(
        runs, "PAGE", Page("SQL", "/other", 9, lambda: message(""), lambda _app, _source: None)
    )
    with pytest.raises(ValueError, match="two pages"):
        page.pages()


def test_the_pages_import_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; import sparselens.dashboards.app as a; a.create_app('/nowhere'); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'sparselens.workbench')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_comes_from_elsewhere(client) -> None:  # type: ignore[no-untyped-def]
    answer = client.get("/")
    assert b"http://" not in answer.data
    assert b"https://" not in answer.data
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    for file in (Path(app.__file__).parent / "assets").iterdir():
        text = file.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "http" not in text, file


def test_a_strange_host_name_is_not_served(client) -> None:  # type: ignore[no-untyped-def]
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
    assert client.get("/", headers={"Host": "127.0.0.1:8050"}).status_code == 200


def test_a_taken_port_moves_on_and_the_server_is_local() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        opened = app.listen("127.0.0.1", port)
        assert port < opened.getsockname()[1] <= port + app.PORTS_TRIED
        assert opened.getsockname()[0] == "127.0.0.1"
        opened.close()


def test_map_images_are_png_and_cells_are_their_numbers(client, patterns) -> None:  # type: ignore[no-untyped-def]
    image = client.get(f"/view/map.png?{VIEW}&side=b&theme=dark&seen=1")
    assert image.mimetype == "image/png"
    assert image.data.startswith(b"\x89PNG")
    numbers = as_floats(client.get(f"/view/cells?{VIEW}&side=b&seen=1").data).reshape(60, 60)
    seen = np.tril(np.ones((60, 60), bool))
    np.testing.assert_allclose(numbers[seen], patterns["run-2-sink-window"][1, 2][seen], atol=1e-6)
    assert np.isnan(numbers[~seen]).all()


@pytest.mark.parametrize(
    "path",
    [
        "/view/map.png?layer=x",
        f"/view/map.png?{VIEW}&layer=99",
        "/view/reads",
        f"/view/reads?{VIEW}",
        "/view/sql.csv?sql=DROP",
    ],
)
def test_a_bad_address_gets_one_line_and_400(client, path: str) -> None:  # type: ignore[no-untyped-def]
    answer = client.get(path)
    assert answer.status_code == 400
    assert answer.mimetype == "text/plain"
    assert b"\n" not in answer.data
    assert b"Traceback" not in answer.data


def test_what_ends_between_two_answers_is_seen_by_the_second(tmp_path: Path) -> None:
    from sparselens.storage.writer import RunWriter

    outputs = [{"id": "selection", "property": "data"}, {"id": "notices", "property": "children"}]
    given = [
        {"id": "url", "property": "pathname", "value": "/runs"},
        {"id": "url", "property": "search", "value": ""},
    ]
    asked = {"output": "..selection.data...notices.children..", "outputs": outputs, "inputs": given}
    client = app.create_app(tmp_path / "t").server.test_client()

    def seen() -> str | None:
        found: dict[str, Any] = client.post("/_dash-update-component", json=asked).get_json()["response"]
        return (found["selection"]["data"] or {}).get("seen")

    assert seen() is None
    RunWriter.start(tmp_path / "t", "run-1", {"policy": "dense()"}).finish({})
    first = seen()
    assert first is not None
    assert seen() == first
    RunWriter.start(tmp_path / "t", "run-2", {"policy": "a_shape(window=2)"}).finish({})
    assert seen() not in (None, first)


def test_csv_has_the_rows_and_no_formulas(client) -> None:  # type: ignore[no-untyped-def]
    sql = quote("SELECT run_id, '=1+1' AS x FROM runs ORDER BY run_id")
    answer = client.get(f"/view/sql.csv?sql={sql}")
    assert answer.text.splitlines()[:2] == ["run_id,x", "run-0-dense,'=1+1"]
    assert "attachment" in answer.headers["Content-Disposition"]


def test_long_answers_are_compressed(client) -> None:  # type: ignore[no-untyped-def]
    asked = f"/view/reads?{VIEW}&q=50"
    packed = client.get(asked, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert json.loads(gzip.decompress(packed.data)) == client.get(asked).json


@pytest.mark.parametrize("content", [None, "newer", "broken"])
def test_an_empty_newer_or_broken_trace_is_a_message(tmp_path: Path, content: str | None) -> None:
    if content:
        text = (
            json.dumps({"format": "sparselens-trace", "schema_version": 999}) if content == "newer" else "{"
        )
        (tmp_path / "trace.json").write_text(text)
    server = app.create_app(tmp_path / ("none" if content is None else "")).server.test_client()
    assert server.get("/").status_code == 200
    body = {
        "output": "..selection.data...notices.children..",
        "outputs": [],
        "inputs": [
            {"id": "url", "property": "pathname", "value": "/"},
            {"id": "url", "property": "search", "value": ""},
        ],
        "changedPropIds": [],
    }
    spec = next(each for each in server.get("/_dash-dependencies").json if "selection.data" in each["output"])
    body["output"] = spec["output"]
    body["outputs"] = [
        {"id": json.loads(name) if name.startswith("{") else name, "property": prop}
        for name, prop in (each.rsplit(".", 1) for each in spec["output"].strip(".").split("..."))
    ]
    answer = server.post("/_dash-update-component", json=body)
    assert answer.status_code == 200
    said = json.dumps(answer.json["response"]["notices"], ensure_ascii=False)
    assert "Traceback" not in said
    assert {None: "There is no trace", "newer": "999", "broken": "cannot be read"}[content] in said
