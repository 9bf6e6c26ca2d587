"""The proxy of a request: the environment, all forms of NO_PROXY, and no access to inner networks."""

from __future__ import annotations

import pytest

from imgfs.errors import RegistryFailed
from imgfs.registry.http.proxy import is_excepted, proxies_of_environment, proxy_of, refuse_literal


@pytest.mark.parametrize(
    ("no_proxy", "name", "port", "excepted"),
    [
        ("", "x.example", 443, False),
        ("*", "x.example", 443, True),
        ("x.example", "x.example", 443, True),
        ("X.EXAMPLE", "x.example", 443, True),
        (".x.example", "x.example", 443, True),
        ("*.x.example", "a.x.example", 443, True),
        ("x.example", "a.b.x.example", 443, True),
        ("x.example", "ax.example", 443, False),
        ("a.x.example", "x.example", 443, False),
        ("y.example, x.example", "x.example", 443, True),
        ("y.example x.example", "x.example", 443, True),
        ("x.example:5000", "x.example", 5000, True),
        ("x.example:5000", "x.example", 443, False),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.0.0.0/8", "ten.example", 443, False),
        ("10.0.0.1", "10.0.0.1", 443, True),
        ("10.0.0.1:80", "10.0.0.1", 443, False),
        ("10.0.0.1:443", "10.0.0.1", 443, True),
        ("0.1", "10.0.0.1", 443, False),
        ("2001:db8::1", "2001:db8::1", 443, True),
        ("[2001:db8::1]", "2001:db8::1", 443, True),
        ("[2001:db8::1]:5000", "2001:db8::1", 5000, True),
        ("[2001:db8::1]:5000", "2001:db8::1", 443, False),
        ("2001:db8::/32", "2001:db8::1", 443, True),
        ("10.0.0.0/8", "2001:db8::1", 443, False),
        ("10.0.0.0/99", "10.0.0.1", 443, False),
        (",,:,/,*.", "x.example", 443, False),
    ],
)
def test_no_proxy_names_hosts_networks_and_ports(no_proxy: str, name: str, port: int, excepted: bool) -> None:
    assert is_excepted(name, port, no_proxy) is excepted


@pytest.mark.parametrize(
    ("url", "proxied"), [("https://[2001:db8::1]:5000/v2/", False), ("https://[2001:db8::2]:5000/v2/", True)]
)
def test_an_ipv6_literal_is_judged_as_an_address(monkeypatch: pytest.MonkeyPatch, url: str, proxied: bool) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.test:3128")
    monkeypatch.setenv("no_proxy", "[2001:db8::1]")
    assert bool(proxy_of(url, proxies_of_environment())) is proxied


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://quay.io/v2/", "http://proxy.test:3128"),
        ("http://plain.example/v2/", "http://other.test"),
        ("https://inside.example/v2/", ""),
        ("https://deep.inside.example:444/v2/", ""),
        ("http://127.0.0.1:5000/v2/", ""),
        ("http://[::1]:5000/v2/", ""),
        ("http://localhost/v2/", ""),
    ],
)
def test_proxies_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, url: str, proxy: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy.test:3128")
    monkeypatch.setenv("http_proxy", "http://other.test")
    monkeypatch.setenv("NO_PROXY", "inside.example")
    assert proxy_of(url, proxies_of_environment()) == proxy


def test_a_proxy_is_no_way_around_the_inner_networks() -> None:
    refuse_literal("storage.example", frozenset(), "x")
    refuse_literal("10.0.0.1", frozenset({"private"}), "x")
    with pytest.raises(RegistryFailed):
        refuse_literal("169.254.169.254", frozenset({"private"}), "x")
