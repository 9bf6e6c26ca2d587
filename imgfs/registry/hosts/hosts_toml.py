"""The directories of `certs_d`: which hosts stand in for a registry, with which certificates and headers.

One directory a registry, with a hosts.toml in the form that containerd documents, or with certificates alone.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import SplitResult, urlsplit

from imgfs.aio.threads import run_disk
from imgfs.errors import RegistryFailed
from imgfs.registry.hosts.endpoint import CAPABILITIES, Endpoint, authority_of, endpoint, host_of, is_plain
from imgfs.registry.http.trust import CertFile, Trust
from imgfs.spelling import hint

Table = dict[str, object]

CONNECT_MAX = 60.0
SIZE_MAX = 1 << 20
_HOST_KEYS = (
    "capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout", "proxy",
)  # fmt: skip
_ROOT_KEYS = ("server", "host", *_HOST_KEYS)
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_AUTHORITY = re.compile(r"[A-Za-z0-9._:\[\]-]+\Z")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\x80-\xff\t]*\Z")
_OURS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "range", "if-range", "upgrade"}
)
"""Headers that imgfs sets itself. A configured header with such a name would break requests."""
FILE_NAME = "hosts.toml"
DEFAULT = "_default"
_KNOWN_MAX = 1024
_log = logging.getLogger("imgfs.registry")


class Hosts(NamedTuple):
    """The content of a hosts.toml: the hosts to ask, in order, and warnings about the file."""

    endpoints: tuple[Endpoint, ...]
    warnings: tuple[str, ...]


def read_hosts(text: bytes, path: Path, host: str, plain_http: Collection[str] = ()) -> Hosts:
    """Parse the hosts.toml at `path` for the registry `host`: its tables in order, then its server.

    Without `server`, the server is the registry itself. Blocks, because it stats the named certificates. Raises
    RegistryFailed, which names the file and the key.
    """
    root = _decoded(text, path)
    file = _File(path, host, plain_http)
    tables = file.table(root, "host")
    warnings = file.unknown(root, _ROOT_KEYS, "")
    mirrors: list[Endpoint] = []
    for address in tables:
        table = file.table(tables, address)
        warnings += file.unknown(table, _HOST_KEYS, f"host.{address!r}: ")
        mirrors.append(file.endpoint(address, table))
    server = file.server(root)
    twin = [one for one in mirrors if (one.base, one.path) == (server.base, server.path)]
    # Most files set options of the server in a table for the server itself, which must not be asked twice.
    settled = any(one.capabilities >= server.capabilities for one in twin)
    everybody = [replace(one, mirror=False) if one in twin else one for one in mirrors]
    return Hosts((*everybody, *(() if settled else (server,))), tuple(warnings))


def _decoded(text: bytes, path: Path) -> Table:
    if len(text) > SIZE_MAX:
        raise RegistryFailed(f"{path}: has {len(text)} bytes, the limit is {SIZE_MAX}")
    try:
        return tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RegistryFailed(f"{path}: is no TOML ({error}); correct it, or move it away") from None


class _File:
    """One hosts.toml: reads values, and names the file in errors about them."""

    def __init__(self, path: Path, host: str, plain_http: Collection[str]) -> None:
        self._path = path
        self._host = host
        self._plain_http = plain_http

    def wrong(self, key: str, expected: str) -> RegistryFailed:
        """Return the error for a value. The message omits the value, which may be a secret."""
        return RegistryFailed(f"{self._path}: {key}: expected {expected}; correct it, then read again")

    def table(self, outer: Table, key: str) -> Table:
        """Return the table `key`, empty if there is none."""
        found = outer.get(key, {})
        if not isinstance(found, dict):
            raise self.wrong(_shown(key), "a table")
        return cast(Table, found)

    def unknown(self, table: Table, known: Collection[str], where: str) -> list[str]:
        """Return a warning for each unknown key."""
        odd = [key for key in table if key not in known]
        return [f"{self._path}: {where}unknown key {key[:80]!r} is ignored; {hint(key, known)}" for key in odd]

    def server(self, root: Table) -> Endpoint:
        """Return the registry itself, with the settings at the top of the file."""
        address = self._text(root, "server", "a URL")
        if address:
            return replace(self.endpoint(address, root), mirror=False)
        return replace(self.endpoint(authority_of(self._host), root), mirror=False)

    def endpoint(self, address: str, table: Table) -> Endpoint:
        """Return the endpoint for one address and its settings."""
        trust = self._trust(table)
        url = self._url(address, trust)
        authority = authority_of(url.netloc)
        return Endpoint(
            host_of(authority),
            url.scheme,
            authority,
            path=self._root(url.path, override=self._flag(table, "override_path")),
            ns="" if authority == authority_of(self._host) else self._host,
            mirror=True,
            capabilities=self._capabilities(table),
            trust=trust,
            headers=tuple(self._headers(table)),
            connect=self._timeout(table),
            proxy=self._proxy(table),
        )

    def _url(self, address: str, trust: Trust) -> SplitResult:
        try:
            scheme = "http" if is_plain(address, trust, self._plain_http) else "https"
            text = address if "://" in address else f"{scheme}://{address}"
            url = urlsplit(text)
            _ = url.port
        except ValueError:
            raise self.wrong(_shown(address), "a URL") from None
        odd = url.query or url.fragment or not _AUTHORITY.match(url.netloc) or not re.fullmatch(r"[\x21-\x7e]+", text)
        if url.scheme not in {"http", "https"} or not url.hostname or odd:
            raise self.wrong(_shown(address), "the http or https address of a registry, without user and query")
        return url

    def _root(self, path: str, *, override: bool) -> str:
        """Return the path below which repositories begin: with /v2 appended, unless `override` is set."""
        clean = posixpath.normpath(path).lstrip("/") if path else ""
        clean = f"/{clean}" if clean else ""
        return clean if override or clean.endswith("/v2") else f"{clean}/v2"

    def _capabilities(self, table: Table) -> frozenset[str]:
        named = self._strings(table, "capabilities", "a list of capabilities")
        for one in named:
            if one not in CAPABILITIES:
                raise self.wrong(f"capabilities: {one[:80]!r}", f"one of {', '.join(sorted(CAPABILITIES))}")
        return frozenset(named) or CAPABILITIES

    def _trust(self, table: Table) -> Trust:
        return Trust(
            tuple(self._file(one, "ca") for one in self._strings(table, "ca", "a path or a list of paths")),
            tuple(self._clients(table)),
            verify=not self._flag(table, "skip_verify"),
        )

    def _clients(self, table: Table) -> Iterable[tuple[CertFile, CertFile | None]]:
        expected = "a path, a list of paths, or a list of pairs [certificate, key]"
        given = table.get("client", [])
        for one in _listed(given, self.wrong("client", expected)):
            pair = [one, ""] if isinstance(one, str) else cast(list[object], one) if isinstance(one, list) else []
            if len(pair) == 1:
                pair = [*pair, ""]
            if len(pair) != 2 or not all(isinstance(path, str) for path in pair) or not pair[0]:
                raise self.wrong("client", expected)
            certificate, key = cast(list[str], pair)
            yield self._file(certificate, "client"), self._file(key, "client") if key else None

    def _file(self, path: str, key: str) -> CertFile:
        if "\0" in path:
            raise self.wrong(key, "a path, which has no NUL")
        return CertFile.of(self._path.parent / path)

    def _headers(self, table: Table) -> Iterable[tuple[str, str]]:
        headers = self.table(table, "header")
        for name in headers:
            key = f"header {name[:80]!r}"
            value = ", ".join(self._strings(headers, name, "a string or a list of strings", key))
            if not _HEADER_NAME.match(name) or not _HEADER_VALUE.match(value):
                raise self.wrong(key, "a name and a value of one line in ASCII")
            if name.lower() in _OURS:
                raise self.wrong(key, "another name, this one belongs to the request")
            yield name.lower(), value

    def _timeout(self, table: Table) -> float | None:
        text = self._text(table, "dial_timeout", "a duration like '3s'")
        if not text:
            return None
        parts = _DURATION.findall(text)
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
        if "".join(number + unit for number, unit in parts) != text or not 0 < seconds < 1e6:
            raise self.wrong("dial_timeout", "a duration like '3s' or '500ms'")
        return min(seconds, CONNECT_MAX)

    def _proxy(self, table: Table) -> str:
        proxy = self._text(table, "proxy", "a URL")
        if proxy and not re.fullmatch(r"https?://[\x21-\x7e]+", proxy):
            raise self.wrong("proxy", "the http or https address of a proxy")
        return proxy

    def _strings(self, table: Table, key: str, expected: str, shown: str = "") -> list[str]:
        error = self.wrong(shown or key, expected)
        found = _listed(table.get(key, []), error)
        if not all(isinstance(one, str) and one for one in found):
            raise error
        return cast(list[str], found)

    def _text(self, table: Table, key: str, expected: str) -> str:
        """Return the string `key`, "" if there is none."""
        found = table.get(key, "")
        if not isinstance(found, str):
            raise self.wrong(key, expected)
        return found

    def _flag(self, table: Table, key: str) -> bool:
        """Return whether `key` is true."""
        found = table.get(key, False)
        if not isinstance(found, bool):
            raise self.wrong(key, "true or false")
        return found


def _listed(value: object, error: RegistryFailed) -> list[object]:
    """Return `value` as a list. A string means a list with that string."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise error
    return cast(list[object], value)


