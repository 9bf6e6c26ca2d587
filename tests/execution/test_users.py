"""Users from /etc/passwd and /etc/group: the rules, and that malformed lines in the two files are only skipped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import Invalid, NotFound
from imgfs.execution.bundle.users import ID_LARGEST, User, resolve_user

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/srv:/bin/false\n1000:x:7:8::/odd:\nshort:x:5\n"
GROUP = b"root:x:0:\nweb:x:33:\nlogs:x:40:web,root\nbackup:x:41:web\nbad:x:many:web\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", User(0, 0, (40,), "/root")),
        ("root", User(0, 0, (40,), "/root")),
        ("web", User(33, 33, (40, 41), "/srv")),
        ("33", User(33, 33, (40, 41), "/srv")),
        ("web:logs", User(33, 40, (), "/srv")),
        ("web:99", User(33, 99, (), "/srv")),
        ("1234", User(1234, 0, (), "/")),
        ("1234:web", User(1234, 33, (), "/")),
        ("1000", User(7, 8, (), "/odd")),
        (f"{ID_LARGEST}", User(ID_LARGEST, 0, (), "/")),
    ],
)
def test_name_or_number(text: str, expected: User) -> None:
    assert resolve_user(text, PASSWD, GROUP) == expected


@pytest.mark.parametrize("text", ["nobody", "web:nobodies", "short", "-1", "0x10", "web:bad", "\udcff"])
def test_an_unknown_name_is_reported(text: str) -> None:
    with pytest.raises(NotFound, match="is not in the image's /etc/"):
        resolve_user(text, PASSWD, GROUP)


@pytest.mark.parametrize("text", ["4294967295", "web:4294967295", "9" * 5000, "web:"])
def test_number_out_of_range_is_invalid(text: str) -> None:
    with pytest.raises(Invalid):
        resolve_user(text, PASSWD, GROUP)


def test_image_without_the_two_files_has_root_and_numbers() -> None:
    assert resolve_user("", b"", b"") == User(0, 0)
    assert resolve_user("5:6", b"", b"") == User(5, 6)
    with pytest.raises(NotFound):
        resolve_user("root", b"", b"")


def test_a_home_that_is_no_path_becomes_the_root() -> None:
    assert resolve_user("a", b"a:x:1:1::relative:\n", b"").home == "/"


@given(st.text(max_size=20), st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes_give_a_user_or_an_error(text: str, passwd: bytes, group: bytes) -> None:
    try:
        found = resolve_user(text, passwd, group)
    except (Invalid, NotFound):
        return
    assert all(0 <= number <= ID_LARGEST for number in (found.uid, found.gid, *found.groups))
    assert found.home.startswith("/")


_WORD = st.from_regex(r"[a-z_][a-z0-9_-]{0,8}", fullmatch=True)
_NUMBER = st.integers(0, ID_LARGEST)


@given(st.dictionaries(_WORD, st.tuples(_NUMBER, _NUMBER), min_size=1), st.data())
def test_every_account_is_found_by_its_name(accounts: dict[str, tuple[int, int]], data: st.DataObject) -> None:
    passwd = "".join(f"{name}:x:{uid}:{gid}::/home/{name}:\n" for name, (uid, gid) in accounts.items()).encode()
    name = data.draw(st.sampled_from(sorted(accounts)))
    assert resolve_user(name, passwd, b"") == User(*accounts[name], (), f"/home/{name}")
