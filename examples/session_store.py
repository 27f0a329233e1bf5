"""Sessions of a web application: keys that end by themselves, and that outlive the server.

    python examples/session_store.py

    logged in from before: 0
    nobody: 403 Forbidden
    Ann: 200 OK
    Ann, half an hour later: 403 Forbidden
    logged in now: [('Ben',)]

The second time, which is the server started again, Ben is still logged in from the first:

    logged in from before: 1
    nobody: 403 Forbidden
    Ann: 200 OK
    Ann, half an hour later: 403 Forbidden
    logged in now: [('Ben',), ('Ben',)]

`application` is plain WSGI. In a server with threads give each its own `KV(bh.connect())`.
"""

import secrets
from collections.abc import Iterable
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from buckethead import BucketConfig, BucketSQLite

HALF_AN_HOUR = 1800.0


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    cookie = SimpleCookie(environ.get("HTTP_COOKIE", ""))
    if environ["PATH_INFO"].startswith("/login/"):
        cookie["session"] = secrets.token_urlsafe()
        user: str | None = environ["PATH_INFO"].removeprefix("/login/")
    else:
        user = bh.kv.get(f"session:{cookie['session'].value}") if "session" in cookie else None
    if user is None:
        start_response("403 Forbidden", [])
        return [b"Log in first.\n"]
    bh.kv.set(f"session:{cookie['session'].value}", user, ttl=HALF_AN_HOUR)  # begins anew
    start_response("200 OK", [("Set-Cookie", cookie["session"].OutputString())])
    return [f"Hello {user}\n".encode()]


def browse(path: str, cookie: str = "") -> tuple[str, str]:
    """What a browser does: the status of the reply, and the cookie to send the next time."""
    replies: list[tuple[str, str]] = []

    def start_response(status: str, headers: list[tuple[str, str]], error: Any = None) -> Any:
        replies.append((status, dict(headers).get("Set-Cookie", "")))

    application({"PATH_INFO": path, "HTTP_COOKIE": cookie}, start_response)
    return replies[0]


directory = Path("buckethead-data").absolute().as_uri()
with BucketSQLite(BucketConfig(bucket="web", key="sessions.db", endpoint_url=directory)) as bh:
    print("logged in from before:", len(bh.kv.keys("session:")))
    print("nobody:", browse("/")[0])
    _, cookie = browse("/login/Ann")
    browse("/login/Ben")
    print("Ann:", browse("/", cookie)[0])
    # time passes: here by SQL, which has the same keys
    bh.connection.execute("UPDATE bh_kv SET expires_at = unixepoch() - 1 WHERE value = 'Ann'")
    print("Ann, half an hour later:", browse("/", cookie)[0])
    print("logged in now:", bh.connection.execute("SELECT value FROM bh_kv").fetchall())
