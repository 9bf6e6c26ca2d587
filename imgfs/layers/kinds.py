"""The kinds of plugins of this room."""

from __future__ import annotations

from imgfs.layers.compression import Compression
from imgfs.layers.store import LayerStore
from imgfs.plugins.contract import Kind

LAYERS = Kind("layers", LayerStore)
COMPRESSION = Kind("compression", Compression)
