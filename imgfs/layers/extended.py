"""Collects the extended headers before an entry: the long names of GNU tar and the records of PAX (pax.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

from imgfs.layers.header import Header
from imgfs.layers.pax import Records, apply_records, read_records

TYPES = frozenset((b"x", b"X", b"g", b"L", b"K"))
"""The types of extended headers. A global header (`g`) is read and ignored."""


@dataclass(slots=True)
class Extended:
    """The extended headers before one entry. `size` is their total size, which the caller limits."""

    size: int = 0
    name: bytes = b""
    link: bytes = b""
    records: Records = field(default_factory=dict[bytes, bytes])

    def take(self, kind: bytes, payload: bytes) -> None:
        """Add one extended header of type `kind`. Raises Malformed."""
        if kind == b"L":
            self.name = payload.partition(b"\0")[0]
        elif kind == b"K":
            self.link = payload.partition(b"\0")[0]
        else:
            self.records = read_records(payload)

    def apply(self, header: Header) -> None:
        """Override the fields of the entry's own header. GNU long names take precedence over PAX records."""
        apply_records(self.records, header)
        header.name = self.name or header.name
        header.link = self.link or header.link
