"""Who may use the page: this machine's user, or who knows the token; and no other page in their browser.

A browser sends requests to this machine for any page that asks it to. A request is answered only if it was made by the
page itself (its Origin is the host it is sent to), and without a token only if that host is a name of this machine
(another name that leads here is DNS rebinding).
"""

import asyncio
import hmac
import ipaddress
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launch.overrides import ConfigError

TOKEN_VARIABLE = "REELFLOW_SERVE_TOKEN"  # noqa: S105 - its name
MIN_TOKEN = 16  # characters
MAX_BODY_BYTES = 2**26
MAX_LOGIN_BYTES = 2**14
COOKIE = "reelflow_session"
LOGIN = "/login"
WRONG_TOKEN_SECONDS = 1.0
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; frame-ancestors 'none'; "
        "form-action 'self'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
"""Of every answer: a browser loads nothing from other servers for the page, and shows it in no other page."""
_LOGIN_PAGE = """<!doctype html><html lang="en"><title>reelflow</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:16px system-ui;display:grid;place-items:center;height:90vh;color-scheme:light dark}}
form{{display:grid;gap:.8rem;width:20rem}}input,button{{font:inherit;padding:.6rem}}</style>
<form method="post" action="{login}"><b>reelflow</b>{message}
<input type="password" name="token" placeholder="Token" aria-label="Token" autofocus>
<button>Open</button></form></html>"""


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a server that listens there."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:  # a name, which may lead anywhere
        return False


def read_token(host: str, token_file: Path | None) -> str | None:
    """The token that opens the page; None: there is none, and the page is for this machine alone.

    Raises:
        ConfigError: it is missing where others could reach the page, too short, or its file cannot be read.
    """
    place, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE, "")
    if token_file is not None:
        place = str(token_file)
        try:
            token = token_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token-file {token_file} cannot be read: {error}") from error
    token = token.strip()
    if not token and token_file is None:
        if is_loopback(host):
            return None
        raise ConfigError(
            f"--host {host} lets other machines use the page, which takes a token: put one of {MIN_TOKEN} characters "
            f"or more into the variable {TOKEN_VARIABLE} or into a file that --token-file names, for example with "
            "`openssl rand -hex 16`; or leave --host out, and reach the page through `ssh -L`"
        )
    if len(token) < MIN_TOKEN:  # the message must not show it
        raise ConfigError(f"the token in {place} has {len(token)} characters; give it {MIN_TOKEN} or more")
    return token


@dataclass
class Guard:
    """ASGI middleware that refuses what is not from the page of a person who may use it."""

    app: ASGIApp
    token: str | None
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    """The cookie of those who gave the token; another one after each start."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse, or ask for the token."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        refusal = self._refusal(connection)
        if refusal is None and self.token is not None and not self._is_known(connection):
            refusal = await self._asked(scope, receive)
        if refusal is not None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await refusal(scope, receive, _with_headers(send))
            return
        await self.app(scope, receive, _with_headers(send))

    def _refusal(self, connection: HTTPConnection) -> Response | None:
        """Why nobody may send this; None: it may be sent."""
        host, origin = connection.headers.get("host", ""), connection.headers.get("origin")
        if self.token is None and not is_loopback(_hostname(f"//{host}")):
            return PlainTextResponse("this page is reached as localhost or 127.0.0.1 only", 403)
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return PlainTextResponse("another page asked for this", 403)
        length = connection.headers.get("content-length", "0")
        if "transfer-encoding" in connection.headers or not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return PlainTextResponse(f"a body of more than {MAX_BODY_BYTES} bytes, or of unknown length", 413)
        return None

    def _is_known(self, connection: HTTPConnection) -> bool:
        return hmac.compare_digest(connection.cookies.get(COOKIE, "").encode(), self.session.encode())

    async def _asked(self, scope: Scope, receive: Receive) -> Response:
        """What somebody without the cookie gets: the form for the token, or with the right one the cookie."""
        if scope["type"] != "http" or (scope["path"], scope["method"]) != (LOGIN, "POST"):
            return HTMLResponse(_LOGIN_PAGE.format(login=LOGIN, message=""), 401)
        request = Request(scope, receive)
        if int(request.headers.get("content-length", "0")) > MAX_LOGIN_BYTES:
            return PlainTextResponse("no token is that long", 413)
        given = parse_qs((await request.body()).decode("utf-8", "replace")).get("token", [""])[0].strip()
        assert self.token is not None
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            await asyncio.sleep(WRONG_TOKEN_SECONDS)
            return HTMLResponse(_LOGIN_PAGE.format(login=LOGIN, message="<p>That is not the token.</p>"), 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, self.session, httponly=True, samesite="strict")
        return answer


def _hostname(url: str) -> str:
    """The name of the host in a URL; empty where there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return sent
