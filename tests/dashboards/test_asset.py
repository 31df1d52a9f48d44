"""What goes over the wire: compressed as far as the browser takes it, the same bytes when opened, kept for later."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparselens.dashboards import app
from sparselens.dashboards.asset import Packer, brotli, encoding

ASSET = "/assets/selection.js"
VIEW = "a=run-0-dense&b=run-2-sink-window&prompt=prompt-0&layer=1&head=2"
TEXT = b"".join(b"const name%d = place(%d);\n" % (i, i * i) for i in range(3000))


def opened(body: bytes, how: str, size: int) -> bytes:
    return (
        gzip.decompress(body)
        if how == "gzip"
        else pa.Codec("brotli").decompress(body, decompressed_size=size, asbytes=True)
    )


@pytest.fixture
def client(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return app.create_app(trace).server.test_client()


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("gzip, deflate, br, zstd", "br"),
        ("gzip, deflate", "gzip"),
        ("br;q=0, gzip;q=0.5", "gzip"),
        ("br; q=0.0, gzip;q=0", ""),
        ("", ""),
        ("identity", ""),
        ("brotli", ""),
    ],
)
def test_the_encoding_is_the_shortest_that_is_accepted(accepted: str, expected: str) -> None:
    assert encoding(accepted) == expected


@pytest.mark.parametrize("how", ["br", "gzip"])
@pytest.mark.parametrize("path", [ASSET, f"/view/reads?{VIEW}&q=50", "/_dash-dependencies"])
def test_answers_open_to_the_same_bytes(client: Any, path: str, how: str) -> None:
    plain = client.get(path)
    packed = client.get(path, headers={"Accept-Encoding": how})
    assert packed.headers["Content-Encoding"] == how
    assert "Accept-Encoding" in packed.headers["Vary"]
    assert "Content-Encoding" not in plain.headers
    assert len(packed.data) < len(plain.data) / 2
    assert opened(packed.data, how, len(plain.data)) == plain.data


def test_an_asset_with_a_fingerprint_is_kept_and_one_without_is_asked_for(client: Any) -> None:
    assert "immutable" in client.get(f"{ASSET}?m=1").headers["Cache-Control"]
    assert "immutable" not in client.get(ASSET).headers.get("Cache-Control", "")
    assert client.get("/assets/none.js?m=1").headers.get("Cache-Control", "") == ""


def test_the_best_is_smaller_and_a_later_start_finds_it(tmp_path: Path) -> None:
    first = Packer(lambda: tmp_path)
    quick = first.packed(TEXT, "br")
    best = first.best(TEXT)
    assert len(best) < len(quick)
    assert opened(best, "br", len(TEXT)) == TEXT
    assert first.packed(TEXT, "br") == best
    (kept,) = [file for file in tmp_path.iterdir() if file.suffix == ".br"]
    kept.write_bytes(brotli(TEXT, 0))  # what lies there is what a later start sends
    assert Packer(lambda: tmp_path).packed(TEXT, "br") == brotli(TEXT, 0)


def test_without_a_place_to_keep_it_the_answer_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    packer = Packer(lambda: tmp_path / "file" / "none")
    assert opened(packer.best(TEXT), "br", len(TEXT)) == TEXT


def test_an_unknown_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no encoding 'zstd'; there are br and gzip"):
        Packer(lambda: tmp_path).packed(TEXT, "zstd")
