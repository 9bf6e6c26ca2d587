"""hosts.toml: every setting, every refusal, and that every file results in endpoints or in one kind of error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import RegistryFailed
from imgfs.registry.hosts.endpoint import CAPABILITIES, Endpoint
from imgfs.registry.hosts.hosts_toml import CONNECT_MAX, Hosts, read_hosts

PATH = Path("/certs.d/registry.example/hosts.toml")


def read(text: str, host: str = "registry.example") -> Hosts:
    return read_hosts(text.encode(), PATH, host, {"plain.example"})


def only(text: str, host: str = "registry.example") -> Endpoint:
    """Return the only mirror of a file that does not configure the server."""
    first, server = read(text, host).endpoints
    assert not server.mirror
    return first


def bases(text: str, host: str = "registry.example") -> list[str]:
    return [one.url("a", "blobs", "x") for one in read(text, host).endpoints]


def test_tables_are_asked_in_their_order_and_the_server_last() -> None:
    text = """
        server = "https://upstream.example"
        [host."https://z.example"]
        [host."http://a.example:5000/cache"]
        [host."m.example"]
    """
    assert bases(text) == [
        "https://z.example/v2/a/blobs/x?ns=registry.example",
        "http://a.example:5000/cache/v2/a/blobs/x?ns=registry.example",
        "https://m.example/v2/a/blobs/x?ns=registry.example",
        "https://upstream.example/v2/a/blobs/x?ns=registry.example",
    ]
    assert [one.mirror for one in read(text).endpoints] == [True, True, True, False]


@pytest.mark.parametrize("text", ["", 'server = "https://registry.example"', "[host]"])
def test_without_a_word_the_registry_itself_is_asked_and_told_nothing_of_itself(text: str) -> None:
    assert bases(text) == ["https://registry.example/v2/a/blobs/x"]


def test_a_table_for_the_server_is_the_server() -> None:
    text = 'server = "https://registry.example"\n[host."https://registry.example"]\nskip_verify = true'
    (server,) = read(text).endpoints
    assert (server.mirror, server.trust.verify) == (False, False)


def test_a_table_that_lets_the_server_do_less_leaves_the_rest_to_it() -> None:
    text = 'server = "https://registry.example"\n[host."https://registry.example"]\ncapabilities = ["pull"]'
    assert [one.capabilities for one in read(text).endpoints] == [{"pull"}, CAPABILITIES]


@pytest.mark.parametrize("server", ["https://docker.io", "https://registry-1.docker.io", "https://index.docker.io"])
def test_docker_hub_is_one_registry_with_several_names(server: str) -> None:
    (hub,) = read(f'server = "{server}"', "docker.io").endpoints
    assert (hub.host, hub.url("a", "blobs", "x")) == ("docker.io", "https://registry-1.docker.io/v2/a/blobs/x")


def test_a_mirror_has_its_own_name_for_credentials() -> None:
    assert only('[host."https://mirror.example:5000"]').host == "mirror.example:5000"


@pytest.mark.parametrize(
    ("address", "base"),
    [
        ("plain.example", "http://plain.example"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("[2001:db8::1]:5000", "https://[2001:db8::1]:5000"),
        ("http://tls-less.example", "http://tls-less.example"),
        ("mirror.example:443", "https://mirror.example:443"),
    ],
)
def test_an_address_without_a_scheme_is_spoken_to_as_references_are(address: str, base: str) -> None:
    assert only(f'[host."{address}"]').base == base


@pytest.mark.parametrize(
    ("path", "override", "root"),
    [
        ("", False, "/v2"),
        ("/", False, "/v2"),
        ("/v2", False, "/v2"),
        ("/v2/", False, "/v2"),
        ("/proxy/hub", False, "/proxy/hub/v2"),
        ("/proxy/hub", True, "/proxy/hub"),
        ("/.hidden", True, "/.hidden"),
        ("/", True, ""),
        ("/a/../../b", True, "/b"),
    ],
)
def test_the_path_leads_to_v2_unless_it_is_overridden(path: str, override: bool, root: str) -> None:
    text = f'[host."https://m.example{path}"]\noverride_path = {str(override).lower()}'
    assert only(text).path == root


def test_certificates_are_sought_beside_the_file() -> None:
    trust = only(
        '[host."https://m.example"]\nca = "ca.pem"\nclient = [["c.cert", "/keys/c.key"], ["both.pem", ""]]'
    ).trust
    assert [one.path for one in trust.ca] == ["/certs.d/registry.example/ca.pem"]
    pairs = [(one.path, key.path if key else None) for one, key in trust.client]
    assert pairs == [
        ("/certs.d/registry.example/c.cert", "/keys/c.key"),
        ("/certs.d/registry.example/both.pem", None),
    ]


@pytest.mark.parametrize(
    ("client", "count"), [('"one.pem"', 1), ('["one.pem", "two.pem"]', 2), ('[["one.pem"]]', 1), ("[]", 0)]
)
def test_a_client_is_a_path_paths_or_pairs(client: str, count: int) -> None:
    assert len(only(f'[host."https://m.example"]\nclient = {client}').trust.client) == count


def test_headers_are_strings_or_lists_and_not_shown() -> None:
    mirror = only('[host."https://m.example".header]\nX-Token = "canary"\nX-List = ["a", "b"]')
    assert dict(mirror.headers) == {"x-token": "canary", "x-list": "a, b"}
    assert "canary" not in repr(mirror)


def test_settings_at_the_top_are_the_servers() -> None:
    text = 'ca = "own.pem"\ncapabilities = ["push"]\n[header]\nx = "1"\n[host."https://m.example"]'
    mirror, server = read(text).endpoints
    assert (mirror.trust.ca, mirror.headers, mirror.capabilities) == ((), (), CAPABILITIES)
    assert (len(server.trust.ca), server.headers, server.capabilities) == (1, (("x", "1"),), {"push"})


@pytest.mark.parametrize(
    ("text", "seconds"), [("3s", 3), ("500ms", 0.5), ("1m30s", CONNECT_MAX), ("1.5s", 1.5), ("2s250ms", 2.25)]
)
def test_a_duration_is_written_as_go_does(text: str, seconds: float) -> None:
    assert only(f'[host."https://m.example"]\ndial_timeout = "{text}"').connect == seconds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server = 1", "server: expected a URL"),
        ('server = "ftp://x.example"', "http or https"),
        ('server = "https://user:canary@x.example"', "without user"),
        ('server = "https://x.example?canary"', "without user and query"),
        ('server = "https://x.example:port"', "a URL"),
        ('server = "https://user:canary@x.example:port"', "a URL"),
        ('server = "https://"', "http or https"),
        ('[host."https://a b"]', "http or https"),
        ("host = 1", "'host': expected a table"),
        ('[host]\n"https://m.example" = 1', "'https://m.example': expected a table"),
        ('capabilities = ["pul"]', "'pul': expected one of"),
        ("capabilities = [1]", "a list of capabilities"),
        ("ca = 1", "ca: expected a path"),
        ('ca = [""]', "ca: expected a path"),
        ('ca = "a\\u0000b"', "ca: expected a path"),
        ("client = 1", "client: expected"),
        ('client = [["a", "b\\u0000"]]', "client: expected a path"),
        ('client = [["a", "b", "c"]]', "client: expected"),
        ("client = [[]]", "client: expected"),
        ('client = [["", "b"]]', "client: expected"),
        ('skip_verify = "no"', "skip_verify: expected true or false"),
        ("override_path = 1", "override_path: expected true or false"),
        ('header = "canary"', "'header': expected a table"),
        ("[header]\nx = 1", "header 'x'"),
        ('[header]\n"x y" = "canary"', "header 'x y'"),
        ('[header]\nx = "a\\ncanary: 1"', "header 'x'"),
        ('[header]\nHost = "canary"', "belongs to the request"),
        ('dial_timeout = "soon"', "a duration"),
        ('dial_timeout = "0s"', "a duration"),
        ('dial_timeout = "3"', "a duration"),
        ("dial_timeout = 3", "a duration"),
        ('proxy = "socks5://user:canary@x"', "http or https address of a proxy"),
        ("server = ", "no TOML"),
        ('server = "\\ud800"', "no TOML"),
        ("a = " + "[" * 9999, "no TOML"),
    ],
)
def test_a_wrong_value_is_refused_with_file_and_key(text: str, said: str) -> None:
    with pytest.raises(RegistryFailed) as caught:
        read(text)
    assert str(PATH) in caught.value.message
    assert said in caught.value.message
    assert "canary" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("skip_verfy = true", "unknown key 'skip_verfy' is ignored; did you mean 'skip_verify'?"),
        ('[hosts."https://m.example"]', "did you mean 'host'?"),
        ('[host."https://m.example"]\nserver = "x"', "host.'https://m.example': unknown key 'server'"),
        ("zzz = 1", "known are server, host"),
    ],
)
def test_an_unknown_key_is_a_warning_with_the_likely_one(text: str, said: str) -> None:
    (warning,) = read(text).warnings
    assert said in warning
    assert str(PATH) in warning


_SCALARS = st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from(["https://m.example", "3s", "pull"])
_KEYS = st.sampled_from(["server", "host", "ca", "client", "header", "capabilities", "dial_timeout", "proxy", "x"])


@given(st.dictionaries(_KEYS, _SCALARS | st.lists(_SCALARS | st.lists(_SCALARS, max_size=3), max_size=3)))
def test_any_toml_is_endpoints_or_one_kind_of_error(values: dict[str, object]) -> None:
    text = "\n".join(f"{key} = {_toml(value)}" for key, value in values.items())
    try:
        found = read(text)
    except RegistryFailed:
        return
    assert found.endpoints
    assert not found.endpoints[-1].mirror


@given(st.binary(max_size=200))
def test_any_bytes_are_endpoints_or_one_kind_of_error(data: bytes) -> None:
    try:
        assert read_hosts(data, PATH, "registry.example").endpoints
    except RegistryFailed:
        return


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_toml(one) for one in value)}]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(one):08x}" for one in value) + '"'
    return str(value)
