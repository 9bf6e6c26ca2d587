"""Making a layer's index again from its tar, when it does not read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from imgfs.content.durable import fsync_path, publish, temporary_name
from imgfs.errors import VerificationFailed
from imgfs.layers import files
from imgfs.layers.index import encode_index
from imgfs.layers.tar import TarWalk
from imgfs.oci.digest import Digest

_READ = 1 << 20


def reindex(directory: Path, diff_id: Digest, moved: Callable[[int], object]) -> None:
    """Walk the tar of a stored layer and replace its index, durably; blocks. `moved` is told the bytes of each piece.

    Raises VerificationFailed where the tar is not that of `diff_id`, OSError; then the index is as before. What a kill
    leaves lies beside the layer under a temporary name, where the store sweeps.
    """
    walk, running, size = TarWalk(), diff_id.new_hash(), 0
    with (directory / files.TAR).open("rb", buffering=0) as tar:
        while piece := tar.read(_READ):
            running.update(piece)
            walk.feed(piece)
            moved(len(piece))
            size += len(piece)
    if running.hexdigest() != diff_id.hex:
        raise VerificationFailed(f"layer {diff_id}: its tar has another digest; it is set aside")
    temporary = directory.with_name(temporary_name())
    try:
        temporary.write_bytes(files.pack(size, encode_index(walk.close())))
        fsync_path(temporary)
        publish(temporary, directory / files.INDEX)
    finally:
        temporary.unlink(missing_ok=True)
