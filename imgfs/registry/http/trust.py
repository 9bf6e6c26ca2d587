"""TLS for one host: configured certificate authorities and client certificates, as an SSL context."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from imgfs.errors import RegistryFailed

_log = logging.getLogger("imgfs.registry")


@dataclass(frozen=True, slots=True)
class CertFile:
    """A version of a file of certificates or keys. A changed file has a different value, so it is read again."""

    path: str
    version: tuple[int, int, int] = (0, 0, 0)

    @staticmethod
    def of(path: Path) -> CertFile:
        """Return the current state of `path`. A missing file is a value too; loading it fails."""
        return CertFile(str(path), file_version(path) or (0, 0, 0))


def file_version(path: Path) -> tuple[int, int, int] | None:
    """Return inode, size and mtime, which together identify a version of the file; None if it is missing."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Trust:
    """Certificates for one host.

    `ca` are authorities in addition to the system's. `client` are pairs of certificate and key; without a key, the
    certificate file contains both. Of several pairs, OpenSSL uses the last of each key type. If `verify` is false,
    every server certificate is accepted.
    """

    ca: tuple[CertFile, ...] = ()
    client: tuple[tuple[CertFile, CertFile | None], ...] = ()
    verify: bool = True

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the files, regardless of their content."""
        pairs = [one for pair in self.client for one in pair if one is not None]
        return tuple(one.path for one in (*self.ca, *pairs))

    def abroad(self) -> Trust:
        """Return the trust for redirect targets of this host: the same authorities, without client certificates."""
        return Trust(self.ca)

    def context(self) -> ssl.SSLContext:
        """Return an SSL context. Slow: it reads files. Raises RegistryFailed, which names the unusable file."""
        context = system_context()
        for file in self.ca:
            _load(file.path, lambda path=file.path: context.load_verify_locations(path))
        for certificate, key in self.client:
            _load(certificate.path, lambda one=certificate, key=key: _load_pair(context, one, key))
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


SYSTEM = Trust()
"""The system's certificates only."""


class Contexts:
    """The TLS contexts of one Registry, each made once. Safe in threads.

    `system` replaces the system's certificates where no others are configured.
    """

    def __init__(self, system: ssl.SSLContext | None = None) -> None:
        self._contexts: dict[Trust, ssl.SSLContext] = {} if system is None else {SYSTEM: system}
        self._lock = threading.Lock()

    def get(self, trust: Trust = SYSTEM) -> ssl.SSLContext:
        """Return the context for `trust`. The first call is slow. Raises RegistryFailed for unusable certificates."""
        with self._lock:
            if trust not in self._contexts:
                self._contexts[trust] = trust.context()
            return self._contexts[trust]

    def drop(self, trust: Trust) -> None:
        """Forget the context for `trust`, whose files have changed."""
        with self._lock:
            self._contexts.pop(trust, None)


def system_context() -> ssl.SSLContext:
    """Return a context with the system's certificates, or those of SSL_CERT_FILE and SSL_CERT_DIR (read by OpenSSL)."""
    warn_of_missing(os.environ)
    return ssl.create_default_context()


def warn_of_missing(environment: Mapping[str, str]) -> None:
    """Log missing paths of SSL_CERT_FILE and SSL_CERT_DIR: OpenSSL ignores these silently and trusts no host."""
    named = [environment.get("SSL_CERT_FILE", ""), *environment.get("SSL_CERT_DIR", "").split(":")]
    for path in filter(None, named):
        if not os.access(path, os.R_OK):
            _log.warning("cannot be read; check SSL_CERT_FILE and SSL_CERT_DIR", extra={"path": path})


def _load_pair(context: ssl.SSLContext, certificate: CertFile, key: CertFile | None) -> None:
    # Without a password OpenSSL would ask for one on the terminal.
    context.load_cert_chain(certificate.path, key.path if key else None, password="")


def _load(path: str, load: Callable[[], object]) -> None:
    try:
        load()
    except ssl.SSLError as error:
        raise RegistryFailed(
            f"{path}: is of no use for TLS ({error.reason or 'no PEM'}); check the file, its key and hosts.toml"
        ) from None
    except OSError as error:
        raise RegistryFailed(f"{path}: {error.strerror}; check the certificates that hosts.toml names") from None
