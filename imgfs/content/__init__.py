"""Content-addressed blobs on disk: stored only when verified, durable when acknowledged. Blind to registries.

A library too: everything that the tree has below content/, without FUSE.

    import trio

    from imgfs.content import open_store

    GREETING = b"Hello, whoever reads this.\\n"


    async def main() -> None:
        async with open_store("state") as store:
            async with store.writer("greeting", total=len(GREETING)) as writer:
                await writer.write(GREETING[writer.offset :])  # goes on where an earlier run was cut off
                blob = await writer.commit()  # verified, and on disk
            await store.update(blob.digest, {"example.com/language": b"en"})
            for info in store.walk():
                print(info.digest, info.size, dict(info.labels))
            print(await store.read_at(blob.digest, 0, 5))
            await store.delete(blob.digest)


    trio.run(main)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgfs.content.library import ContentInfo, ContentLibrary, open_store

__all__ = ["ContentInfo", "ContentLibrary", "open_store"]


def __getattr__(name: str) -> object:
    """The library on demand: whoever needs one module of this room shall not load them all."""
    if name in __all__:
        from imgfs.content import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
