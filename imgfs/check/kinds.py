"""What plugins of this room are."""

from __future__ import annotations

from imgfs.check.mender import Mender
from imgfs.plugins.contract import Kind

CHECK = Kind("check", Mender)
