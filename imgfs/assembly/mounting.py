"""What is to be mounted where, and by which options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imgfs.config import Config, Settings
from imgfs.gc.limits import Limits
from imgfs.kernel.fuse import SOURCE


@dataclass(frozen=True, slots=True)
class Mounting:
    """What to mount where: absolute paths without symbolic links, and the options in force."""

    mountpoint: Path
    state: Path
    settings: Settings
    foreground: bool
    nosuid: bool = False
    """Whether setuid bits and device nodes are off in any case."""
    is_read_only: bool = False
    """Whether the tree takes no change by anybody's hand; what is read still comes in."""
    source: str = SOURCE
    """What the table of mounts says of where the tree is from: by that, mount(8) knows a line of fstab again."""

    @property
    def config(self) -> Config:
        """The options in force."""
        return self.settings.config

    @property
    def is_trusted(self) -> bool:
        """Whether views behave as an unpacked directory does: setuid bits and device nodes work.

        As soon as anybody but root gets in, they do not: any image can hold a setuid shell.
        """
        return self.config.is_private and not self.nosuid

    @property
    def limits(self) -> Limits:
        """When room is made."""
        return Limits(self.config.quota_bytes, self.config.free_space_bytes, self.config.free_space_percent)
