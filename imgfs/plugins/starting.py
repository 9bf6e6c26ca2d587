"""Start plugins in order, and close them in reverse order.

An optional plugin that cannot start is skipped, and so are the optional plugins that require it. If a required plugin
cannot start, nothing starts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import trio

from imgfs.aio.gather import plain_nursery
from imgfs.errors import ImgfsError, Invalid, from_os
from imgfs.plugins.contract import Kind, Plugin
from imgfs.plugins.finding import FoundPlugin, reason_of
from imgfs.plugins.options import NOWHERE, Places, Sections, check_names, read_options
from imgfs.plugins.order import ordered
from imgfs.plugins.started import Given, NotStarted, RunningPlugins

T = TypeVar("T")
Options = TypeVar("Options", bound=msgspec.Struct)
_log = logging.getLogger("imgfs.plugins")


@asynccontextmanager
async def started(
    found: Sequence[FoundPlugin],
    sections: Sections,
    disabled: Sequence[str],
    state: Path,
    given: Iterable[Given] = (),
    places: Places = NOWHERE,
) -> AsyncGenerator[RunningPlugins]:
    """Start the plugins in `found` for as long as the context lasts. `places` says where `sections` are set.

    Raises Invalid for a cycle or a wrong option, NotStarted if a required plugin does not start. Plugins that had
    started are closed after an error or a cancellation.
    """
    check_names(sections, disabled, [one.name for one in found], places)
    order = ordered(one.plugin for one in found if one.plugin)
    options = {plugin.name: read_options(plugin, sections, places) for plugin in order}
    async with plain_nursery() as outer, AsyncExitStack() as held:
        work = await outer.start(_work)
        try:
            running = RunningPlugins(work.nursery, found, given)
            for plugin in order:
                context = _Context(plugin, options[plugin.name], state, running)
                reason = await _start(plugin, context, running, held)
                running.note(plugin, reason, options[plugin.name], state)
            yield running
        finally:
            await work.end()  # before anything that the work uses is closed


class _Context:
    """The Context of one plugin: only the objects that it requires, and its own options."""

    def __init__(
        self, plugin: Plugin[object], options: msgspec.Struct | None, state: Path, running: RunningPlugins
    ) -> None:
        self.state = state
        self.nursery = running.nursery
        self._plugin = plugin
        self._options = options
        self._running = running

    def one(self, kind: Kind[T]) -> T:
        """See `Context`."""
        self._check(kind)
        return self._running.one(kind)

    def all(self, kind: Kind[T]) -> list[T]:
        """See `Context`."""
        self._check(kind)
        return self._running.all(kind)

    def options(self, of: type[Options]) -> Options:
        """See `Context`."""
        if not isinstance(self._options, of):
            raise Invalid(f"`make` asks for the options {of.__name__}; declare them in the plugin's `options`")
        return self._options

    def _check(self, kind: Kind[object]) -> None:
        if kind not in self._plugin.requires:
            raise Invalid(f"`make` asks for an object of kind {kind.name}; declare it in the plugin's `requires`")


async def _start(plugin: Plugin[object], context: _Context, running: RunningPlugins, held: AsyncExitStack) -> str:
    """Start one plugin. Return why it does not run, or "". Raises NotStarted if the plugin is required."""
    reason = running.unmet(plugin)
    if reason:
        failure = NotStarted(f"plugin {plugin.name}: {reason}")
    else:
        try:
            running.add(plugin, await _made(plugin, context, held))
            return ""
        except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code; the failure is reported and other plugins run
            failure = _explained(plugin, error)
    if not plugin.optional:
        raise failure
    _log.warning("plugin skipped", extra={"plugin": plugin.name, "reason": failure.message})
    return failure.message.removeprefix(f"plugin {plugin.name}: ")


async def _made(plugin: Plugin[object], context: _Context, held: AsyncExitStack) -> object:
    made = plugin.make(context)
    if isinstance(made, AbstractAsyncContextManager):
        made = await _entered(plugin, cast("AbstractAsyncContextManager[object]", made), held)
    if not isinstance(made, plugin.kind.type):
        raise TypeError(f"`make` returned {type(made).__name__}, expected {plugin.kind.type.__name__}")
    return made


async def _entered(plugin: Plugin[object], made: AbstractAsyncContextManager[object], held: AsyncExitStack) -> object:
    if not plugin.optional:
        return await held.enter_async_context(made)
    value = await made.__aenter__()

    async def leave(*raised: Any) -> bool:
        try:
            return bool(await made.__aexit__(*raised))
        except Exception as error:  # noqa: BLE001 - foreign code must not keep the daemon from stopping
            _log.error("plugin failed while it was closed", exc_info=error, extra={"plugin": plugin.name})
            return False

    held.push_async_exit(leave)
    return value


def _explained(plugin: Plugin[object], error: BaseException) -> NotStarted:
    if isinstance(error, OSError):
        error = from_os(error, os.fsdecode(error.filename or plugin.name))
    if isinstance(error, ImgfsError):
        return NotStarted(f"plugin {plugin.name}: {error.message}", error.errno)
    _log.error("plugin failed", exc_info=error, extra={"plugin": plugin.name})
    return NotStarted(f"plugin {plugin.name}: {reason_of(error)}")


class _Work:
    """A nursery in a task of its own, so that it can end before resources that were opened later and are used in it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.ended = trio.Event()

    async def end(self) -> None:
        """Cancel all work and wait for its end."""
        self.nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await self.ended.wait()


async def _work(task_status: trio.TaskStatus[_Work] = trio.TASK_STATUS_IGNORED) -> None:
    work = None
    try:
        async with trio.open_nursery() as nursery:
            work = _Work(nursery)
            task_status.started(work)
            await trio.sleep_forever()
    finally:
        if work:
            work.ended.set()
