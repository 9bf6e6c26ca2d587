"""The challenge parser: examples of the RFC, real registries, and random input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.registry.auth.grants import Challenge, bearer, parse_challenges

TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.!#$", min_size=1, max_size=12)
VALUE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"',
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        (
            'Newauth realm="apps", type=1, title="Login to \\"apps\\"", Basic realm="simple"',
            [
                Challenge("newauth", {"realm": "apps", "type": "1", "title": 'Login to "apps"'}),
                Challenge("basic", {"realm": "simple"}),
            ],
        ),
        ('Negotiate, , Bearer Realm = "x"', [Challenge("negotiate"), Challenge("bearer", {"realm": "x"})]),
        ("Negotiate dG9rZW4=, Basic", [Challenge("negotiate"), Challenge("basic")]),
        ('Bearer realm="a",realm="b"', [Challenge("bearer", {"realm": "a"})]),
        ('BEARER realm="a" service="b"', [Challenge("bearer", {"realm": "a", "service": "b"})]),
        ('Bearer realm="unterminated', [Challenge("bearer")]),
        ("", []),
        ('="', []),
    ],
)
def test_challenges_are_read(header: str, expected: list[Challenge]) -> None:
    assert parse_challenges([header]) == expected


def test_several_headers_are_one_list() -> None:
    found = parse_challenges(['Basic realm="x"', 'Bearer realm="y"'])
    assert [one.scheme for one in found] == ["basic", "bearer"]
    assert bearer(found) == Challenge("bearer", {"realm": "y"})


def test_a_bearer_challenge_without_a_realm_is_ignored() -> None:
    assert bearer(parse_challenges(['Bearer error="x", Basic realm="y"'])) is None


@given(st.lists(st.tuples(TOKEN, st.dictionaries(TOKEN.map(str.lower), VALUE, min_size=1, max_size=4)), max_size=3))
def test_every_written_challenge_is_parsed(written: list[tuple[str, dict[str, str]]]) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    header = ", ".join(
        f"{scheme} {', '.join(f'{name}={quoted(value)}' for name, value in parameters.items())}"
        for scheme, parameters in written
    )
    assert parse_challenges([header]) == [Challenge(scheme.lower(), parameters) for scheme, parameters in written]


@given(st.text(max_size=200))
def test_random_headers_never_raise(header: str) -> None:
    for challenge in parse_challenges([header]):
        assert challenge.scheme


@pytest.mark.parametrize(
    "header", ['Bearer a="' + "\\" * 200_000, "a=" * 100_000, "," * 200_000, 'B x="' + '",x="' * 50_000]
)
def test_large_invalid_headers_take_linear_time(header: str) -> None:
    assert len(parse_challenges([header])) <= 65536
