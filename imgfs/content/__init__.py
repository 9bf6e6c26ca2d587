"""Content-addressed blobs on disk: verified before they are stored, durable before the call returns.

This package does not know registries.

It is also a library: it offers by calls what the tree offers below content/, without FUSE.

    import trio

    from imgfs.content import open_store

    GREETING = b"Hello from imgfs.\\n"


    async def main() -> None:
        async with open_store("state") as store:
            async with store.writer("greeting", total=len(GREETING)) as writer:
                await writer.write(GREETING[writer.offset :])  # resumes where an earlier run stopped
                blob = await writer.commit()  # verified and durable
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
    """Import the library on first use, so that importing one module of this package does not load all of them."""
    if name in __all__:
        from imgfs.content import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
