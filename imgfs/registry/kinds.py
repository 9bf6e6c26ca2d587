"""What plugins of this room are."""

from __future__ import annotations

from imgfs.plugins.contract import Kind
from imgfs.registry.client import Registry

REGISTRY = Kind("registry", Registry)
