"""Who may use the page: requests of other pages and of other hosts are refused, and the token is asked for."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from launch.overrides import ConfigError
from launch.serve import guard as module
from launch.serve.guard import COOKIE, MAX_BODY_BYTES, TOKEN_VARIABLE, Guard, is_loopback, read_token

TOKEN = "a-token-of-some-length"


async def page(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    else:
        await PlainTextResponse("the page")(scope, receive, send)


def ask(guard: Guard, path: str = "/", method: str = "GET", kind: str = "http", body: bytes = b"", **headers: str):
    """The status (of a websocket: the type of the answer), the headers and the body of an answer."""
    sent: list[dict[str, Any]] = []
    given = {"host": "127.0.0.1:7860"} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": kind,
        "path": path,
        "method": method,
        "headers": [(name.encode(), value.encode()) for name, value in given.items() if value],
        "query_string": b"",
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))  # pyright: ignore[reportArgumentType]
    if kind == "websocket":
        return sent[0]["type"], {}, ""
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answered, b"".join(each.get("body", b"") for each in sent[1:]).decode()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("127.9.9.9", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_what_is_of_this_machine_alone(host, expected):
    assert is_loopback(host) is expected


def test_without_a_token_only_names_of_this_machine_are_answered():
    guard = Guard(page, None)
    for host in ("127.0.0.1:7860", "localhost", "[::1]:7860", "LOCALHOST:1"):
        assert ask(guard, host=host)[0] == 200
    for host in ("example.org", "127.0.0.1.example.org:7860", "localhost@example.org", "192.168.1.2:7860", "[::1", ""):
        assert ask(guard, host=host)[0] == 403
        assert ask(guard, kind="websocket", host=host)[0] == "websocket.close"


def test_another_page_is_refused_with_and_without_a_token():
    for guard in (Guard(page, None), Guard(page, TOKEN, session="s")):
        known = f"{COOKIE}=s"
        assert ask(guard, origin="http://127.0.0.1:7860", cookie=known)[0] == 200
        assert ask(guard, kind="websocket", origin="http://127.0.0.1:7860", cookie=known)[0] == "websocket.accept"
        for origin in ("http://example.org", "http://127.0.0.1:8080", "null", "http://["):
            assert ask(guard, origin=origin, cookie=known)[0] == 403
            assert ask(guard, kind="websocket", origin=origin, cookie=known)[0] == "websocket.close"


def test_every_answer_forbids_what_is_elsewhere():
    for answer in (ask(Guard(page, None)), ask(Guard(page, TOKEN)), ask(Guard(page, None), host="example.org")):
        assert "default-src 'self'" in answer[1]["content-security-policy"]
        assert "http" not in answer[1]["content-security-policy"]
        assert answer[1]["x-content-type-options"] == "nosniff"


def test_large_bodies_and_those_of_unknown_length_are_refused():
    guard = Guard(page, None)
    assert ask(guard, method="POST", content_length=str(MAX_BODY_BYTES))[0] == 200
    assert ask(guard, method="POST", content_length=str(MAX_BODY_BYTES + 1))[0] == 413
    assert ask(guard, method="POST", transfer_encoding="chunked")[0] == 413


def test_the_token_opens_the_page(monkeypatch):
    monkeypatch.setattr(module, "WRONG_TOKEN_SECONDS", 0.0)
    guard = Guard(page, TOKEN)
    status, _, body = ask(guard, host="gpu.example.org")
    assert status == 401
    assert "the page" not in body
    assert ask(guard, kind="websocket")[0] == "websocket.close"
    assert ask(guard, path="/clips/a.mp4")[0] == 401
    for wrong in (b"", b"token=", b"token=wrong", b"token=" + TOKEN[:-1].encode(), b"token=%ff"):
        status, headers, body = ask(guard, "/login", "POST", body=wrong)
        assert (status, "set-cookie" in headers) == (401, False)
        assert TOKEN not in body
    status, headers, _ = ask(guard, "/login", "POST", body=f"token={TOKEN}".encode())
    assert (status, headers["location"]) == (303, "/")
    cookie = headers["set-cookie"]
    assert TOKEN not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert ask(guard, cookie=cookie.partition(";")[0], host="gpu.example.org")[2] == "the page"
    assert ask(guard, cookie=f"{COOKIE}=wrong")[0] == 401
    assert ask(Guard(page, TOKEN), cookie=cookie.partition(";")[0])[0] == 401  # of another start
    assert ask(guard, "/login", "POST", body=b"token=" + b"a" * 20000, content_length="20006")[0] == 413


def test_others_reach_the_page_with_a_token_only(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token("127.0.0.1", None) is None
    for host in ("0.0.0.0", "gpu.example.org", "::"):
        with pytest.raises(ConfigError, match=f"takes a token.*{TOKEN_VARIABLE}.*--token-file"):
            read_token(host, None)
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert read_token("0.0.0.0", None) == TOKEN
    path = tmp_path / "token"
    path.write_text("another-token-than-that\n")
    assert read_token("127.0.0.1", path) == "another-token-than-that"


@pytest.mark.parametrize(("content", "reason"), [("short-secret", "12 characters"), ("", "0 characters"), (None, "No")])
def test_what_is_no_token_is_refused_and_not_shown(tmp_path, content, reason):
    path: Path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=reason) as refused:
        read_token("127.0.0.1", path)
    assert "secret" not in str(refused.value)
