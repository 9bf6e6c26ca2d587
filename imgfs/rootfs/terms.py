"""How a daemon may mount."""

from __future__ import annotations

from dataclasses import dataclass

from imgfs.kernel.probe import Capabilities


@dataclass(frozen=True, slots=True)
class Terms:
    """How this daemon may mount. `trusted`: setuid bits and device nodes work. `private`: other users cannot enter."""

    mountpoint: str
    capabilities: Capabilities
    is_root: bool
    trusted: bool
    private: bool = False
    read_only: bool = False
    """Whether active snapshots are mounted read-only."""

    @property
    def is_kernel(self) -> bool:
        """Whether the kernel shows chains on this host."""
        return self.is_root and bool(self.capabilities.erofs)
