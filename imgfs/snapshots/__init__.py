"""Snapshots: the graph of committed layers by chain ID, the merged views on them, and user snapshots.

This package is also a library. It does without FUSE what the tree offers below snapshots/ for writable snapshots.
Mounting needs root.

    import trio

    from imgfs.snapshots import open_snapshots


    async def main() -> None:
        async with open_snapshots("state") as snapshots:
            await snapshots.prepare("work")
            await trio.Path("mnt").mkdir()
            async with snapshots.mounted("active/work", "mnt") as rootfs:
                await trio.Path(rootfs, "hello").write_text("Hello from a snapshot.")
            await snapshots.commit("work", "base")
            await snapshots.prepare("more", "base")  # nothing is copied
            await snapshots.update("base", {"example.com/language": b"en"})
            for info in snapshots.walk():
                print(info.id, info.kind.value, info.parent, dict(info.labels))
            async with snapshots.mounted("active/more", "mnt") as rootfs:
                print(await trio.Path(rootfs, "hello").read_text())
            await snapshots.remove("active/more")
            await snapshots.remove("base")


    trio.run(main)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgfs.snapshots.library import Info, Mount, Snapshots, open_snapshots

__all__ = ["Info", "Mount", "Snapshots", "open_snapshots"]


def __getattr__(name: str) -> object:
    """Import the library on first access, so that importing one module of this package does not import all of it."""
    if name in __all__:
        from imgfs.snapshots import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
