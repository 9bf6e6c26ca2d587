"""References: the full form, the short forms, and malformed text."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import Invalid
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Reference, expand_familiar, is_host, is_repository_part, is_tag, parse_reference

DIGEST = Digest.of(b"")
PART = st.from_regex(r"[a-z0-9]{1,5}(?:(?:[._]|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
HOSTS = st.sampled_from(["localhost", "docker.io", "quay.io:443", "h:5000", "127.0.0.1:1", "[::1]", "[fe80::2]:5000"])
TAGS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
REFERENCES = st.builds(
    Reference, HOSTS, st.lists(PART, min_size=1, max_size=4).map("/".join), TAGS, st.none() | st.just(DIGEST)
).map(lambda made: replace(made, tag=None) if made.digest else made)


@given(REFERENCES)
def test_a_reference_survives_a_round_trip(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference
    assert reference.selector == (reference.digest or reference.tag)


@given(REFERENCES.filter(lambda one: one.host != "docker.io"))
def test_the_full_form_is_also_accepted_as_a_short_form(reference: Reference) -> None:
    assert expand_familiar(str(reference)) == reference


@given(st.text(max_size=80) | st.from_regex(r"[a-z0-9./:@_\[\]-]{1,40}", fullmatch=True))
def test_any_text_is_a_reference_with_a_round_trip_or_invalid(text: str) -> None:
    for read in (parse_reference, expand_familiar):
        try:
            reference = read(text)
        except Invalid:
            continue
        assert parse_reference(str(reference)) == reference
        assert ".." not in str(reference).split("/")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/alpine:1", "docker.io/library/alpine:1"),
        ("index.docker.io/user/app:1", "docker.io/user/app:1"),
        ("quay.io/app", "quay.io/app:latest"),
        ("quay.io/x/y/z:1", "quay.io/x/y/z:1"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("[::1]:5000/app:1", "[::1]:5000/app:1"),
        ("host/app", "docker.io/host/app:latest"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        (f"alpine:3@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        ("alpine:Tag_1.0-x", "docker.io/library/alpine:Tag_1.0-x"),
    ],
)
def test_short_forms_are_expanded(typed: str, meant: str) -> None:
    assert str(expand_familiar(typed)) == meant


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "@",
        "/",
        "Alpine",
        "alpine:",
        "alpine:-x",
        f"alpine:{'t' * 129}",
        "alpine@sha256:1",
        f"alpine@{DIGEST}@{DIGEST}",
        "a//b",
        "/a",
        "a/",
        "../a",
        "a/../b",
        "a/.b",
        "a_/b",
        "a___b",
        "a..b/c",
        "a b",
        "quay.io/",
        "quay.io/a:1/b",
        "a\n",
        "alpine:1\n",
        "é",
        f"quay.io/{'a' * 256}:1",
        "-/a",
        "[::1/a:1",
    ],
)
def test_malformed_references_are_refused(text: str) -> None:
    for read in (parse_reference, expand_familiar):
        with pytest.raises(Invalid):
            read(text)


@pytest.mark.parametrize("host", ["127.0.0.1:99999", "box:65536", "[::1]:70000", "a.b:123456789"])
def test_an_invalid_port_is_explained(host: str) -> None:
    for read in (parse_reference, expand_familiar):
        with pytest.raises(Invalid, match=f"{host.rpartition(':')[2]} is not a port; the highest is 65535"):
            read(f"{host}/app:1")


@pytest.mark.parametrize("host", ["[::1:1", "[1.2.3.4]:1", "[]", "[::1]x"])
def test_brackets_without_an_address_are_explained(host: str) -> None:
    for read in (parse_reference, expand_familiar):
        with pytest.raises(Invalid, match="is not an IPv6 address in brackets"):
            read(f"{host}/app:1")


def test_the_full_form_needs_host_and_tag() -> None:
    for text in ("alpine:1", "user/app:1", "quay.io/app"):
        with pytest.raises(Invalid):
            parse_reference(text)
    assert parse_reference(f"quay.io/{'a' * 255}:{'t' * 128}").repository == "a" * 255


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("localhost", True),
        ("a.b", True),
        ("A.B", True),
        ("a:1", True),
        ("a:65535", True),
        ("a:65536", False),
        ("a.b:99999", False),
        ("1.2.3.4:80", True),
        ("[::1]", True),
        ("[::ffff:1.2.3.4]:80", True),
        ("[:::]", False),
        ("[1.2.3.4]", False),
        ("[]", False),
        ("library", False),
        ("a:", False),
        ("a:x", False),
        ("a_b.c", False),
        (".", False),
        ("..", False),
        ("a.", False),
        (".a", False),
        ("-a.b", False),
        ("u@h.io", False),
        ("a.b\n", False),
        ("", False),
    ],
)
def test_hosts_are_recognised(text: str, host: bool) -> None:
    assert is_host(text) == host


def test_parts_and_tags() -> None:
    assert is_repository_part("a-b__c.d")
    assert not is_repository_part("a/b")
    assert not is_repository_part("CuAbCdEf")
    assert not is_repository_part("a" * 256)
    assert is_tag("_")
    assert not is_tag(".x")
