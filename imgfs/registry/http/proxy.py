"""The proxy for a request: HTTPS_PROXY, HTTP_PROXY and ALL_PROXY, except for hosts in NO_PROXY."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit
from urllib.request import getproxies

from imgfs.errors import RegistryFailed
from imgfs.registry.hosts.endpoint import PORTS, is_loopback
from imgfs.registry.http.resolver import Reach, inner_network

_ENTRY = re.compile(r"(\[[^\]]*\]|[^:]*)(?::(\d+))?\Z")


def proxies_of_environment() -> Mapping[str, str]:
    """Return the proxies by scheme, and NO_PROXY as `no`. Keep the result: this scans the whole environment."""
    return getproxies()


def proxy_of(url: str, proxies: Mapping[str, str]) -> str:
    """Return the proxy for `url` from `proxies`, or "" for none. Requests to loopback never use a proxy."""
    proxy = proxies.get(url.partition(":")[0]) or proxies.get("all")
    parts = urlsplit(url)
    name, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    if not proxy or is_loopback(name) or is_excepted(name, port, proxies.get("no", "")):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def is_excepted(name: str, port: int, no_proxy: str) -> bool:
    """Whether NO_PROXY names this host: by `*`, name (subdomains too), address, network (`10.0.0.0/8`), or with a port.

    Programs disagree on a leading dot; it is ignored, as in curl.
    """
    return any(_covers(entry.lower(), name, port) for entry in re.split(r"[,\s]+", no_proxy) if entry)


def _covers(entry: str, name: str, port: int) -> bool:
    address = _address(name)
    if entry == "*":
        return True
    if address is not None and "/" in entry:
        return _in_network(address, entry)
    if (literal := _address(entry.strip("[]"))) is not None:
        return literal == address
    found = _ENTRY.match(entry)
    if found is None or (found[2] and int(found[2]) != port):
        return False
    if (literal := _address(found[1].strip("[]"))) is not None or address is not None:
        return literal == address
    wanted = found[1].lstrip("*").lstrip(".")
    return bool(wanted) and (name == wanted or name.endswith(f".{wanted}"))


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _in_network(address: IPv4Address | IPv6Address, network: str) -> bool:
    try:
        return address in ip_network(network, strict=False)
    except ValueError:
        return False


def refuse_literal(name: str, permitted: Reach, subject: str) -> None:
    """Raise RegistryFailed if `name` is an inner address not in `permitted`. The proxy resolves names."""
    if _address(name) is not None and (network := inner_network(name)) and network not in permitted:
        raise inner_failure(network, subject, name)


def inner_failure(network: str, subject: str, authority: str) -> RegistryFailed:
    """Return the error for a redirect or a realm that leads to an inner network."""
    return RegistryFailed(
        f"{subject}: {authority} is a {network} address, where the registry that sent imgfs there is not itself; "
        "refused, report it to the registry's operator"
    )
