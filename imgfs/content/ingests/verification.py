"""What speaks against a declaration or a commit."""

from __future__ import annotations

from msgspec import UnsetType

from imgfs.content.ingests.ingest import Ingest
from imgfs.errors import AlreadyExists, Invalid, VerificationFailed
from imgfs.oci.digest import Digest

TOTAL_MAX = 2**53


async def verify(ingest: Ingest, digest: Digest) -> None:
    """Raise what speaks against storing the bytes as `digest`."""
    meta = ingest.meta
    await ingest.check_kept()
    if meta.total not in (None, ingest.offset):
        raise VerificationFailed(f"{ingest.subject}: got {ingest.offset} bytes, expected {meta.total}; send the rest")
    if meta.expected not in (None, digest):
        raise VerificationFailed(f"{ingest.subject}: expected {meta.expected}, commit says {digest}")
    ingest.hash_with(digest.algorithm)
    await ingest.catch_up()
    await ingest.check_kept()
    if ingest.running.digest != digest:
        got = ingest.running.digest
        raise VerificationFailed(f"{ingest.subject}: the bytes have digest {got}, commit says {digest}; not stored")


def stored_already(digest: Digest) -> AlreadyExists:
    """The error for bytes that nobody needs to send."""
    return AlreadyExists(f"content {digest}: is stored already; nothing to send")


def check_total(total: int | UnsetType | None) -> None:
    """Raise Invalid for a size that no blob has."""
    if isinstance(total, int) and not 0 <= total <= TOTAL_MAX:
        raise Invalid(f"ingest total {total}: expected 0 to {TOTAL_MAX}")
