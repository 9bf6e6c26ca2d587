"""Where a registry is and how it is spoken to, and what a foreign URL must look like to be followed."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import quote, urlencode, urlsplit

from imgfs.errors import Invalid, RegistryFailed
from imgfs.oci.reference import DEFAULT_HOST, is_host
from imgfs.registry.http.addresses import Reach
from imgfs.registry.http.route import Route
from imgfs.registry.http.trust import SYSTEM, Trust

_ALIASES = {DEFAULT_HOST: "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}
_NAMES = {"registry-1.docker.io": DEFAULT_HOST}
PORTS = {"http": 80, "https": 443}
CAPABILITIES = frozenset({"pull", "resolve", "push", "referrers"})
_URL = re.compile(r"[\x21-\x7e]+\Z")
URL_MAX = 16 << 10


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A registry: `host` as credentials, counters and messages name it, `scheme` and `authority` as URLs do.

    A `mirror` stands in for the registry that `ns` names, and its 404 says nothing about that one. `headers` (names in
    lower case), the client's part of `trust` and an unverified TLS are for its own origin only.
    """

    host: str
    scheme: str
    authority: str
    path: str = "/v2"
    ns: str = ""
    mirror: bool = False
    capabilities: frozenset[str] = CAPABILITIES
    trust: Trust = SYSTEM
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    connect: float | None = None
    """Seconds for a connection to come about, instead of the limit that holds for all."""
    proxy: str = field(default="", repr=False)
    """Instead of the environment's."""

    def can(self, capability: str) -> bool:
        """Whether it may be asked for that. The catalogue (`catalog`) is the registry's own: mirrors have another."""
        return capability in self.capabilities or (capability == "catalog" and not self.mirror)

    @property
    def base(self) -> str:
        """Scheme and authority."""
        return f"{self.scheme}://{self.authority}"

    @property
    def name(self) -> str:
        """The authority without its port and brackets."""
        return hostname(self.base)

    def url(self, repository: str, kind: str, selector: str) -> str:
        """The URL of one object of a repository (distribution-spec, "Endpoints"); a mirror is told whose it is."""
        query = f"?{urlencode({'ns': self.ns})}" if self.ns else ""
        return f"{self.base}{self.path}/{quote(repository)}/{kind}/{quote(selector, safe=':')}{query}"

    def uploads(self, repository: str) -> str:
        """The URL that begins an upload into a repository."""
        query = f"?{urlencode({'ns': self.ns})}" if self.ns else ""
        return f"{self.base}{self.path}/{quote(repository)}/blobs/uploads/{query}"

    def owns(self, url: str) -> bool:
        """Whether `url` is at this registry's own origin."""
        return origin(url) == origin(self.base)

    def route(self, url: str, permitted: Reach | None) -> Route:
        """The way to `url`, where this registry led; `permitted` as Route has it."""
        if self.owns(url):
            return Route(permitted, self.trust, self.proxy, self.connect)
        return Route(permitted, self.trust.abroad(), self.proxy)

    def headers_at(self, url: str) -> dict[str, str]:
        """The configured headers that `url` may see."""
        return dict(self.headers) if self.owns(url) else {}


def endpoint(host: str, plain_http: Collection[str] = (), trust: Trust = SYSTEM) -> Endpoint:
    """The registry that `host` names: https, but plain http on loopback and for members of `plain_http`.

    `plain_http` holds hosts with their port, or names for every port. Where `trust` says how TLS is to be done, it is.
    Raises Invalid.
    """
    if not is_host(host):
        raise Invalid(f"registry host {host[:260]!r}: expected a name with a dot or a port, or an IP address")
    authority = authority_of(host)
    return Endpoint(host, "http" if is_plain(authority, trust, plain_http) else "https", authority, trust=trust)


def is_plain(authority: str, trust: Trust, plain_http: Collection[str]) -> bool:
    """Whether `authority`, for which nobody named a scheme, is spoken to without TLS."""
    name = hostname(f"https://{authority}")
    return trust == SYSTEM and (is_loopback(name) or authority in plain_http or name in plain_http)


def authority_of(host: str) -> str:
    """What URLs say where references say `host`."""
    return _ALIASES.get(host, host)


def host_of(authority: str) -> str:
    """What references, and therefore credentials, say where URLs say `authority`."""
    return _NAMES.get(authority, authority)


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
    return parts.scheme, parts.hostname or "", parts.port or PORTS[parts.scheme]


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
    if parts.scheme not in PORTS or not parts.hostname or "@" in parts.netloc:
        raise RegistryFailed(f"{what}: expected an http or https address; report it to the registry's operator")
    if before.startswith("https:") and parts.scheme != "https":
        raise RegistryFailed(f"{what}: leads from https to http at {parts.netloc}, which is never followed")
    return parts._replace(fragment="").geturl()
