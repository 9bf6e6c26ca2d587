"""The handlers of pyfuse3: from inode numbers and names to nodes, from errors to errno. The nodes give the answers.

An exception other than FUSEError would end the session, so every handler runs in one guard.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from time import perf_counter
from types import CoroutineType
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3

from imgfs.aio.patience import one_request
from imgfs.errors import ImgfsError, Invalid, NotFound, NotPermitted, Unsupported
from imgfs.fs.caller import Caller
from imgfs.fs.content.ingest import WriterHandle
from imgfs.fs.node import Handle, Listing, NoAttribute, Node, is_control
from imgfs.fs.root import Root
from imgfs.fs.snapshots.chain import ChainRootfs
from imgfs.fs.snapshots.view import ViewNode
from imgfs.fs.subsystems import Subsystems
from imgfs.snapshots.graph import Face

P = ParamSpec("P")
R = TypeVar("R")

_FOREIGN = frozenset((b"security.selinux", b"system.posix_acl_access", b"system.posix_acl_default"))
"""Attributes that only files of images have. `ls -l` reads them of each file until it gets EOPNOTSUPP."""
_log = logging.getLogger("imgfs.fs")


def guarded(
    handler: Callable[Concatenate[Operations, P], CoroutineType[Any, Any, R]],
) -> Callable[Concatenate[Operations, P], CoroutineType[Any, Any, R]]:
    """Convert every error of `handler` to an errno. An unexpected exception becomes EIO, with a traceback in the log.

    The guard measures the duration, which costs half a microsecond.
    """

    kind = handler.__name__

    @functools.wraps(handler)
    async def guard(self: Operations, /, *args: P.args, **kwargs: P.kwargs) -> R:
        began = perf_counter()
        try:
            with one_request():
                return await handler(self, *args, **kwargs)
        except ImgfsError as error:
            raise pyfuse3.FUSEError(error.errno) from None
        except pyfuse3.FUSEError:
            raise
        except OSError as error:
            _log.warning("system call failed", extra={"handler": kind, "error": str(error)})
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
        except Exception:  # noqa: BLE001
            # One failing request must not end the session for all other callers.
            _log.exception("handler failed", extra={"handler": kind})
            raise pyfuse3.FUSEError(errno.EIO) from None
        finally:
            self.statistics.seconds[kind].observe(perf_counter() - began)

    return guard


class Operations(pyfuse3.Operations):
    """The tree as pyfuse3 calls it."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, subsystems: Subsystems) -> None:
        super().__init__()
        self._chains = subsystems.chains
        self._space = subsystems.space
        self.statistics = subsystems.statistics
        self._waiters = subsystems.statistics.waiters
        self._inodes = Inodes(Root(subsystems))
        self._files: dict[int, Handle] = {}
        self._listings: dict[int, tuple[Node, Listing, ExitStack]] = {}
        self._last_handle = 0

    @guarded
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = await self._node(parent_inode, ctx)
        if name in (b".", b".."):
            return await self._counted(parent)
        meant = parent.canonical(name)
        node = await parent.lookup(meant, self._caller(ctx))
        if meant == name:
            return await self._counted(node)
        entry = await self._counted(node.by_colon_free_name())
        if not stat.S_ISDIR(entry.st_mode):
            entry.entry_timeout = 0  # the kernel would otherwise keep this name after the file is removed by the other
        return entry

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        for number, times in inode_list:
            self._inodes.forget(number, times)

    @guarded
    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        node = await self._node(inode, ctx)
        await node.reached(self._caller(ctx))
        return await node.attributes()

    @guarded
    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        node = await self._node(inode, ctx)
        if fields.update_size:
            await node.truncate(attr.st_size, self._files.get(fh) if fh is not None else None, self._caller(ctx))
        else:
            await node.change(fields, self._caller(ctx))
        return await node.attributes()

    @guarded
    async def readlink(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileNameT:
        target = await (await self._node(inode, ctx)).readlink(self._caller(ctx))
        return pyfuse3.FileNameT(target)

    @guarded
    async def mknod(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        rdev: int,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        parent = await self._node(parent_inode, ctx)
        if not stat.S_ISREG(mode):
            raise parent.refusal()
        return await self._counted(await parent.make_file(parent.canonical(name), os.O_WRONLY, self._caller(ctx)))

    @guarded
    async def mkdir(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, mode: pyfuse3.ModeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = await self._node(parent_inode, ctx)
        return await self._counted(await parent.mkdir(parent.canonical(name), self._caller(ctx)))

    @guarded
    async def unlink(self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext) -> None:
        parent = await self._node(parent_inode, ctx)
        meant = parent.canonical(name)
        await parent.unlink(meant, self._caller(ctx))
        if meant != name:
            pyfuse3.invalidate_entry_async(parent_inode, pyfuse3.FileNameT(meant), ignore_enoent=True)

    @guarded
    async def rmdir(self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext) -> None:
        await (await self._node(parent_inode, ctx)).rmdir(name, self._caller(ctx))

    @guarded
    async def symlink(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        target: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        parent = await self._node(parent_inode, ctx)
        return await self._counted(await parent.symlink(parent.canonical(name), target, self._caller(ctx)))

    @guarded
    async def rename(
        self,
        parent_inode_old: pyfuse3.InodeT,
        name_old: pyfuse3.FileNameT,
        parent_inode_new: pyfuse3.InodeT,
        name_new: pyfuse3.FileNameT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        parent = await self._node(parent_inode_old, ctx)
        target = await self._node(parent_inode_new, ctx)
        try:
            await parent.rename(name_old, target, target.canonical(name_new), flags, self._caller(ctx))
        except Invalid as error:
            # mv reports EINVAL of rename(2) as "a subdirectory of itself".
            raise NotPermitted(error.message) from None

    @guarded
    async def link(
        self,
        inode: pyfuse3.InodeT,
        new_parent_inode: pyfuse3.InodeT,
        new_name: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        raise (await self._node(new_parent_inode, ctx)).refusal()

    @guarded
    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        node = await self._node(inode, ctx)
        number = self._new_handle()
        self._files[number] = await node.open(flags, self._caller(ctx))
        return pyfuse3.FileInfo(fh=number, direct_io=node.direct_io, keep_cache=not node.direct_io)

    @guarded
    async def create(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        parent = await self._node(parent_inode, ctx)
        node = await parent.make_file(parent.canonical(name), flags, self._caller(ctx))
        entry = await self._counted(node)
        return await self.open(pyfuse3.InodeT(node.number), flags, ctx), entry

    @guarded
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        # pyfuse3 accepts any contiguous buffer, and a copy costs time.
        data = await self._files[fh].read(off, size)
        self.statistics.read_bytes += len(data)
        return data  # pyright: ignore[reportReturnType]

    @guarded
    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        return await self._writer(fh).write(off, buf)

    @guarded
    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        # The kernel treats ENOSYS as success and never sends FLUSH again, which saves one request for each close.
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @guarded
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        await self._files.pop(fh).close()

    @guarded
    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:  # noqa: FBT001 - as pyfuse3 calls it
        if isinstance(self._files[fh], WriterHandle):
            await self._writer(fh).fsync()

    @guarded
    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        node = await self._node(inode, ctx)
        number = self._new_handle()
        with ExitStack() as holding:
            holding.enter_context(node.held())
            self._listings[number] = (node, await node.entries(self._caller(ctx)), holding.pop_all())
        return pyfuse3.FileHandleT(number)

    @guarded
    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        node, listing, _ = self._listings[fh]
        for position, name in enumerate((b".", b".."), 1):
            if start_id < position and not pyfuse3.readdir_reply(token, name, await node.attributes(), position):
                return
        for position in range(max(start_id - 2, 0), len(listing)):
            name, child = listing[position]
            try:
                entry = await child.listed()
            except NotFound:
                continue  # the entry was removed after opendir
            if not pyfuse3.readdir_reply(token, name, entry, position + 3):
                return
            if is_control(child.number):
                self._inodes.count(child)

    @guarded
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        self._listings.pop(fh)[2].close()

    @guarded
    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:  # noqa: FBT001 - as pyfuse3 calls it
        pass

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        space = await self._caller(ctx).wait(self._space)
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = space.block
        answer.f_blocks, answer.f_bfree, answer.f_bavail = space.total, space.free, space.available
        answer.f_files = space.files
        answer.f_ffree = answer.f_favail = space.files_free
        answer.f_namemax = 255
        return answer

    @guarded
    async def getxattr(self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        node = await self._node(inode, ctx)
        # For other users the kernel reads the ACL itself to check permissions, and treats EOPNOTSUPP as a failure.
        if name in _FOREIGN and is_control(node.number) and ctx.uid == self._chains.shown.uid:
            raise Unsupported(f"{name!r}: nothing outside of views has any")
        value = await node.xattr(name, self._caller(ctx))
        if value is None:
            raise NoAttribute(f"{name!r}: no such attribute")
        return value

    @guarded
    async def listxattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> Sequence[pyfuse3.XAttrNameT]:
        return [pyfuse3.XAttrNameT(name) for name in await (await self._node(inode, ctx)).xattrs()]

    @guarded
    async def setxattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        await (await self._node(inode, ctx)).set_xattr(name, value, self._caller(ctx))

    @guarded
    async def removexattr(self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext) -> None:
        await (await self._node(inode, ctx)).remove_xattr(name, self._caller(ctx))

    @guarded
    async def access(self, inode: pyfuse3.InodeT, mode: pyfuse3.ModeT, ctx: pyfuse3.RequestContext) -> bool:
        return True

    def _caller(self, ctx: pyfuse3.RequestContext) -> Caller:
        return Caller(ctx.pid, ctx.uid, self._waiters)

    async def _node(self, number: int, ctx: pyfuse3.RequestContext) -> Node:
        if is_control(number):
            return self._inodes.get(number)
        snapshot, face, node = self._chains.graph.locate(number)
        if face is Face.ROOTFS and node == 1:
            return ChainRootfs(self._chains, snapshot, number)
        view = self._chains.views.kept(snapshot, face)
        if view is None:
            view = await self._caller(ctx).wait(lambda: self._chains.views.get(snapshot, face))
        return ViewNode(view, view.node(node), self._chains.owner)

    async def _counted(self, node: Node) -> pyfuse3.EntryAttributes:
        entry = await node.attributes()
        if is_control(node.number):
            self._inodes.count(node)
        return entry

    def _writer(self, number: int) -> WriterHandle:
        handle = self._files[number]
        if not isinstance(handle, WriterHandle):
            raise NotPermitted("the file was not opened for writing")
        return handle

    def _new_handle(self) -> int:
        self._last_handle += 1
        return self._last_handle


class Inodes:
    """Lookup counts (`nlookup` in FUSE).

    Inodes of views need none: their numbers lead to their nodes (snapshots/view.py).
    """

    def __init__(self, root: Node) -> None:
        self._nodes = {root.number: root}
        self._counts = {root.number: 1}

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, number: int) -> Node:
        """Return the node of an inode number. Raises NotFound if the kernel has forgotten it."""
        try:
            return self._nodes[number]
        except KeyError:
            raise NotFound(f"inode {number}: was forgotten") from None

    def count(self, node: Node) -> None:
        """Count one more lookup of `node`. The latest node object of a number answers requests."""
        self._nodes[node.number] = node
        self._counts[node.number] = self._counts.get(node.number, 0) + 1

    def forget(self, number: int, times: int) -> None:
        """Subtract `times` lookups."""
        left = self._counts.get(number, 0) - times
        if left > 0:
            self._counts[number] = left
        elif number in self._counts:
            del self._counts[number], self._nodes[number]