def _shown(address: str) -> str:
    """Return an address for messages, without user and query, which may be secrets."""
    return repr(address.rpartition("@")[2].partition("?")[0][:200])


class HostDirectories:
    """The configuration of hosts below `roots`. Each call reads it from disk."""

    def __init__(self, roots: Sequence[str | Path] = (), plain_http: Collection[str] = ()) -> None:
        self._roots = [Path(root) for root in roots]
        self._plain_http = frozenset(plain_http)
        self._warned: set[object] = set()

    async def find(self, host: str) -> tuple[Endpoint, ...]:
        """Return the hosts to ask for images of `host`, in order.

        Raises Invalid if `host` is not a host, and RegistryFailed if a file cannot be read or has a wrong value. imgfs
        then asks no host, because the file may exist to keep requests from some hosts.
        """
        if not self._roots:
            return (endpoint(host, self._plain_http),)
        return await run_disk(self.endpoints, host)

    def endpoints(self, host: str) -> tuple[Endpoint, ...]:
        """As `find`, but blocks."""
        alone = endpoint(host, self._plain_http)
        directory = self._find(host)
        if directory is None:
            return (alone,)
        path = directory / FILE_NAME
        text = self._read(path)
        if text is None:
            return (endpoint(host, self._plain_http, _docker_trust(directory)),)
        found: Hosts = read_hosts(text, path, host, self._plain_http)
        for warning in found.warnings:
            self._warn(warning)
        return found.endpoints

    def _find(self, host: str) -> Path | None:
        for name in (*names(host), DEFAULT):
            for root in self._roots:
                if self._is_directory(root / name):
                    return root / name
        return None

    def _is_directory(self, path: Path) -> bool:
        try:
            return path.is_dir()
        except OSError as error:
            # The daemon may not read another user's configuration, and continues without it.
            self._warn(f"{path.parent}: cannot be read ({error.strerror}); imgfs pulls images without its settings")
            return False

    def _read(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RegistryFailed(f"{path}: {error.strerror}; let the daemon's user read it") from None

    def _warn(self, warning: str) -> None:
        if warning not in self._warned and len(self._warned) < _KNOWN_MAX:
            self._warned.add(warning)
            _log.warning("configuration of hosts", extra={"warning": warning})


def names(host: str) -> list[str]:
    """Return the possible names of the directory of `host`."""
    name, colon, port = host.rpartition(":")
    return [f"{name}_{port}_", host] if colon and port.isdigit() else [host]


def _docker_trust(directory: Path) -> Trust:
    files = sorted(os.listdir(directory))
    ca = tuple(CertFile.of(directory / name) for name in files if name.endswith(".crt"))
    return Trust(ca, tuple(_pairs(directory, files)))


def _pairs(directory: Path, files: Sequence[str]) -> Iterator[tuple[CertFile, CertFile | None]]:
    """Return pairs of certificate and key. A missing key is reported when the pair is loaded."""
    for name in files:
        if name.endswith(".cert"):
            key = directory / f"{name.removesuffix('.cert')}.key"
            yield CertFile.of(directory / name), CertFile.of(key)
