"""The content store and its unfinished writes, in the state directory."""

from __future__ import annotations

from imgfs.content.ingests.store import IngestStore
from imgfs.content.kinds import CONTENT, ERA, INGESTS
from imgfs.content.library import content_of
from imgfs.content.store import ContentStore
from imgfs.plugins.contract import Context, Plugin
from imgfs.plugins.program import DATABASE


def _content(context: Context) -> ContentStore:
    return content_of(context.state, context.one(DATABASE))


def _ingests(context: Context) -> IngestStore:
    return IngestStore(context.one(CONTENT), context.nursery, context.one(ERA).word)


LOCAL_CONTENT = Plugin(CONTENT, "local", _content, requires=(DATABASE,))
LOCAL_INGESTS = Plugin(INGESTS, "local", _ingests, requires=(CONTENT, ERA))
