"""The layer store in the state directory, and the compressions of the image specification."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from imgfs.layers.compression import Compression, Gzip, Stored, Zstd
from imgfs.layers.kinds import COMPRESSION, LAYERS
from imgfs.layers.store import LayerStore
from imgfs.oci.descriptor import OCI_LAYER
from imgfs.plugins.contract import Context, Plugin


@asynccontextmanager
async def _layers(context: Context) -> AsyncGenerator[LayerStore]:
    store = LayerStore(context.state)
    try:
        yield store
    finally:
        store.close()


LOCAL = Plugin(LAYERS, "local", _layers)
NONE = Plugin(COMPRESSION, "none", lambda _: Compression("none", Stored), exports={"media_type": OCI_LAYER})
GZIP = Plugin(COMPRESSION, "gzip", lambda _: Compression("gzip", Gzip), exports={"media_type": f"{OCI_LAYER}+gzip"})
ZSTD = Plugin(COMPRESSION, "zstd", lambda _: Compression("zstd", Zstd), exports={"media_type": f"{OCI_LAYER}+zstd"})
