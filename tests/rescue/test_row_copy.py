"""The copy of rows that files cannot rebuild: it reads back unchanged; if it is torn, the previous copy is used."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.assembly.tables import TABLES
from imgfs.errors import Malformed
from imgfs.rescue.row_copy import FILE, OLD, RowCopy, decode, encode, newest, save

KEPT = TABLES.kept
EMPTY = {one.name: [] for one in KEPT}
ROWS = {
    **EMPTY,
    "names": [("docker.io/library/a:1", "sha256:aa", 1), ("b\u2028c", "sha256:bb", 2)],
    "leases": [(b"\xff\n", 3, None)],
    "content_labels": [("sha256:aa", "key", b"\0\n\xff")],
}


def copy(number: int) -> RowCopy:
    return RowCopy(number, {**EMPTY, "names": [("a", f"sha256:{number}", number)]})


def test_encoded_rows_decode_to_the_same_rows() -> None:
    assert decode(encode(RowCopy(7, ROWS)), KEPT) == RowCopy(7, ROWS)
    assert decode(encode(RowCopy(7, EMPTY)), KEPT) == RowCopy(7, EMPTY)


@given(
    st.lists(st.tuples(st.text(), st.text(), st.integers(0, 2**62))),
    st.lists(st.tuples(st.binary(), st.binary(), st.binary())),
)
def test_any_rows_decode_to_the_same_rows(
    names: list[tuple[str, str, int]], links: list[tuple[bytes, bytes, bytes]]
) -> None:
    made = RowCopy(1, {**EMPTY, "names": names, "lease_links": links})
    assert decode(encode(made), KEPT) == made


def test_a_table_that_is_no_longer_kept_is_skipped() -> None:
    assert decode(encode(RowCopy(7, {**ROWS, "gone": [(1, 2)]})), KEPT) == RowCopy(7, ROWS)


def test_every_cut_and_every_flipped_byte_is_refused() -> None:
    data = encode(RowCopy(7, ROWS))
    for size in range(len(data)):
        with pytest.raises(Malformed):
            decode(data[:size], KEPT)
        with pytest.raises(Malformed):
            decode(data[:size] + bytes([data[size] ^ 1]) + data[size + 1 :], KEPT)


def test_another_format_is_refused() -> None:
    with pytest.raises(Malformed):
        decode(b'{"imgfs_copy":1,"written":"now"}\n', KEPT)


def test_a_saved_copy_is_found_and_the_previous_copy_stays(tmp_path: Path) -> None:
    assert newest(tmp_path, KEPT) is None
    assert save(tmp_path, copy(1))
    assert save(tmp_path, copy(2))
    assert newest(tmp_path, KEPT) == copy(2)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-10])
    assert newest(tmp_path, KEPT) == copy(1)
    assert sorted(os.listdir(tmp_path)) == [FILE, OLD]


def test_the_same_rows_are_not_written_again(tmp_path: Path) -> None:
    save(tmp_path, copy(1))
    assert not save(tmp_path, RowCopy(99, copy(1).rows))
    assert newest(tmp_path, KEPT) == copy(1)


def test_a_torn_copy_does_not_replace_the_previous_one(tmp_path: Path) -> None:
    save(tmp_path, copy(1))
    save(tmp_path, copy(2))
    (tmp_path / FILE).write_bytes(b"torn")
    save(tmp_path, copy(3))
    (tmp_path / FILE).write_bytes(b"torn again")
    assert newest(tmp_path, KEPT) == copy(1)


@pytest.mark.parametrize("call", ["link", "rename", "fsync", "write", "pwrite", "open"])
def test_a_crash_at_any_call_leaves_a_whole_copy(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nth call and all later calls fail, which has the same effect on the disk as a kill."""
    for number in range(1, 5):
        save(tmp_path, copy(1))
        with monkeypatch.context() as patch:
            real, count = getattr(os, call), 0

            def failing(*arguments: object, real: object = real, after: int = number, **named: object) -> object:
                nonlocal count
                count += 1
                if count >= after:
                    raise OSError(5, "gone")
                assert callable(real)
                return real(*arguments, **named)

            patch.setattr(os, call, failing)
            with suppress(OSError):
                save(tmp_path, copy(2))
        found = newest(tmp_path, KEPT)
        assert found in (copy(1), copy(2)) or (found and found.rows in (copy(1).rows, copy(2).rows))
