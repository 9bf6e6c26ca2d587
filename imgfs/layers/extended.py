"""What extended headers say of the entry behind them: GNU's long names, and the records of PAX (pax.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

from imgfs.layers.header import Header
from imgfs.layers.pax import Records, apply_records, read_records

TYPES = frozenset((b"x", b"X", b"g", b"L", b"K"))
"""The types of headers that are extended ones; `g` is a global one, which counts for nothing."""


@dataclass(slots=True)
class Extended:
    """The sum of the extended headers before one entry; `size` is theirs, for whoever bounds it."""

    size: int = 0
    name: bytes = b""
    link: bytes = b""
    records: Records = field(default_factory=dict[bytes, bytes])

    def take(self, kind: bytes, payload: bytes) -> None:
        """Take in one extended header of type `kind`."""
        if kind == b"L":
            self.name = payload.partition(b"\0")[0]
        elif kind == b"K":
            self.link = payload.partition(b"\0")[0]
        else:
            self.records = read_records(payload)

    def apply(self, header: Header) -> None:
        """Override the fields of the entry's own header."""
        apply_records(self.records, header)
        header.name = self.name or header.name
        header.link = self.link or header.link
