"""The header walk: turns the stream of a layer's tar into entries. It decodes headers and skips payloads.

The caller feeds pieces; the walk does no I/O and keeps no payload. Where tar readers differ, the walk does the same as
Go's archive/tar, because container runtimes unpack with it:

- A single zero block ends the archive only if the stream ends there. A header after it is Malformed (GNU tar warns and
  stops).
- Both zero blocks at the end, and the padding of the last payload, may be missing.
- Links, directories, devices and FIFOs have no payload, whatever their size field says.
- Global PAX headers, and the extended headers before one, are read and ignored. Of two extended headers before an entry
  the last one counts. GNU long names take precedence over PAX names.
- PAX records for fields that an entry does not have are ignored. Extended attributes may be empty.

header.py decodes blocks. pax.py and sparse.py decode extended headers. paths.py cleans names, xattr_filter.py
filters attributes.
"""

from __future__ import annotations

from collections.abc import Generator

from imgfs.errors import Malformed, TooLarge, Unsupported
from imgfs.layers import sparse
from imgfs.layers.entry import Entry, EntryKind, Extent
from imgfs.layers.header import BLOCK, SIZE_LIMIT, ZEROS, Header, device_numbers, read_header
from imgfs.layers.index import Weight
from imgfs.layers.paths import check_target, clean
from imgfs.layers.pax import EXTENDED_TYPES, ExtendedHeaders
from imgfs.layers.tree import IMPLICIT_MAX
from imgfs.layers.whiteouts import is_marked, whiteout

ENTRIES_LIMIT = 2_000_000
EXTENDED_LIMIT = 1 << 20
"""Limit of the bytes of extended headers before one entry."""
METADATA_LIMIT = 256 << 20
"""Limit of the bytes of names, attributes and sparse maps that extended headers add to the entries of one layer."""

_ID_LIMIT = (1 << 32) - 2
_EXTENT_COST = 128
_ENDLESS = 1 << 65
_KINDS = {
    b"0": EntryKind.REGULAR,
    b"\0": EntryKind.REGULAR,
    b"7": EntryKind.REGULAR,
    b"S": EntryKind.REGULAR,
    b"1": EntryKind.HARDLINK,
    b"2": EntryKind.SYMLINK,
    b"3": EntryKind.CHARACTER,
    b"4": EntryKind.BLOCK,
    b"5": EntryKind.DIRECTORY,
    b"6": EntryKind.FIFO,
    b"D": EntryKind.DIRECTORY,
}
_LINKS = (EntryKind.SYMLINK, EntryKind.HARDLINK)
_NODES = (EntryKind.CHARACTER, EntryKind.BLOCK)
_SKIPPED = (b"D", b"V")
"""The types with a payload that are not regular files: dump directories and volume labels of GNU tar."""


