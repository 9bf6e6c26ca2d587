"""The parser of auth files: files of login tools, matching of keys and repositories, and random input."""

from __future__ import annotations

import json
from base64 import b64encode
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import Malformed
from imgfs.registry.credentials.authfile import (
    AuthFile,
    Credential,
    answered,
    canonical_host,
    decode_auth,
    parse_auth_file,
    parse_scope,
    server_keys,
)

PART = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=6).filter(
    lambda part: part not in {"v1", "v2"}
)
PATH = st.lists(PART, min_size=1, max_size=4).map("/".join)
HOST = st.sampled_from(["r.example", "r.example:5000", "[::1]:5000", "docker.io"])
PLAIN = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters=":"), min_size=1, max_size=20)


def encoded(username: str, password: str) -> str:
    return b64encode(f"{username}:{password}".encode()).decode()


def auth_file(**members: object) -> AuthFile:
    return parse_auth_file(json.dumps(members).encode())


def of_keys(*keys: str) -> AuthFile:
    """A file with one login for each key. The user name is the key."""
    return auth_file(auths={key: {"username": key, "password": "p"} for key in keys})


def chosen(file: AuthFile, host: str, repository: str) -> str:
    """The user name of the login that is used, "" for none."""
    found = [entry.credential for entry in file.entries_for(host, repository) if entry.credential]
    return found[0].username if found else ""


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"auth": encoded("u", "p")}, Credential("u", "p")),
        ({"auth": encoded("u", "p:q")}, Credential("u", "p:q")),
        ({"auth": encoded("u", "p\0\0")}, Credential("u", "p")),
        ({"auth": encoded("ü", "pässword")}, Credential("ü", "pässword")),
        ({"username": "u", "password": "p"}, Credential("u", "p")),
        ({"auth": encoded("u", "p"), "username": "other", "password": "other"}, Credential("u", "p")),
        ({"auth": encoded("u", ""), "identitytoken": "i"}, Credential("u", "", "i")),
        ({"identitytoken": "i"}, Credential(identity_token="i")),
        ({"registrytoken": "r"}, Credential(registry_token="r")),
        ({"auth": None, "username": "u", "password": "p", "email": 7}, Credential("u", "p")),
        ({}, None),
        (None, None),
        ({"username": "u"}, None),
        ({"auth": encoded("u", "")}, None),
    ],
)
def test_an_entry_is_a_login(entry: object, expected: Credential | None) -> None:
    found = auth_file(auths={"r.example": entry}).entries
    assert [(one.credential, one.trouble) for one in found] == [(expected, "")]


@pytest.mark.parametrize(
    "entry",
    [{"auth": "%%%"}, {"auth": "canary"}, {"auth": encoded("", "p")}, {"auth": "/////w=="}, {"auth": 7}, 7, ["x"], "y"],
)
def test_a_broken_entry_does_not_affect_other_entries(entry: object) -> None:
    file = auth_file(auths={"r.example": entry, "s.example": {"auth": encoded("u", "p")}})
    broken, whole = file.entries
    assert broken.credential is None
    assert "r.example is no base64 of user:password" in broken.trouble
    assert whole.credential == Credential("u", "p")


@pytest.mark.parametrize(
    ("key", "host", "path"),
    [
        ("r.example", "r.example", ""),
        ("R.Example:5000", "r.example:5000", ""),
        ("r.example/", "r.example", ""),
        ("https://r.example", "r.example", ""),
        ("http://r.example/v1/", "r.example", ""),
        ("https://r.example/v2", "r.example", ""),
        ("https://r.example/team/app", "r.example", "team/app"),
        ("r.example/team/app/", "r.example", "team/app"),
        ("https://index.docker.io/v1/", "docker.io", ""),
        ("https://index.docker.io/v1/access-token", "docker.io", "v1/access-token"),
        ("registry-1.docker.io", "docker.io", ""),
        ("docker.io/library", "docker.io", "library"),
        ("[::1]:5000", "[::1]:5000", ""),
        ("", "", ""),
        ("https://", "", ""),
    ],
)
def test_a_key_is_a_host_and_a_namespace(key: str, host: str, path: str) -> None:
    scope = parse_scope(key)
    assert (scope.host, scope.path) == (host, path)


