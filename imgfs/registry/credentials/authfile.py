"""Auth files of container tools (containers-auth.json(5)): where they are searched, and what they say of a host."""

from __future__ import annotations

import binascii
import logging
import os
import pwd
import stat
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from imgfs.errors import Malformed, TooLarge
from imgfs.oci.manifest import decode_json

SIZE_MAX = 1 << 20
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_log = logging.getLogger("imgfs.registry")

HUB = "docker.io"
HUB_KEY = "https://index.docker.io/v1/"
"""Docker's name for the hub in its auth file, and in requests to credential helpers."""
_HUB_NAMES = frozenset({HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
_VERSIONS = frozenset({"v1", "v2"})

Signature = tuple[int, int, int, int]
"""Device, inode, size and ctime in ns of a file. At least one changes if the file is replaced or rewritten."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The user whose logins are used, with the environment in which that user's tools would search for them."""

    environment: Mapping[str, str]
    """Includes HOME and PATH, also if init or mount(8) started the daemon without them."""
    uid: int

    @property
    def home(self) -> Path:
        """The home directory."""
        return Path(self.environment["HOME"])


def own_identity() -> Identity:
    """Return the identity of this process. HOME defaults to the user database's, PATH to the usual directories."""
    given = {"PATH": _SEARCH_PATH, "HOME": _home_of(os.geteuid())}
    return Identity(given | {key: value for key, value in os.environ.items() if value}, os.geteuid())


def _home_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return "/nonexistent"


def auth_files(identity: Identity) -> list[Path]:
    """Return the auth files in search order, whether they exist or not.

    The order is that of containers-auth.json(5): $REGISTRY_AUTH_FILE, or else the file in the runtime directory (also
    where login tools put it without XDG_RUNTIME_DIR); the file in the configuration directory; docker's file.
    """
    environment, home = identity.environment, identity.home
    named = environment.get("REGISTRY_AUTH_FILE")
    runtime = environment.get("XDG_RUNTIME_DIR") or f"/run/user/{identity.uid}"
    first = [Path(named)] if named else [Path(runtime, "containers"), Path(f"/run/containers/{identity.uid}")]
    configuration = Path(environment.get("XDG_CONFIG_HOME") or home / ".config", "containers")
    docker = Path(environment.get("DOCKER_CONFIG") or home / ".docker", "config.json")
    files = [*(path if named else path / "auth.json" for path in first), configuration / "auth.json", docker]
    return list(dict.fromkeys(files))


def read_auth_file(path: Path, known: Signature | None) -> tuple[Signature, bytes] | None:
    """Return the signature and bytes of a file, or None if its signature is still `known`. Blocks.

    Raises OSError, Malformed (not a regular file) and TooLarge. A file that other users own, or can read or write, is
    used with a warning in the log.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise Malformed("it is no regular file")
        signature = facts.st_dev, facts.st_ino, facts.st_size, facts.st_ctime_ns
        if signature == known:
            return None
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(SIZE_MAX + 1)
    finally:
        os.close(descriptor)
    if len(data) > SIZE_MAX:
        raise TooLarge(f"it is larger than {SIZE_MAX} bytes")
    _warn_of_others(path, facts)
    return signature, data


def _warn_of_others(path: Path, facts: os.stat_result) -> None:
    mode = stat.S_IMODE(facts.st_mode)
    said = {"file": os.fsdecode(path), "mode": f"{mode:04o}", "owner": facts.st_uid}
    if facts.st_uid not in {0, os.geteuid()}:
        _log.warning("the auth file belongs to another user, who can change what imgfs logs in with", extra=said)
    if mode & 0o022:
        _log.warning("the auth file can be changed by other users; chmod 600 it", extra=said)
    elif mode & 0o004:
        _log.warning("the auth file can be read by other users; chmod 600 it", extra=said)


@dataclass(frozen=True, slots=True)
class Credential:
    """One login: a user with a password, an identity token (for the token endpoint), or a registry token."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    """A bearer token for the registry itself, without a token endpoint."""

    def __bool__(self) -> bool:
        """Whether the login contains something to show."""
        return bool(self.has_password or self.identity_token or self.registry_token)

    @property
    def has_password(self) -> bool:
        """Whether the login can answer a Basic challenge."""
        return bool(self.username and self.password)

    def basic(self) -> str:
        """Return the value of a Basic Authorization header (RFC 7617)."""
        return f"Basic {b64encode(f'{self.username}:{self.password}'.encode()).decode()}"


@dataclass(frozen=True, slots=True)
class Login:
    """The result of a search for a login to `host`. Without a credential, access is anonymous."""

    host: str
    """The host as a user types it to log in."""
    credential: Credential | None = None
    source: str = ""
    """The file with the login, and the credential helper that it names, if one was asked."""
    consulted: tuple[str, ...] = ()
    """The auth files that exist."""
    troubles: tuple[str, ...] = ()
    """Reasons why found logins could not be used."""

    def advice(self, act: str = "read it") -> str:
        """Return one sentence on what to do about a refusal. `act` is the refused act."""
        renew = f"`skopeo login {self.host}` or `podman login {self.host}`, run as the daemon's user,"
        if self.credential is not None:
            return f"{renew} renews that login, or this account may not {act}"
        told = "; ".join(self.troubles)
        if told:
            return f"it may not exist or need a login, and {told}"
        looked = f"none is in {', '.join(self.consulted)}" if self.consulted else "there is no auth file"
        return f"it may not exist or need a login, and {looked}; {renew} writes one"


@dataclass(frozen=True, slots=True)
class Scope:
    """The part of a registry that a login is for: a host, and a namespace or repository ("": all repositories)."""

    host: str
    path: str = ""

    def covers(self, host: str, repository: str) -> bool:
        """Whether the login is meant for `repository` at `host`."""
        return self.host == host and (not self.path or f"{repository}/".startswith(f"{self.path}/"))


@dataclass(frozen=True, slots=True)
class AuthEntry:
    """One login of a file, or the reason why it cannot be used."""

    scope: Scope
    exact: bool
    """Whether its key has no scheme. Such a key precedes a key with a scheme for the same scope."""
    credential: Credential | None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class AuthFile:
    """The content of an auth file."""

    entries: tuple[AuthEntry, ...] = ()
    helpers: Mapping[str, str] = field(default_factory=dict[str, str])
    """`credHelpers`: the credential helper for each host."""
    store: str = ""
    """`credsStore`: the credential helper for all other hosts."""

    def entries_for(self, host: str, repository: str) -> list[AuthEntry]:
        """Return the entries that cover `repository`, the most specific first."""
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
    """Return the name under which logins for `authority` (host, or host and port) are saved."""
    host = authority.lower()
    return HUB if host in _HUB_NAMES else host


def server_keys(host: str) -> tuple[str, ...]:
    """Return the names by which to ask a credential helper for `host`, in this order."""
    return (HUB_KEY, HUB) if host == HUB else (host,)


def parse_scope(key: str) -> Scope:
    """Return the scope of a key of `auths`. Never raises: a key that names no registry matches none."""
    for scheme in ("https://", "http://"):
        key = key.removeprefix(scheme)
    host, _, path = key.partition("/")
    path = path.strip("/")
    return Scope(canonical_host(host), "" if path in _VERSIONS else path)


def parse_auth_file(data: bytes) -> AuthFile:
    """Parse an auth file. Unknown members are ignored.

    Raises Malformed if the file is not the JSON of an auth file. A broken entry does not affect other entries. Messages
    never contain values.
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


def _entry(key: str, value: object) -> AuthEntry:
    scope, exact = parse_scope(key), "://" not in key
    try:
        credential = _credential(msgspec.convert(value if value is not None else {}, _Auth))
    except (msgspec.ValidationError, ValueError):
        return AuthEntry(scope, exact, None, f"its entry for {scope.host} is no base64 of user:password")
    return AuthEntry(scope, exact, credential or None)


def _credential(auth: _Auth) -> Credential:
    """Return the login of an entry. Raises ValueError if `auth` is not the base64 of `user:password`."""
    username, password = auth.username or "", auth.password or ""
    if auth.auth:
        username, password = decode_auth(auth.auth)
    return Credential(username, password, auth.identitytoken or "", auth.registrytoken or "")


def decode_auth(text: str) -> tuple[str, str]:
    """Return the user and the password of an `auth` member. Raises ValueError. Docker pads passwords with NUL."""
    try:
        plain = b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise ValueError("no base64 of UTF-8") from None
    username, colon, password = plain.partition(":")
    if not colon or not username:
        raise ValueError("no user:password")
    return username, password.strip("\0")


def answered(data: bytes) -> Credential | None:
    """Return the login in the answer of a credential helper, or None if it is empty. Raises Malformed.

    Source: docker-credential-helpers, "get". For the user `<token>` the secret is an identity token.
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
