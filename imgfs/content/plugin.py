"""The kinds of this room, and its built-in plugins: the content store and the ingests of a state directory."""

from __future__ import annotations

from dataclasses import dataclass

from imgfs.content.ingests.store import IngestStore
from imgfs.content.library import content_of
from imgfs.content.store import ContentStore
from imgfs.plugins.contract import Context, Kind, Plugin
from imgfs.plugins.program import DATABASE


@dataclass(frozen=True, slots=True)
class Era:
    """The era of this run. Bytes that were not synced are trusted only in the era in which they were written.

    See ingests/directories.py. With None, the ingest store computes the era itself.
    """

    word: str | None


def _content(context: Context) -> ContentStore:
    return content_of(context.state, context.one(DATABASE))


def _ingests(context: Context) -> IngestStore:
    return IngestStore(context.one(CONTENT), context.nursery, context.one(ERA).word)


CONTENT = Kind("content", ContentStore)
INGESTS = Kind("ingests", IngestStore)
ERA = Kind("era", Era)

LOCAL_CONTENT = Plugin(CONTENT, "local", _content, requires=(DATABASE,))
LOCAL_INGESTS = Plugin(INGESTS, "local", _ingests, requires=(CONTENT, ERA))
