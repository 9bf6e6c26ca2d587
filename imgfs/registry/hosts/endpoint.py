"""The address and settings of a host, and the check of URLs that a registry sends."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import quote, urlencode, urlsplit

from imgfs.errors import Invalid, RegistryFailed
from imgfs.oci.reference import DEFAULT_HOST, is_host
from imgfs.registry.http.request import Route
from imgfs.registry.http.resolver import Reach
from imgfs.registry.http.trust import SYSTEM, Trust

_ALIASES = {DEFAULT_HOST: "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}
_NAMES = {"registry-1.docker.io": DEFAULT_HOST}
PORTS = {"http": 80, "https": 443}
CAPABILITIES = frozenset({"pull", "resolve", "push", "referrers"})
_URL = re.compile(r"[\x21-\x7e]+\Z")
URL_MAX = 16 << 10


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A registry or mirror: `host` for credentials, counters and messages, `scheme` and `authority` for URLs.

    A `mirror` replaces the registry that `ns` names. Its 404 does not mean that the registry lacks the object. Only the
    host's own origin gets `headers` (names in lower case) and the client certificate of `trust`, and only there TLS may
    be unverified.
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
    """Limit in seconds for making a connection; None for the general limit."""
    proxy: str = field(default="", repr=False)
    """The proxy to use instead of that of the environment; "" for the latter."""

    def can(self, capability: str) -> bool:
        """Whether the host has `capability`. Only the registry itself has `catalog`: a mirror has its own catalog."""
        return capability in self.capabilities or (capability == "catalog" and not self.mirror)

    @property
    def base(self) -> str:
        """The scheme and the authority."""
        return f"{self.scheme}://{self.authority}"

    @property
    def name(self) -> str:
        """The authority without its port and brackets."""
        return hostname(self.base)

    def url(self, repository: str, kind: str, selector: str) -> str:
        """Return the URL of one object of a repository (distribution-spec, "Endpoints"), with `ns` for a mirror."""
        query = f"?{urlencode({'ns': self.ns})}" if self.ns else ""
        return f"{self.base}{self.path}/{quote(repository)}/{kind}/{quote(selector, safe=':')}{query}"

    def uploads(self, repository: str) -> str:
        """Return the URL that begins an upload into a repository."""
        query = f"?{urlencode({'ns': self.ns})}" if self.ns else ""
        return f"{self.base}{self.path}/{quote(repository)}/blobs/uploads/{query}"

    def owns(self, url: str) -> bool:
        """Whether `url` has the origin of this host."""
        return origin(url) == origin(self.base)

    def route(self, url: str, permitted: Reach | None) -> Route:
        """Return the route to `url`, to which this host led. For `permitted` see Route."""
        if self.owns(url):
            return Route(permitted, self.trust, self.proxy, self.connect)
        return Route(permitted, self.trust.abroad(), self.proxy)

    def headers_at(self, url: str) -> dict[str, str]:
        """Return the configured headers that `url` may get."""
        return dict(self.headers) if self.owns(url) else {}


def endpoint(host: str, plain_http: Collection[str] = (), trust: Trust = SYSTEM) -> Endpoint:
    """Return the registry `host`. It uses https, and http on loopback and for members of `plain_http`.

    `plain_http` contains hosts with a port, or names for all ports. A configured `trust` always means https. Raises
    Invalid if `host` is not a host.
    """
    if not is_host(host):
        raise Invalid(f"registry host {host[:260]!r}: expected a name with a dot or a port, or an IP address")
    authority = authority_of(host)
    return Endpoint(host, "http" if is_plain(authority, trust, plain_http) else "https", authority, trust=trust)


def is_plain(authority: str, trust: Trust, plain_http: Collection[str]) -> bool:
    """Whether to use http for `authority`, for which no scheme is configured."""
    name = hostname(f"https://{authority}")
    return trust == SYSTEM and (is_loopback(name) or authority in plain_http or name in plain_http)


def authority_of(host: str) -> str:
    """Return the authority in URLs for `host` in references."""
    return _ALIASES.get(host, host)


def host_of(authority: str) -> str:
    """Return the host in references and credentials for `authority` in URLs."""
    return _NAMES.get(authority, authority)


def is_loopback(name: str) -> bool:
    """Whether `name` is `localhost` or a literal loopback address."""
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def hostname(url: str) -> str:
    """Return the host of a checked URL in lower case, without port and brackets."""
    return urlsplit(url).hostname or ""


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a checked URL (RFC 6454). Credentials are bound to these."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or PORTS[parts.scheme]


def check_url(url: str, before: str, what: str) -> str:
    """Return a URL that a registry sent, if it may be followed from `before`. Raises RegistryFailed otherwise.

    Only http and https, never from https to http, without a user name, in printable ASCII. `what` begins the message.
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
