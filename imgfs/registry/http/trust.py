"""Whom TLS believes at one host, and who we say we are there: files named by a configuration, as an SSL context."""

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
    """A file of certificates or keys as it is now: a changed one is another value, so that it is read again."""

    path: str
    version: tuple[int, int, int] = (0, 0, 0)

    @staticmethod
    def of(path: Path) -> CertFile:
        """`path` as it is; one that is missing is a value too, and fails whoever needs it."""
        return CertFile(str(path), file_version(path) or (0, 0, 0))


def file_version(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced or written: inode, size and time; None if it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Trust:
    """Certificates for one host: `ca` beside the system's, `client` as pairs of certificate and key.

    A pair without a key has both in one file. Of several pairs TLS takes the last of each kind of key. With
    `verify` false everybody is believed.
    """

    ca: tuple[CertFile, ...] = ()
    client: tuple[tuple[CertFile, CertFile | None], ...] = ()
    verify: bool = True

    @property
    def paths(self) -> tuple[str, ...]:
        """The files by name, whatever is in them now."""
        pairs = [one for pair in self.client for one in pair if one is not None]
        return tuple(one.path for one in (*self.ca, *pairs))

    def abroad(self) -> Trust:
        """What holds where this host sends us: its authorities still do, our client certificate stays home."""
        return Trust(self.ca)

    def context(self) -> ssl.SSLContext:
        """An SSL context; slow, it reads files. Raises RegistryFailed, naming the file that is of no use."""
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
"""The system's certificates and nothing else."""


class Contexts:
    """The TLS contexts of one Registry, each made once. Safe in threads.

    `system` replaces the system's certificates where no others are configured.
    """

    def __init__(self, system: ssl.SSLContext | None = None) -> None:
        self._contexts: dict[Trust, ssl.SSLContext] = {} if system is None else {SYSTEM: system}
        self._lock = threading.Lock()

    def get(self, trust: Trust = SYSTEM) -> ssl.SSLContext:
        """The context for `trust`; slow the first time. Raises RegistryFailed for certificates of no use."""
        with self._lock:
            if trust not in self._contexts:
                self._contexts[trust] = trust.context()
            return self._contexts[trust]

    def drop(self, trust: Trust) -> None:
        """Forget the one for `trust`, whose files have changed."""
        with self._lock:
            self._contexts.pop(trust, None)


def system_context() -> ssl.SSLContext:
    """The system's certificates, or what SSL_CERT_FILE and SSL_CERT_DIR name instead (OpenSSL reads both)."""
    warn_of_missing(os.environ)
    return ssl.create_default_context()


def warn_of_missing(environment: Mapping[str, str]) -> None:
    """Log what SSL_CERT_FILE and SSL_CERT_DIR name and is not there: OpenSSL says nothing, and then trusts nobody."""
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
