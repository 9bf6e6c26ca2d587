"""Hosts, schemes and networks."""

from __future__ import annotations

import pytest

from imgfs.errors import Invalid
from imgfs.registry.hosts.endpoint import endpoint, origin
from imgfs.registry.http.resolver import inner_network


@pytest.mark.parametrize(
    ("host", "base"),
    [
        ("docker.io", "https://registry-1.docker.io"),
        ("quay.io", "https://quay.io"),
        ("ghcr.io:8443", "https://ghcr.io:8443"),
        ("localhost", "http://localhost"),
        ("localhost:5000", "http://localhost:5000"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("127.9.9.9", "http://127.9.9.9"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("[2001:db8::1]:5000", "https://[2001:db8::1]:5000"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000"),
        ("plain.example:80", "http://plain.example:80"),
        ("named.example:81", "http://named.example:81"),
        ("plain.example:81", "https://plain.example:81"),
        ("localhost.example", "https://localhost.example"),
    ],
)
def test_a_host_is_spoken_to_by_tls_unless_it_is_local_or_named(host: str, base: str) -> None:
    where = endpoint(host, {"plain.example:80", "named.example"})
    assert where.url("a/b", "manifests", "1") == f"{base}/v2/a/b/manifests/1"
    assert where.host == host


@pytest.mark.parametrize("host", ["", "a b.c", "x.y/z", "u@x.y", "x.y:port", "x.y?z", "host"])
def test_what_is_no_host_is_invalid(host: str) -> None:
    with pytest.raises(Invalid):
        endpoint(host)


def test_nothing_breaks_out_of_a_path() -> None:
    assert "?" not in endpoint("a.b").url("x?y", "blobs", "z#?")


def test_an_origin_has_its_default_port() -> None:
    assert origin("https://A.example/x") == origin("https://a.example:443/y") == ("https", "a.example", 443)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("127.0.0.1", "loopback"),
        ("0.0.0.0", "loopback"),
        ("::1", "loopback"),
        ("::", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("2002:a00:1::", "private"),
        ("169.254.169.254", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("192.168.0.1", "private"),
        ("100.64.0.1", "private"),
        ("fd00::1", "private"),
        ("224.0.0.1", "private"),
        ("8.8.8.8", ""),
        ("2606:4700::1111", ""),
    ],
)
def test_an_address_is_in_its_network(address: str, network: str) -> None:
    assert inner_network(address) == network
