"""The JSON of containers-auth.json(5) and of docker's config.json: bytes in, logins by registry out. Pure.

A key of `auths` is a host or a namespace of it (`host/team/app`); the longest that covers a repository counts. Old
tools wrote URLs (`https://host/v1/`): the scheme goes, and a path that is only the API's version. The hub has one name,
`docker.io`, whatever it is called in there.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from imgfs.errors import Malformed
from imgfs.oci.manifest import decode_json
from imgfs.registry.credentials.credential import Credential

HUB = "docker.io"
HUB_KEY = "https://index.docker.io/v1/"
"""What docker calls the hub in its file, and towards the programs that keep logins."""
_HUB_NAMES = frozenset({HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
_VERSIONS = frozenset({"v1", "v2"})


@dataclass(frozen=True, slots=True)
class Scope:
    """The part of a registry that a login is for: a host, and a namespace or repository in it ("": all of it)."""

    host: str
    path: str = ""

    def covers(self, host: str, repository: str) -> bool:
        """Whether the login is meant for `repository` at `host`."""
        return self.host == host and (not self.path or f"{repository}/".startswith(f"{self.path}/"))


@dataclass(frozen=True, slots=True)
class Entry:
    """One login of a file, or what is wrong with it."""

    scope: Scope
    exact: bool
    """Whether its key has no scheme; such a key goes before one of the same scope that has."""
    credential: Credential | None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class AuthFile:
    """A file, read."""

    entries: tuple[Entry, ...] = ()
    helpers: Mapping[str, str] = field(default_factory=dict[str, str])
    """`credHelpers`: the program that has the login, by host."""
    store: str = ""
    """`credsStore`: the program that has all the others."""

    def entries_for(self, host: str, repository: str) -> list[Entry]:
        """The entries that cover `repository`, the closest first."""
        covering = [entry for entry in self.entries if entry.scope.covers(host, repository)]
        return sorted(covering, key=lambda entry: (-len(entry.scope.path), not entry.exact))


class _Document(msgspec.Struct, frozen=True):
    auths: dict[str, object] | None = None
    credHelpers: dict[str, object] | None = None
    credsStore: str | None = None


class _Auth(msgspec.Struct, frozen=True):
    auth: str | None = None
    username: str | None = None
    password: str | None = None
    identitytoken: str | None = None
    registrytoken: str | None = None

    def __repr__(self) -> str:
        return "_Auth(...)"


def canonical_host(authority: str) -> str:
    """The name under which logins of `authority` (host, or host and port) are kept."""
    host = authority.lower()
    return HUB if host in _HUB_NAMES else host


def server_keys(host: str) -> tuple[str, ...]:
    """What a program is asked for that keeps the logins of `host`, in this order."""
    return (HUB_KEY, HUB) if host == HUB else (host,)


def parse_scope(key: str) -> Scope:
    """The scope that a key of `auths` means; never fails, as a key that means no registry matches none."""
    for scheme in ("https://", "http://"):
        key = key.removeprefix(scheme)
    host, _, path = key.partition("/")
    path = path.strip("/")
    return Scope(canonical_host(host), "" if path in _VERSIONS else path)


def parse_auth_file(data: bytes) -> AuthFile:
    """Read a file; unknown members are other tools' business.

    Raises Malformed for what is no JSON of this shape. One broken entry is its own trouble and nobody else's. No
    message holds a byte of a value.
    """
    try:
        document = msgspec.convert(decode_json(data, "auth file"), _Document)
    except (Malformed, msgspec.ValidationError):
        raise Malformed("not the JSON of an auth file") from None
    helpers = {
        parse_scope(key).host: name for key, name in (document.credHelpers or {}).items() if isinstance(name, str)
    }
    entries = tuple(_entry(key, value) for key, value in (document.auths or {}).items())
    return AuthFile(entries, helpers, document.credsStore or "")


def _entry(key: str, value: object) -> Entry:
    scope, exact = parse_scope(key), "://" not in key
    try:
        credential = _credential(msgspec.convert(value if value is not None else {}, _Auth))
    except (msgspec.ValidationError, ValueError):
        return Entry(scope, exact, None, f"its entry for {scope.host} is no base64 of user:password")
    return Entry(scope, exact, credential or None)


def _credential(auth: _Auth) -> Credential:
    """Raises ValueError for an `auth` that is no base64 of `user:password`."""
    username, password = auth.username or "", auth.password or ""
    if auth.auth:
        username, password = decode_auth(auth.auth)
    return Credential(username, password, auth.identitytoken or "", auth.registrytoken or "")


def decode_auth(text: str) -> tuple[str, str]:
    """User and password out of an `auth` member; raises ValueError. Docker pads passwords with NUL."""
    try:
        plain = b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise ValueError("no base64 of UTF-8") from None
    username, colon, password = plain.partition(":")
    if not colon or not username:
        raise ValueError("no user:password")
    return username, password.strip("\0")


def answered(data: bytes) -> Credential | None:
    """The login in the answer of a program, None for an empty one; raises Malformed.

    Source: docker-credential-helpers, "get". The user `<token>` says that the secret is an identity token.
    """
    try:
        answer = msgspec.convert(decode_json(data, "answer"), dict[str, object])
    except (Malformed, msgspec.ValidationError):
        raise Malformed("its answer is no JSON object") from None
    username, secret = answer.get("Username") or "", answer.get("Secret") or ""
    if not isinstance(username, str) or not isinstance(secret, str):
        raise Malformed("its answer has no Username and Secret")
    if not secret:
        return None
    return Credential(identity_token=secret) if username == "<token>" else Credential(username, secret) or None
