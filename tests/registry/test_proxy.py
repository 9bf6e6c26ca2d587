"""NO_PROXY, in all its spellings."""

from __future__ import annotations

import pytest

from imgfs.registry.proxy import is_excepted, proxies_of_environment, proxy_of


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
