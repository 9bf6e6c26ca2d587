"""What plugins of this room are."""

from __future__ import annotations

from imgfs.gc.room import Room
from imgfs.plugins.contract import Kind

GC = Kind("gc", Room)
