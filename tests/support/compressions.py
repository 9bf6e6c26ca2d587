"""The compressions that come with imgfs, for rooms that are tested without plugins."""

from __future__ import annotations

from imgfs.layers.compression import FORMATS, Compression, Compressions

COMPRESSIONS = Compressions(Compression(word, made) for word, made in FORMATS.items())
