"""The parameters of one mount: paths and options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imgfs.config import Config, Settings
from imgfs.gc.space import SpaceLimits
from imgfs.kernel.fuse import SOURCE


@dataclass(frozen=True, slots=True)
class Mounting:
    """What to mount, and where. Both paths are absolute and without symbolic links."""

    mountpoint: Path
    state: Path
    settings: Settings
    foreground: bool
    nosuid: bool = False
    """Whether setuid bits and device nodes are always off."""
    is_read_only: bool = False
    """Whether the tree refuses every change by a caller. Content that is read is still fetched."""
    source: str = SOURCE
    """The source in the mount table. mount(8) matches a line of fstab by it."""

    @property
    def config(self) -> Config:
        """The options in force."""
        return self.settings.config

    @property
    def is_trusted(self) -> bool:
        """Whether setuid bits and device nodes work in views, as in an unpacked directory.

        They do not work if a user other than root may enter the mount, because any image can contain a setuid shell.
        """
        return self.config.is_private and not self.nosuid

    @property
    def limits(self) -> SpaceLimits:
        """The limits at which garbage collection frees space."""
        return SpaceLimits(self.config.quota_bytes, self.config.free_space_bytes, self.config.free_space_percent)
