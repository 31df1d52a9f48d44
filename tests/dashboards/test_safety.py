"""Who is answered: this machine under its own names, or whoever has the token; never another site."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import HTTPCookieProcessor, build_opener

import pytest

from sparselens.dashboards import access, app

TOKEN = "a-token-for-tests"
NAME = {"Host": "lab.example:8050"}


@pytest.fixture(scope="module")
def guarded(trace: Path) -> Any:
    return app.create_app(trace, TOKEN).server


@pytest.fixture(scope="module")
def local(trace: Path) -> Any:
    return app.create_app(trace).server


def addresses(server: Any) -> Iterator[tuple[str, str]]:
    """Every route of the server with every method, its variables filled with something."""
    for rule in server.url_map.iter_rules():
        path = re.sub(r"<[^>]*>", "x", str(rule))
        for method in sorted((rule.methods or set()) | {"GET", "POST", "OPTIONS"}):
            yield method, path
    for path in (
        "/assets/sparselens.css",
        "/assets/../app.py",
        "/_dash-ws",
        "/socket",
        "/view/sql.csv?sql=SELECT+1",
    ):
        yield "GET", path


def test_without_the_token_every_address_is_refused(guarded: Any) -> None:
    client = guarded.test_client()
    tried = list(addresses(guarded))
    assert len(tried) > 40
    for method, path in tried:
        for headers in (NAME, {}, NAME | {"Upgrade": "websocket", "Connection": "Upgrade"}):
            answer = client.open(path, method=method, headers=headers)
            assert answer.status_code == 403, (method, path)
            assert "Set-Cookie" not in answer.headers
    for wrong in ("", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "é"):
        assert client.get("/", query_string={"token": wrong}, headers=NAME).status_code == 403
        assert client.get("/", headers=NAME | {"Cookie": f"sparselens-80={wrong}"}).status_code == 403
    assert client.post(f"/_dash-update-component?token={TOKEN}", headers=NAME, json={}).status_code == 403


def test_the_url_gives_the_cookie_once_and_leads_on_without_the_token(guarded: Any) -> None:
    client = guarded.test_client()
    answer = client.get(f"/head?layer=1&token={TOKEN}&sql=SELECT+1", headers=NAME)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/head?layer=1&sql=SELECT+1")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    shown = NAME | {"Cookie": cookie.split(";")[0]}
    for path in ("/", "/assets/sparselens.css", "/view/sql.csv?sql=SELECT+1", "/_dash-dependencies"):
        assert client.get(path, headers=shown).status_code == 200, path


def test_the_token_leads_to_no_other_host(guarded: Any) -> None:
    for path in ("//evil.example/x", "/\\evil.example", "///evil.example", "/%0d%0aX: y"):
        answer = guarded.test_client().get(f"{path}?token={TOKEN}", headers=NAME)
        place = answer.headers.get("Location", "/")
        assert re.match(r"/(?![/\\])|/$", place), place


def test_tokens_are_compared_in_constant_time_and_are_long(
    monkeypatch: pytest.MonkeyPatch, guarded: Any
) -> None:
    seen: list[tuple[bytes, bytes]] = []

    def never(shown: bytes, token: bytes) -> bool:
        seen.append((shown, token))
        return False

    monkeypatch.setattr(access, "compare_digest", never)
    assert guarded.test_client().get(f"/?token={TOKEN}", headers=NAME).status_code == 403
    assert (TOKEN.encode(), TOKEN.encode()) in seen
    assert len({access.new_token() for _ in range(100)}) == 100
    assert len(access.new_token()) >= 43


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("LOCALHOST", True),
     (app.EVERYWHERE[0], False), ("::", False), ("192.168.1.5", False), ("lab", False), ("", False)],
)  # fmt: skip
def test_only_loopback_counts_as_this_machine(host: str, own: bool) -> None:
    assert access.is_loopback(host) is own


def test_a_server_for_others_makes_its_own_token_and_says_so(trace: Path) -> None:
    server, url = app.open_server(trace, 0, app.EVERYWHERE[0])
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        token = url.partition("?token=")[2]
        assert len(token) >= 43
        here = f"http://127.0.0.1:{server.port}/"
        browser = build_opener(HTTPCookieProcessor())
        with pytest.raises(OSError, match="403"):
            browser.open(here, timeout=20)
        assert browser.open(f"{here}?token={token}", timeout=20).status == 200
        assert browser.open(f"{here}_dash-layout", timeout=20).status == 200
        with pytest.raises(OSError, match="403"):
            build_opener().open(f"{here}_dash-layout", timeout=20)
    finally:
        server.shutdown()
        thread.join(timeout=5)
        server.server_close()


def test_a_server_for_this_machine_listens_on_loopback_only_and_has_no_token(trace: Path) -> None:
    server, url = app.open_server(trace, 0)
    server.server_close()
    assert server.server_address[0] == "127.0.0.1"
    assert url == f"http://127.0.0.1:{server.port}/"


@pytest.mark.parametrize(
    "name", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "[::2]", "10.0.0.1"]
)
def test_a_foreign_name_that_is_pointed_here_reaches_nothing(local: Any, name: str) -> None:
    for path in ("/", "/view/sql.csv?sql=SELECT+1", "/_dash-layout", "/assets/sparselens.css"):
        for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
            answer = local.test_client().get(
                path, headers={"Host": name}, environ_base={"REMOTE_ADDR": address}
            )
            assert answer.status_code == 403


def test_another_site_can_link_here_but_not_ask(local: Any) -> None:
    client = local.test_client()
    for site in ("cross-site", "same-site"):
        link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert client.get("/sql?sql=SELECT+1", headers=link).status_code == 200
        assert client.post("/_dash-update-component", headers=link, json={}).status_code == 403
        for dest in ("image", "iframe", "script", "empty", "embed"):
            asked = {"Sec-Fetch-Site": site, "Sec-Fetch-Dest": dest}
            assert client.get("/view/sql.csv?sql=SELECT+1", headers=asked).status_code == 403
    own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "empty"}
    assert client.get("/view/sql.csv?sql=SELECT+1", headers=own).status_code == 200


def test_no_answer_may_be_framed_sniffed_or_reach_outside(local: Any) -> None:
    for path in ("/", "/sql", "/view/sql.csv?sql=SELECT+1", "/assets/sparselens.css", "/_dash-layout"):
        headers = local.test_client().get(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'self'" in policy
        assert not re.search(r"https?:|\*", policy)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
