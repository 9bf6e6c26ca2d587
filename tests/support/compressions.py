"""The built-in compressions, for tests that start no plugins."""

from __future__ import annotations

from imgfs.layers.compression import BUILT_IN, Compressions

COMPRESSIONS = Compressions(BUILT_IN)
