"""The index of a stored layer: its entries as one checked file, so that nothing walks a tar twice.

Derived from the tar and rebuilt from it whenever it does not read back (layers/layer.py). Layout: a magic line, the
BLAKE2b-256 of the payload, the payload: a MessagePack list of entries.
"""

from __future__ import annotations

import hashlib

import msgspec

from imgfs.errors import StorageFailed
from imgfs.layers.entry import Entry

MAGIC = b"imgfs layer index 1\n"
"""How an index begins."""
_SUM = 32
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Entry])


def encode_index(entries: list[Entry]) -> bytes:
    """The file's bytes."""
    payload = _encoder.encode(entries)
    return MAGIC + hashlib.blake2b(payload, digest_size=_SUM).digest() + payload


def decode_index(data: bytes) -> list[Entry]:
    """Entries out of the file's bytes; raises StorageFailed where they are torn, damaged or of another version."""
    start = len(MAGIC) + _SUM
    payload = memoryview(data)[start:]
    if data[: len(MAGIC)] != MAGIC or hashlib.blake2b(payload, digest_size=_SUM).digest() != data[len(MAGIC) : start]:
        raise StorageFailed("layer index: is damaged or of another version")
    try:
        return _decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise StorageFailed(f"layer index: {error}") from None
