"""`imgfs.copy`: the rows that no file can rebuild, as text, with a checksum.

JSON lines: a head with the database's format and the time, `[table, row]` for each row, last the SHA-256 of all lines
before it. Bytes are base64. The previous copy stays as `imgfs.copy.old`, and is used if the newer one is damaged.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from imgfs.database.format import COPY, COPY_OLD, later
from imgfs.database.kept import Kept, Row
from imgfs.database.migrations import COPIED, copied_columns, current_format, empty_of_format, migrate
from imgfs.disk.calls import HOST
from imgfs.disk.durable import temporary_name, write_file
from imgfs.errors import Malformed

FILE = COPY
OLD = COPY_OLD


class _Head(msgspec.Struct, frozen=True):
    imgfs_copy: int
    written: int


class _Tail(msgspec.Struct, frozen=True):
    sha256: str


@dataclass(frozen=True, slots=True)
class RowCopy:
    """The rows of each table at the time `written` (ns since the epoch)."""

    written: int
    rows: Mapping[str, Sequence[Row]]


def encode(copy: RowCopy) -> bytes:
    """The file's bytes; the same rows at the same time are the same bytes."""
    encoder = msgspec.json.Encoder()
    lines = [encoder.encode(_Head(current_format(), copy.written))]
    lines += (encoder.encode((table, row)) for table, rows in copy.rows.items() for row in rows)
    data = b"\n".join(lines) + b"\n"
    return data + encoder.encode(_Tail(hashlib.sha256(data).hexdigest())) + b"\n"


def decode(data: bytes, kept: Sequence[Kept]) -> RowCopy:
    """Read a copy back. Rows of an older format are read by that format's types and migrated to the current one.

    Tables that `kept` does not have are passed over. Raises Malformed, and Foreign for a later format.
    """
    body, head = _checked(data)
    form = head.imgfs_copy
    if form == current_format():
        return RowCopy(head.written, _rows(body, {one.name: one.row for one in kept}))
    if form not in COPIED:
        raise Malformed(f"{FILE}: has format {form}, which no imgfs has written")
    with closing(empty_of_format(form)) as db:
        columns = copied_columns(db, form)
        for table, rows in _rows(body, {table: row for table, (_, row) in columns.items()}).items():
            names = columns[table][0]
            marks = ", ".join("?" * len(names))
            db.executemany(f"INSERT OR IGNORE INTO {table} ({', '.join(names)}) VALUES ({marks})", rows)
        migrate(db)
        return RowCopy(head.written, {one.name: one.sift(db)[0] for one in kept})


def _rows(lines: Iterator[bytes], types: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The rows of each table in `types`. Raises Malformed where a row has not its table's type."""
    decoders = {table: msgspec.json.Decoder(row) for table, row in types.items()}
    rows: dict[str, list[Row]] = {table: [] for table in types}
    any_line: msgspec.json.Decoder[tuple[str, msgspec.Raw]] = msgspec.json.Decoder(tuple[str, msgspec.Raw])
    try:
        for line in lines:
            table, row = any_line.decode(line)
            if table in rows:
                rows[table].append(decoders[table].decode(row))
    except msgspec.MsgspecError as error:
        raise Malformed(f"{FILE}: {error}; it is written anew while the state directory is mounted") from None
    return rows


def read(path: Path, kept: Sequence[Kept]) -> RowCopy:
    """The copy in a file. Raises Malformed if it is torn, Foreign for a later format, OSError."""
    return decode(path.read_bytes(), kept)


def newest(state: Path, kept: Sequence[Kept]) -> RowCopy | None:
    """The newest copy of a state directory that checks out; None if there is none.

    Raises Foreign for a copy of a later format: its rows would be lost with the next copy.
    """
    for name in (FILE, OLD):
        with suppress(OSError, Malformed):
            return read(state / name, kept)
    return None


def save(state: Path, copy: RowCopy) -> bool:
    """Write the copy unless the file has the same rows; returns whether it did. Durable on return.

    Raises OSError, and Foreign for a copy of a later format, which stays as it is.
    """
    path, data = state / FILE, encode(copy)
    if _rows_of(path) == _body(data):
        return False
    if _rows_of(path) is not None:
        _keep_old(path)
    write_file(path, data)
    return True


def _keep_old(path: Path) -> None:
    """Keep the current copy as the old one, by a link and a rename: one whole copy has a name at any time."""
    temporary = path.with_name(temporary_name())
    HOST.link(path, temporary)
    HOST.rename(temporary, path.with_name(OLD))


def _rows_of(path: Path) -> bytes | None:
    """The rows in a file as they are written; None if the file is not whole or missing. Raises Foreign."""
    try:
        data = path.read_bytes()
        _checked(data)
    except (OSError, Malformed):
        return None
    return _body(data)


def _body(data: bytes) -> bytes:
    return data[data.index(b"\n") : data.rindex(b"\n", 0, -1)]


def _checked(data: bytes) -> tuple[Iterator[bytes], _Head]:
    """The lines of rows, and the head. Raises Malformed unless the checksum is right, Foreign for a later format."""
    end = data.rfind(b"\n", 0, -1) + 1
    try:
        tail = msgspec.json.decode(data[end:], type=_Tail)
        lines = iter(data[:end].splitlines())
        head = msgspec.json.decode(next(lines, b""), type=_Head)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Malformed(f"{FILE}: {error}; it is torn") from None
    if not data.endswith(b"\n") or hashlib.sha256(data[:end]).hexdigest() != tail.sha256:
        raise Malformed(f"{FILE}: its checksum is wrong; it is torn or damaged")
    if head.imgfs_copy > current_format():
        raise later(Path(FILE), head.imgfs_copy)
    return lines, head


def rows_of(db: sqlite3.Connection, kept: Sequence[Kept]) -> dict[str, Sequence[Row]]:
    """The rows to copy from an open database. Raises sqlite3.Error, also for a damaged table or row."""
    return {one.name: one.dump(db) for one in kept}