@pytest.mark.parametrize(
    ("keys", "host", "repository", "expected"),
    [
        (["r.example", "r.example/a", "r.example/a/b"], "r.example", "a/b", "r.example/a/b"),
        (["r.example", "r.example/a", "r.example/a/b"], "r.example", "a/b/c", "r.example/a/b"),
        (["r.example", "r.example/a", "r.example/a/b"], "r.example", "a/bc", "r.example/a"),
        (["r.example", "r.example/a"], "r.example", "ab", "r.example"),
        (["r.example/a"], "r.example", "b", ""),
        (["r.example"], "r.example:5000", "a", ""),
        (["r.example:5000"], "r.example", "a", ""),
        (["evil-r.example", "r.example.evil"], "r.example", "a", ""),
        (["https://r.example", "r.example"], "r.example", "a", "r.example"),
        (["https://index.docker.io/v1/"], "docker.io", "library/alpine", "https://index.docker.io/v1/"),
        (["https://index.docker.io/v1/", "docker.io/library"], "docker.io", "library/alpine", "docker.io/library"),
        (["https://index.docker.io/v1/", "docker.io"], "docker.io", "a", "docker.io"),
    ],
)
def test_the_longest_key_that_covers_a_repository_counts(
    keys: list[str], host: str, repository: str, expected: str
) -> None:
    assert chosen(of_keys(*keys), host, repository) == expected
    assert chosen(of_keys(*reversed(keys)), host, repository) == expected


def lookups(host: str, repository: str) -> list[str]:
    """The keys to try in order, as listed in containers-auth.json(5)."""
    parts = repository.split("/")
    return [f"{host}/{'/'.join(parts[:count])}" for count in range(len(parts), 0, -1)] + [host]


@given(st.lists(st.one_of(HOST, st.tuples(HOST, PATH).map("/".join)), unique=True, max_size=8), HOST, PATH)
def test_any_keys_are_matched_as_the_manual_says(keys: list[str], host: str, repository: str) -> None:
    expected = next((key for key in lookups(host, repository) if key in keys), "")
    assert chosen(of_keys(*keys), host, repository) == expected


@given(PLAIN, PLAIN)
def test_any_login_is_read_back_and_sent_as_it_was(username: str, password: str) -> None:
    found = auth_file(auths={"r": {"auth": encoded(username, password)}}).entries[0].credential
    assert found == Credential(username, password)
    assert found is not None
    assert decode_auth(found.basic().removeprefix("Basic ")) == (username, password)


@pytest.mark.parametrize(
    "data", [b"", b"canary", b"[]", b"7", b'{"auths":[]}', b'{"credsStore":{}}', b"\xff\xfe", b"[" * 100_000]
)
def test_an_invalid_auth_file_is_malformed_and_not_repeated(data: bytes) -> None:
    with pytest.raises(Malformed, match="not the JSON of an auth file") as caught:
        parse_auth_file(data)
    assert "canary" not in caught.value.message


@given(st.binary(max_size=60))
def test_random_bytes_raise_only_malformed(data: bytes) -> None:
    with suppress(Malformed):
        parse_auth_file(data)
    with suppress(Malformed):
        answered(data)


def test_helpers_are_known_by_host_whatever_the_key_looks_like() -> None:
    file = auth_file(
        credHelpers={"r.example": "one", "https://s.example/v1/": "two", "https://index.docker.io/v1/": "hub", "t": 7},
        credsStore="all",
        HttpHeaders={"X": "y"},
    )
    assert file.helpers == {"r.example": "one", "s.example": "two", "docker.io": "hub"}
    assert file.store == "all"


def test_members_that_are_null_or_missing_are_empty() -> None:
    assert auth_file(auths=None, credHelpers=None, credsStore=None) == AuthFile()
    assert auth_file() == AuthFile()


@pytest.mark.parametrize("name", ["docker.io", "index.docker.io", "registry-1.docker.io", "Docker.IO"])
def test_the_hub_has_one_name(name: str) -> None:
    assert canonical_host(name) == "docker.io"
    assert server_keys(canonical_host(name)) == ("https://index.docker.io/v1/", "docker.io")
    assert server_keys("r.example:5000") == ("r.example:5000",)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"ServerURL": "r", "Username": "u", "Secret": "s"}, Credential("u", "s")),
        ({"Username": "<token>", "Secret": "s"}, Credential(identity_token="s")),
        ({"Username": "", "Secret": ""}, None),
        ({"Username": "u", "Secret": ""}, None),
        ({"Username": "", "Secret": "s"}, None),
        ({}, None),
    ],
)
def test_a_program_answers_with_a_login(answer: object, expected: Credential | None) -> None:
    assert answered(json.dumps(answer).encode()) == expected


@pytest.mark.parametrize("data", [b"", b"canary", b'["canary"]', b'{"Username":7,"Secret":"canary"}'])
def test_an_invalid_answer_is_malformed_and_not_repeated(data: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        answered(data)
    assert "canary" not in caught.value.message


def test_no_representation_shows_a_secret() -> None:
    secret = Credential("canary-user", "canary-password", "canary-identity", "canary-registry")
    file = auth_file(auths={"r": {"auth": encoded("canary-user", "canary-password"), "identitytoken": "canary-i"}})
    assert "canary" not in f"{secret!r} {secret} {file!r} {file.entries}"
