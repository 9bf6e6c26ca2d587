"""The depth limit of snapshots: as many as the kernel can stack. One more is refused before it is made."""

from __future__ import annotations

import pytest

from imgfs.errors import TooLarge
from imgfs.snapshots import lineage

from .storing import Warehouse

LIMIT = 5


async def test_a_parent_that_would_make_the_stack_too_deep_is_refused(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "MOST_LOWERS", LIMIT)
    store, parent = warehouse.store, str(await warehouse.chain("base"))
    for level in range(LIMIT - 1):
        await warehouse.committed(f"level-{level}", parent)
        parent = f"level-{level}"
    stack = store.stack(parent)
    assert len(stack.lowers) + 1 == LIMIT, "and the chain at the bottom"
    await store.prepare("one-more")
    with pytest.raises(TooLarge, match="4 snapshots deep, of 3 at most; flatten it"):
        await store.set_parent("one-more", parent)
    assert store.stat("active/one-more").parent is None
    assert store.children(parent) == []
