"""A token endpoint on loopback: Basic, identity tokens, and a log of requests.

It implements distribution's "Token Authentication" and the refresh_token grant of its OAuth2 part. `issue` creates the
tokens, so the same server works for fake and real registries.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast
from urllib.parse import parse_qs, urlsplit

from tests.support.serving import served

Issue = Callable[[str, str], str]
"""Returns a token for a scope and a user ("" for anonymous)."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One request: method, path with query, authorization, and the form of a POST."""

    method: str
    path: str
    authorization: str
    form: dict[str, str]

    @property
    def scope(self) -> str:
        """The requested scopes, separated by spaces; "" for a login without scopes."""
        return self.form.get("scope") or " ".join(parse_qs(urlsplit(self.path).query).get("scope", []))


class TokenServer(ThreadingHTTPServer):
    """Gives tokens at `url` to `logins` (password by user) and to `identities` (user by identity token)."""

    daemon_threads = True

    def __init__(self, issue: Issue, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), _Handler)
        self.issue = issue
        self.logins: dict[str, str] = {}
        self.identities: dict[str, str] = {}
        self.takes_anybody = False
        """Whether a request without a login gets a token, too."""
        self.has_oauth2 = True
        self.successor = ""
        """The identity token in answers to identity tokens."""
        self.shown: list[Shown] = []

    @property
    def url(self) -> str:
        """The realm of challenges."""
        return f"http://{self.server_address[0]}:{self.server_port}/auth"

    def user_of(self, request: Shown) -> str | None:
        """Return the user of a request; None if the request is refused."""
        if request.method == "POST":
            return self.identities.get(request.form.get("refresh_token", ""))
        if not request.authorization:
            return "" if self.takes_anybody else None
        return next((user for user in self.logins if request.authorization == basic(user, self.logins[user])), None)


def basic(username: str, password: str) -> str:
    """Return an Authorization header."""
    return f"Basic {b64encode(f'{username}:{password}'.encode()).decode()}"


@contextmanager
def token_server(issue: Issue, address: str = "127.0.0.1") -> Generator[TokenServer]:
    """Run a token endpoint until the block ends."""
    with served(TokenServer(issue, address)) as server:
        yield server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = cast("TokenServer", self.server)
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        request = Shown(self.command, self.path, self.headers.get("Authorization", ""), form)
        server.shown.append(request)
        if self.command == "POST" and not server.has_oauth2:
            return self._answer(404, {})
        user = server.user_of(request)
        if user is None:
            return self._answer(401, {"errors": [{"code": "UNAUTHORIZED"}]})
        member = "access_token" if self.command == "POST" else "token"
        answer: dict[str, object] = {member: server.issue(request.scope, user), "expires_in": 300}
        if self.command == "POST" and server.successor:
            answer["refresh_token"] = server.successor
        return self._answer(200, answer)

    do_POST = do_PUT = do_PATCH = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
