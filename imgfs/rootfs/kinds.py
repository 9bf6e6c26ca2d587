"""What plugins of this room are, and what they want of the program."""

from __future__ import annotations

from imgfs.plugins.contract import Kind
from imgfs.rootfs.metadata import MetadataImages
from imgfs.rootfs.rootfs import Rootfs
from imgfs.rootfs.terms import Terms

ROOTFS = Kind("rootfs", Rootfs)
METADATA = Kind("metadata", MetadataImages)
TERMS = Kind("terms", Terms)
