"""The kinds of plugins of this room, and its plugins: the layer store and the built-in compressions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from imgfs.layers import compression
from imgfs.layers.store import LayerStore
from imgfs.plugins.contract import Context, Kind, Plugin

LAYERS = Kind("layers", LayerStore)
COMPRESSION = Kind("compression", compression.Compression)


@asynccontextmanager
async def _layers(context: Context) -> AsyncGenerator[LayerStore]:
    store = LayerStore(context.state)
    try:
        yield store
    finally:
        store.close()


LOCAL = Plugin(LAYERS, "local", _layers)
NONE = Plugin(COMPRESSION, "none", lambda _: compression.NONE, exports={"media_type": compression.NONE.layer_type})
GZIP = Plugin(COMPRESSION, "gzip", lambda _: compression.GZIP, exports={"media_type": compression.GZIP.layer_type})
ZSTD = Plugin(COMPRESSION, "zstd", lambda _: compression.ZSTD, exports={"media_type": compression.ZSTD.layer_type})
