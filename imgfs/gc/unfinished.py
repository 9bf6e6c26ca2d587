"""imgfs's own downloads that broke off: kept to go on from, and the first to go when room is short.

Under their refs a user may have written too. That makes no difference: what is there is a part of what can be fetched.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from imgfs.aio.threads import run_disk
from imgfs.content.copy import copy_ref
from imgfs.content.download import download_ref
from imgfs.content.ingests import IngestStore
from imgfs.content.refs import promised_digest
from imgfs.content.status import Status
from imgfs.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A part of the blob `digest`, without a writer, and the bytes that it takes on disk."""

    status: Status
    digest: Digest
    bytes: int


async def unfinished(ingests: IngestStore) -> list[Unfinished]:
    """All of them, in the order of their refs."""
    idle = sorted((status for status in ingests if not status.is_live), key=lambda status: status.ref)
    return await run_disk(_measure, [(status, digest) for status in idle if (digest := _own(status.ref))])


def _own(ref: str) -> Digest | None:
    digest = promised_digest(ref)
    return digest if digest is not None and ref in (copy_ref(digest), download_ref(digest)) else None


def _measure(found: list[tuple[Status, Digest]]) -> list[Unfinished]:
    measured: list[Unfinished] = []
    for status, digest in found:
        try:
            measured.append(Unfinished(status, digest, os.stat(status.path).st_blocks * 512))
        except FileNotFoundError:
            continue
    return measured
