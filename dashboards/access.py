"""Who is answered: this machine under its own names, or whoever has the token; nobody on behalf of another site.

Without a token only requests to `localhost` and loopback addresses are answered, so that a foreign name that is
pointed at this machine (DNS rebinding) reaches nothing. With a token the cookie is wanted on every address; the
URL that is printed carries the token once and is exchanged for the cookie.
"""

from __future__ import annotations

import ipaddress
import secrets
from hmac import compare_digest
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from flask import Flask, Response, request

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
WANTED = "this SparseLens wants its token: open the address that `sparselens view` printed"
MONTH = 30 * 86_400  # seconds


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server at that host."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def new_token() -> str:
    """256 random bits, fit for a URL."""
    return secrets.token_urlsafe(32)


def register(server: Flask, token: str | None) -> None:
    """Let a server answer this machine only, or with a token whoever shows it."""

    def decide() -> Response | None:
        if _from_another_site():
            return _no("asked by another site")
        return _own_name() if token is None else _shown(token)

    server.before_request(decide)


def from_own_page() -> bool:
    """Whether the request now answered was made by a page of this server: what starts something asks that."""
    site: str = request.headers.get("Sec-Fetch-Site", "same-origin")
    origin = urlsplit(str(request.headers.get("Origin", "")))
    return site == "same-origin" and origin.netloc == str(request.host)


def _no(why: str) -> Response:
    return Response(why, 403, mimetype="text/plain")


def _from_another_site() -> bool:
    """Whether a page of another site asks in somebody's name; links that are followed are fine."""
    site = request.headers.get("Sec-Fetch-Site", "none")
    followed = (request.method, request.headers.get("Sec-Fetch-Dest")) == ("GET", "document")
    return site not in ("none", "same-origin") and not followed


def _own_name() -> Response | None:
    """Refuse requests to a name that is not this machine's."""
    asked = request.host.lower()
    host = asked if asked.endswith("]") else asked.rsplit(":", 1)[0]
    return None if host in LOOPBACK else _no("this host name is not served")


def _shown(token: str) -> Response | None:
    """None with the cookie; the URL's token gives the cookie and leads on; all else is refused."""
    cookie = f"sparselens-{request.environ.get('SERVER_PORT', '')}"
    if _same(request.cookies.get(cookie, ""), token):
        return None
    if request.method != "GET" or not _same(request.args.get("token", ""), token):
        return _no(WANTED)
    rest = urlencode([pair for pair in parse_qsl(request.query_string.decode()) if pair[0] != "token"])
    path = "/" + quote(request.path.lstrip("/\\"))  # `//host` would lead elsewhere
    answer = Response(status=303, headers={"Location": f"{path}?{rest}" if rest else path})
    answer.set_cookie(cookie, token, max_age=MONTH, httponly=True, samesite="Lax")
    return answer


def _same(shown: str, token: str) -> bool:
    return compare_digest(shown.encode(), token.encode())