class TarWalk:
    """Push parser of one layer's tar. `entries` grows in stream order. Whiteouts are entries too.

    Raises Malformed, TooLarge and Unsupported with the name and offset of the entry. Every later call raises the same
    error. Memory holds the entries that the caller has not taken and at most 1 MiB of extended headers. A size in a
    header allocates nothing.
    """

    def __init__(
        self, *, entries: int = ENTRIES_LIMIT, extended: int = EXTENDED_LIMIT, metadata: int = METADATA_LIMIT
    ) -> None:
        """Start at offset 0. The arguments are the limits that the constants of the same names describe."""
        self.entries: list[Entry] = []
        self._count = 0
        self._parent: bytes = b""  # the parent of the last entry
        self._implied = 0
        self._entries_limit, self._extended_limit, self._metadata_limit = entries, extended, metadata
        self._metadata = 0
        self._fed = 0
        self._held = bytearray()  # the start of the record at _at, if the last piece ended inside the record
        self._at = 0  # offset of the next record; _want is its length
        self._need = 0  # offset that the stream must reach to be complete
        self._start, self._name = 0, b""  # offset and name of the current entry, for messages
        self._ended = False
        self._failure: Malformed | TooLarge | Unsupported | None = None
        self._steps = self._walk()
        self._want = next(self._steps)

    def feed(self, piece: bytes | bytearray | memoryview) -> None:
        """Parse the next piece of the tar, of any length."""
        if self._failure:
            raise self._failure
        begin = self._fed
        self._fed = end = begin + len(piece)
        if self._ended or end <= self._at:
            return
        try:
            self._consume(memoryview(piece), begin, end)
        except StopIteration:
            self._ended = True
        except (Malformed, TooLarge, Unsupported) as error:
            raise self._fail(error) from error

    def take(self) -> list[Entry]:
        """Return the entries since the last call. The caller owns the list."""
        taken, self.entries = self.entries, []
        return taken

    @property
    def weight(self) -> Weight:
        """What the entries so far may take in a merged tree."""
        return Weight(self._count + min(self._implied, IMPLICIT_MAX), self._metadata)

    def close(self) -> list[Entry]:
        """End the stream and return the entries that the caller has not taken.

        Raises Malformed if the stream ended inside a header or a payload.
        """
        if self._failure:
            raise self._failure
        if not self._ended and (self._held or self._fed < self._need):
            raise self._fail(Malformed(f"the tar ends inside, after {self._fed} bytes: the layer is truncated"))
        self._steps.close()
        return self.entries

    def _consume(self, view: memoryview, begin: int, end: int) -> None:
        """Send each record that ends in this piece to the walk, and keep the start of the record that does not."""
        send, held = self._steps.send, self._held
        while (stop := self._at + self._want) <= end:
            if held:
                record = bytes(held) + view[: stop - begin]
                held.clear()
            else:
                record = view[self._at - begin : stop - begin].tobytes()
            self._at = stop
            self._want = send(record)
        held += view[max(self._at - begin, 0) :]

    def _fail(self, error: Malformed | TooLarge | Unsupported) -> Malformed | TooLarge | Unsupported:
        self._failure = type(error)(f"tar entry {self._name[:256]!r} at offset {self._start}: {error.message}")
        return self._failure

    def _walk(self) -> Generator[int, bytes, None]:
        """Yield the length of the next record at `_at` and receive the record. Returns at the end of the archive."""
        extended: ExtendedHeaders | None = None
        while (block := (yield BLOCK)) != ZEROS:
            self._start, self._name = self._at - BLOCK, b""
            header = read_header(block)
            self._name = header.name
            if header.type in EXTENDED_TYPES:
                extended = yield from self._read_extended(header, extended or ExtendedHeaders())
                continue
            if extended:
                extended.apply(header)
                self._name = header.name
            kind = _kind(header)
            payload, extents = _payload(header, kind), None
            if header.type == b"S" or (extended and sparse.version(extended.records)):
                payload, extents = yield from self._read_sparse(header, kind, block, extended)
            if extended or extents:
                self._charge(header, extents)
            self._add(header, kind, extents)
            self._skip(payload)
            extended = None
        if (yield BLOCK) != ZEROS:
            raise Malformed("a block follows one zero block, expected two at the end: the tar is damaged")

    def _read_extended(
        self, header: Header, extended: ExtendedHeaders
    ) -> Generator[int, bytes, ExtendedHeaders | None]:
        """Read one extended header into `extended`. Returns None after a global header, which is ignored."""
        size = _checked_size(header)
        extended.size += size
        if extended.size > self._extended_limit:
            raise TooLarge(f"extended headers of {extended.size} bytes, the limit is {self._extended_limit}")
        self._need = self._at + size
        extended.take(header.type, (yield size))
        self._skip(0)
        return None if header.type == b"g" else extended

    def _read_sparse(
        self, header: Header, kind: EntryKind | None, block: bytes, extended: ExtendedHeaders | None
    ) -> Generator[int, bytes, tuple[int, tuple[Extent, ...]]]:
        """Set the real size of `header`. Returns the bytes of payload from `_at` on, and their extents."""
        if kind is not EntryKind.REGULAR:
            raise Malformed("sparse, expected a regular file")
        payload = header.size
        self._need = _ENDLESS  # until the map is complete
        if header.type == b"S":
            header.size, found = yield from sparse.old_map(header, block)
        else:
            records = extended.records if extended else {}
            taken, found = yield from sparse.pax_map(header, records)
            payload -= taken
        return payload, sparse.extents(found, _checked_size(header), self._at, payload)

    def _skip(self, payload: int) -> None:
        """Skip `payload` bytes, which the stream must have, and their padding, which it may lack."""
        self._need = end = self._at + payload
        self._at = end + -end % BLOCK

    def _charge(self, header: Header, extents: tuple[Extent, ...] | None) -> None:
        """Count the bytes of an entry that do not fit a header block. Raises TooLarge over the limit."""
        self._metadata += len(header.name) + len(header.link) + _EXTENT_COST * len(extents or ())
        self._metadata += sum(len(name) + len(value) for name, value in header.xattrs)
        if self._metadata > self._metadata_limit:
            raise TooLarge(f"the layer's names, attributes and sparse maps exceed {self._metadata_limit} bytes")

    def _add(self, header: Header, kind: EntryKind | None, extents: tuple[Extent, ...] | None) -> None:
        path = clean(header.name)
        if kind is None:
            return
        entry = whiteout(path) if is_marked(path) else self._entry(path, kind, header, extents)
        if entry is None:
            return
        if self._count >= self._entries_limit:
            raise TooLarge(f"a layer of more than {self._entries_limit} entries")
        self._count += 1
        self._imply(path)
        self.entries.append(entry)

    def _imply(self, path: bytes) -> None:
        """Count the parent directories that an entry may create. The parent of the entry before is counted already."""
        parent = path.rpartition(b"/")[0]
        if parent != self._parent:
            self._parent = parent
            self._implied += parent.count(b"/") + 1

    def _entry(self, path: bytes, kind: EntryKind, header: Header, extents: tuple[Extent, ...] | None) -> Entry | None:
        """Return the entry of an unmarked path; None for a 0/0 character device, a whiteout of overlayfs."""
        if not (0 <= header.uid <= _ID_LIMIT and 0 <= header.gid <= _ID_LIMIT):
            raise Malformed(f"owner {header.uid}:{header.gid}, expected numbers from 0 to {_ID_LIMIT}")
        if not path and kind is not EntryKind.DIRECTORY:
            raise Malformed(f"the root of the layer is a {kind.name.lower()}, expected a directory")
        size, offset, link, major, minor = 0, 0, b"", 0, 0
        if kind is EntryKind.REGULAR:
            size, offset = header.size, self._at
        if kind in _LINKS:
            link = _link(kind, header.link)
        elif kind in _NODES:
            major, minor = device_numbers(header)
            if kind is EntryKind.CHARACTER and not major and not minor:
                return None
        owner = header.uid, header.gid
        return Entry(
            path, kind, header.mode, *owner, header.mtime, size, offset, link, major, minor, header.xattrs, extents
        )


def _kind(header: Header) -> EntryKind | None:
    """Return the kind of the entry; None for a volume label, which is not shown. Raises Unsupported."""
    if header.type == b"\0" and header.name.endswith(b"/"):
        return EntryKind.DIRECTORY
    kind = _KINDS.get(header.type)
    if kind is None and header.type != b"V":
        raise Unsupported(f"entry type {header.type.decode('latin-1')!r}, expected a file, link, node or directory")
    return kind


def _payload(header: Header, kind: EntryKind | None) -> int:
    """Return the number of payload bytes after the header."""
    size = _checked_size(header)
    return size if kind is EntryKind.REGULAR or header.type in _SKIPPED else 0


def _checked_size(header: Header) -> int:
    if not 0 <= header.size < SIZE_LIMIT:
        raise Malformed(f"size {header.size}, expected 0 to {SIZE_LIMIT - 1}")
    return header.size


def _link(kind: EntryKind, link: bytes) -> bytes:
    if kind is EntryKind.SYMLINK:
        check_target(link)
        return link
    target = clean(link)
    if not target:
        raise Malformed(f"hard link to {link[:256]!r}, expected the path of a file")
    return target
