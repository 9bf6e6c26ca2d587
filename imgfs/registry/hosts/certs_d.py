"""certs.d: the directories in which a machine says how each registry is reached, looked up anew for each request.

`<host>_<port>_/`, `<host>:<port>/` (`<host>/` without a port) or `_default/`, in the first directory of the path that
has one; in it hosts.toml, or docker's files: *.crt for authorities, *.cert with *.key for ourselves.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from imgfs.aio.threads import run_disk
from imgfs.errors import RegistryFailed
from imgfs.registry.hosts.endpoint import Endpoint, endpoint
from imgfs.registry.hosts.hosts_toml import Hosts, read_hosts
from imgfs.registry.http.trust import CertFile, Trust

FILE_NAME = "hosts.toml"
DEFAULT = "_default"
_KNOWN_MAX = 1024
_log = logging.getLogger("imgfs.registry")


class HostDirectories:
    """The configuration of hosts below `roots`, as it is on disk at every call."""

    def __init__(self, roots: Sequence[str | Path] = (), plain_http: Collection[str] = ()) -> None:
        self._roots = [Path(root) for root in roots]
        self._plain_http = frozenset(plain_http)
        self._warned: set[object] = set()

    async def find(self, host: str) -> tuple[Endpoint, ...]:
        """Who is asked for images of `host`, in this order.

        Raises Invalid for what is no host, and RegistryFailed for a file that cannot be read or has a wrong value: whom
        it keeps requests from is not known then.
        """
        if not self._roots:
            return (endpoint(host, self._plain_http),)
        return await run_disk(self.endpoints, host)

    def endpoints(self, host: str) -> tuple[Endpoint, ...]:
        """As `find`, blocking."""
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
            # Another user's configuration is nobody's business; the daemon goes without.
            self._warn(f"{path.parent}: cannot be looked into ({error.strerror}); images come without its settings")
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
    """What the directory of `host` may be called."""
    name, colon, port = host.rpartition(":")
    return [f"{name}_{port}_", host] if colon and port.isdigit() else [host]


def _docker_trust(directory: Path) -> Trust:
    files = sorted(os.listdir(directory))
    ca = tuple(CertFile.of(directory / name) for name in files if name.endswith(".crt"))
    return Trust(ca, tuple(_pairs(directory, files)))


def _pairs(directory: Path, files: Sequence[str]) -> Iterator[tuple[CertFile, CertFile | None]]:
    """A certificate without its key fails when it is loaded, and says so."""
    for name in files:
        if name.endswith(".cert"):
            key = directory / f"{name.removesuffix('.cert')}.key"
            yield CertFile.of(directory / name), CertFile.of(key)
