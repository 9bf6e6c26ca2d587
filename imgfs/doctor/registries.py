"""Checks of the configuration of registries: hosts.toml, certificates, logins, proxies. They send no request."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from imgfs.doctor.diagnosis import Diagnosis, ok, warn
from imgfs.errors import ImgfsError
from imgfs.registry.credentials.authfile import AuthFile, Identity, auth_files, parse_auth_file, read_auth_file
from imgfs.registry.hosts.hosts_toml import DEFAULT, FILE_NAME, Hosts, read_hosts

_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def hosts(roots: Sequence[str], plain_http: Collection[str] = ()) -> Iterator[Diagnosis]:
    """Check that every hosts.toml and the certificates named in it can be read."""
    count = 0
    for root in map(Path, roots):
        try:
            directories = sorted(path for path in root.iterdir() if path.is_dir())
        except FileNotFoundError:
            continue
        except OSError as error:
            yield warn(str(root), f"cannot be read: {error.strerror}", "let the daemon's user read it")
            continue
        for directory in directories:
            count += 1
            yield from _host(directory, plain_http)
    yield ok("hosts_path", f"{count} registries are configured in {', '.join(roots) or 'no directory'}")


def logins(identity: Identity, chosen: str = "") -> Iterator[Diagnosis]:
    """Check that every auth file is readable only for its owner, and that its credential helpers are installed."""
    files = [Path(chosen)] if chosen else auth_files(identity)
    found = [path for path in files if os.path.lexists(path)]
    if chosen and not found:
        yield warn("auth_file", f"{chosen} does not exist: no login is used", "correct auth_file in imgfs.toml")
    elif not found:
        yield ok("logins", "none; `skopeo login` or `podman login` creates one")
    for path in found:
        yield from _login(path, identity.environment.get("PATH"))


def proxies(environment: Mapping[str, str]) -> Iterator[Diagnosis]:
    """Check the proxy variables of the environment. User and password are not shown."""
    for name in (*_PROXIES, *map(str.lower, _PROXIES)):
        if value := environment.get(name):
            host = _host_of(value)
            if host:
                yield ok(f"${name}", f"requests use the proxy {host}")
            else:
                yield warn(f"${name}", "is not a proxy address", "use http://HOST:PORT")


def certificates(environment: Mapping[str, str]) -> Iterator[Diagnosis]:
    """Check that the files that replace the system's certificates can be read: otherwise TLS verification fails."""
    for name in _CERTIFICATES:
        for path in filter(None, environment.get(name, "").split(":" if name.endswith("DIR") else "\0")):
            if os.access(path, os.R_OK):
                yield ok(f"${name}", f"certificates are read from {path}")
            else:
                yield warn(f"${name}", f"{path} cannot be read: no registry can be verified", "correct or unset it")


def _host(directory: Path, plain_http: Collection[str]) -> Iterator[Diagnosis]:
    path = directory / FILE_NAME
    try:
        found: Hosts = read_hosts(path.read_bytes(), path, _named(directory.name), plain_http)
        for endpoint in found.endpoints:
            endpoint.trust.context()
    except FileNotFoundError:
        return
    except OSError as error:
        yield warn(
            str(path), f"{error.strerror}: nothing is fetched from this registry", "let the daemon's user read it"
        )
    except ImgfsError as error:
        what, _, cure = error.message.removeprefix(f"{path}: ").rpartition("; ")
        yield warn(str(path), f"{what}: nothing is fetched from this registry", cure)
    else:
        for warning in found.warnings:
            what, _, cure = warning.removeprefix(f"{path}: ").rpartition("; ")
            yield warn(str(path), what, cure)


def _named(directory: str) -> str:
    """Return the registry of a configuration directory; for `_default`, any registry."""
    if directory == DEFAULT:
        return "registry.invalid"
    if directory.endswith("_"):
        return ":".join(directory.removesuffix("_").rsplit("_", 1))
    return directory


def _login(path: Path, search: str | None) -> Iterator[Diagnosis]:
    subject = str(path)
    try:
        read = read_auth_file(path, None)
        assert read is not None
        found = parse_auth_file(read[1])
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        yield warn(
            subject, f"cannot be read: {error.strerror}; its logins are not used", "let the daemon's user read it"
        )
        return
    except ImgfsError as error:
        yield warn(subject, f"{error.message}: its logins are not used", "log in again, or correct the file")
        return
    if mode & 0o077:
        yield warn(subject, f"has mode {mode:03o}: other users can read or change it", f"`chmod 600 {subject}`")
    for entry in found.entries:
        if entry.trouble:
            yield warn(subject, entry.trouble, "log in again")
    yield from (
        warn(
            subject, f"names {program}, which is not in PATH", "install it, or log in again without a credential helper"
        )
        for program in _programs(found)
        if shutil.which(program, path=search) is None
    )
    yield ok(subject, f"has {len(found.entries)} logins and names {len(_programs(found))} credential helpers")


def _programs(found: AuthFile) -> list[str]:
    names = dict.fromkeys([*found.helpers.values(), found.store])
    return [f"docker-credential-{name}" for name in names if name]


def _host_of(proxy: str) -> str:
    """Return host and port of a proxy's address, or an empty string if it is not an address."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return ""
    return f"{parts.hostname}{port}" if parts.hostname and parts.scheme in ("http", "https") else ""
