"""Where a registry is: from the host of a reference to a URL, and what a foreign URL must look like to be followed."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import quote, urlsplit

from imgfs.errors import Invalid, RegistryFailed
from imgfs.oci.reference import DEFAULT_HOST, is_host

_ALIASES = {DEFAULT_HOST: "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}
_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"[\x21-\x7e]+\Z")
URL_MAX = 16 << 10


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A registry: `host` as references and messages name it, `scheme` and `authority` as URLs do."""

    host: str
    scheme: str
    authority: str

    @property
    def name(self) -> str:
        """The authority without its port and brackets."""
        return hostname(f"{self.scheme}://{self.authority}")

    def url(self, repository: str, kind: str, selector: str) -> str:
        """The URL of one object of a repository (distribution-spec, "Endpoints")."""
        return f"{self.scheme}://{self.authority}/v2/{quote(repository)}/{kind}/{quote(selector, safe=':')}"


def endpoint(host: str, plain_http: Collection[str] = ()) -> Endpoint:
    """The registry that `host` names: https, but plain http on loopback and for members of `plain_http`.

    `plain_http` holds hosts with their port, or names for every port. Raises Invalid.
    """
    if not is_host(host):
        raise Invalid(f"registry host {host[:260]!r}: expected a name with a dot or a port, or an IP address")
    authority = _ALIASES.get(host, host)
    name = hostname(f"https://{authority}")
    plain = is_loopback(name) or host in plain_http or name in plain_http
    return Endpoint(host, "http" if plain else "https", authority)


def is_loopback(name: str) -> bool:
    """Whether `name` is `localhost` or a literal loopback address."""
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def hostname(url: str) -> str:
    """The lower-case host of a checked URL, without port and brackets."""
    return urlsplit(url).hostname or ""


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a checked URL (RFC 6454): what credentials are bound to."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme]


def check_url(url: str, before: str, what: str) -> str:
    """Return a URL that a registry answered with, if it may be followed from `before`; raises RegistryFailed.

    http and https only, never from https to http, no user name, one line of printable ASCII. `what` begins the message.
    """
    if len(url) > URL_MAX or not _URL.match(url):
        raise RegistryFailed(f"{what}: the address is malformed; report it to the registry's operator")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise RegistryFailed(f"{what}: the address is malformed; report it to the registry's operator") from None
    if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc:
        raise RegistryFailed(f"{what}: expected an http or https address; report it to the registry's operator")
    if before.startswith("https:") and parts.scheme != "https":
        raise RegistryFailed(f"{what}: leads from https to http at {parts.netloc}, which is never followed")
    return parts._replace(fragment="").geturl()
