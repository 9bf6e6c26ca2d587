"""Taking a blob away so that nobody can store the same digest in the moment between."""

from __future__ import annotations

import os

from imgfs.aio.threads import run_disk
from imgfs.content.store import ContentStore
from imgfs.disk.durable import temporary_name
from imgfs.errors import NotFound, from_os
from imgfs.oci.digest import Digest


async def take_blob(stored: ContentStore, digest: Digest) -> None:
    """Remove a blob; open descriptors keep reading. At the first await it is no longer stored, nor named on disk.

    Not made durable: a blob that a power cut brings back is garbage as before. A kill leaves a temporary name, which
    the next start sweeps. Raises NotFound, StorageFailed, ReadOnly.
    """
    if digest not in stored:
        raise NotFound(f"content {digest}: is not stored here")
    gone = stored.ingest / temporary_name()
    try:
        # Here and not in a thread: whoever fetches it again must not lose the new file to this removal.
        os.rename(stored.path(digest), gone)
    except FileNotFoundError:
        stored.forget(digest)
        return
    except OSError as error:
        raise from_os(error, f"content {digest}") from None
    stored.forget(digest)
    try:
        await run_disk(os.unlink, gone)
    except OSError as error:
        raise from_os(error, f"content {digest}") from None
