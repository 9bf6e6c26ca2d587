"""The public module for test images: entries, layers, images and samples.

image([layer([File("etc/hostname", b"box")])]).write_layout(directory, "latest")
"""

from __future__ import annotations

from imgfs.testing.build import (
    AMD64,
    ARM64,
    UNKNOWN,
    BuiltIndex,
    BuiltLayer,
    Image,
    RegistryTarget,
    attestation,
    image,
    index,
    layer,
)
from imgfs.testing.entries import (
    DeviceFile,
    Dir,
    Entry,
    Fifo,
    File,
    Hardlink,
    Opaque,
    SparseFile,
    Symlink,
    Whiteout,
)
from imgfs.testing.layertar import Compression, Format, compress, layer_tar
from imgfs.testing.samples import (
    ALL_ODDITIES,
    IMPLICIT_DIRECTORIES,
    Oddities,
    busybox_image,
    capability,
    oddities_image,
)

__all__ = [
    "ALL_ODDITIES",
    "AMD64",
    "ARM64",
    "IMPLICIT_DIRECTORIES",
    "UNKNOWN",
    "BuiltIndex",
    "BuiltLayer",
    "Compression",
    "DeviceFile",
    "Dir",
    "Entry",
    "Fifo",
    "File",
    "Format",
    "Hardlink",
    "Image",
    "Oddities",
    "Opaque",
    "RegistryTarget",
    "SparseFile",
    "Symlink",
    "Whiteout",
    "attestation",
    "busybox_image",
    "capability",
    "compress",
    "image",
    "index",
    "layer",
    "layer_tar",
    "oddities_image",
]
