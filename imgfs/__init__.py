"""Container images as files: images/, content/ and snapshots/ under one mountpoint."""

__version__ = "0.2.0"
