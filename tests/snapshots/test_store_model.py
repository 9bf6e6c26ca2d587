"""Random sequences of calls, compared with a model. After each reopening the store must equal the model."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from imgfs.errors import AlreadyExists, Busy, ImgfsError, Invalid, NotFound, NotPermitted
from imgfs.oci.digest import EMPTY, Digest
from imgfs.snapshots.ids import active_id

from .storing import Warehouse

KEYS = st.sampled_from(["a", "b", "c"])
CHAIN = str(Digest.of(b"layer"))
IDS = st.sampled_from(["a", "b", "c", "active/a", "active/b", "active/c", CHAIN, EMPTY])


@dataclass
class Known:
    """The facts that the model keeps for one ID."""

    kind: str
    parent: str | None = None
    used: bool = False
    holds: int = 0
    files: tuple[str, ...] = ()


class StoreModel(RuleBasedStateMachine):
    """Runs each call on the real store and on a dictionary, which is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch = tempfile.TemporaryDirectory()
        self.warehouse = Warehouse(Path(self.scratch.name))
        trio.run(self.warehouse.chain, "layer")
        self.known: dict[str, Known] = {}
        self.files = 0

    def teardown(self) -> None:
        self.warehouse.close()
        self.scratch.cleanup()

    def call(self, expected: type[ImgfsError] | None, method: str, *arguments: object, **options: object) -> None:
        """Call the store. It must raise `expected`, or succeed if that is None."""

        async def ask() -> None:
            await getattr(self.warehouse.store, method)(*arguments, **options)

        outcome: type[ImgfsError] | None = None
        try:
            trio.run(ask)
        except ImgfsError as error:
            outcome = type(error)
        assert outcome is expected, f"{method}{arguments}"

    def exists(self, id: str) -> bool:
        return id in self.known or id == CHAIN

    def children(self, id: str) -> list[str]:
        return sorted(name for name, one in self.known.items() if one.parent == id)

    def pinned(self, id: str) -> str:
        one = self.known.get(id)
        return one.parent or id if one is not None and one.kind == "view" else id

    def target_error(self, id: str) -> type[ImgfsError] | None:
        if not self.exists(id):
            return NotFound
        return Invalid if id.startswith("active/") else None

    @rule(key=KEYS)
    def prepare(self, key: str) -> None:
        taken = active_id(key) in self.known
        self.call(AlreadyExists if taken else None, "prepare", key)
        self.known.setdefault(active_id(key), Known("active"))

    @rule(key=KEYS, parent=IDS, replacing=st.booleans())
    def set_parent(self, key: str, parent: str, replacing: bool) -> None:
        one = self.known.get(active_id(key))
        error = self.target_error(parent)
        if one is None:
            error = NotFound
        elif one.used:
            error = Busy
        elif one.parent is not None and not replacing:
            error = AlreadyExists
        self.call(error, "set_parent", key, parent, replacing=replacing)
        if one is not None and error is None:
            one.parent = self.pinned(parent)

    @rule(key=KEYS)
    def mark_used(self, key: str) -> None:
        one = self.known.get(active_id(key))
        self.call(NotFound if one is None else None, "mark_used", key)
        if one is not None:
            one.used = True

    @rule(key=KEYS)
    def write(self, key: str) -> None:
        if one := self.known.get(active_id(key)):
            self.files += 1
            (self.warehouse.store.upper(active_id(key)) / str(self.files)).touch()
            one.files += (str(self.files),)

    @rule(key=KEYS, name=KEYS)
    def commit(self, key: str, name: str) -> None:
        one = self.known.get(active_id(key))
        error = NotFound if one is None else AlreadyExists if name in self.known else Busy if one.holds else None
        self.call(error, "commit", key, name)
        if one is not None and error is None:
            self.known[name] = Known("committed", one.parent, one.used, files=one.files)
            del self.known[active_id(key)]

    @rule(name=KEYS, pinned=IDS)
    def view(self, name: str, pinned: str) -> None:
        error = AlreadyExists if name in self.known else self.target_error(pinned)
        self.call(error, "view", name, pinned)
        if error is None:
            self.known[name] = Known("view", self.pinned(pinned))

    @rule(old=KEYS, new=KEYS)
    def rename_view(self, old: str, new: str) -> None:
        one, there = self.known.get(old), self.known.get(new)
        error: type[ImgfsError] | None = None
        if one is None:
            error = NotFound
        elif one.kind != "view":
            error = NotPermitted
        elif old != new and there is not None and there.kind != "view":
            error = AlreadyExists
        elif old != new and (one.holds or (there is not None and there.holds)):
            error = Busy
        self.call(error, "rename_view", old, new)
        if one is not None and error is None:
            del self.known[old]
            self.known[new] = one

    @rule(id=IDS)
    def remove(self, id: str) -> None:
        one = self.known.get(id)
        error: type[ImgfsError] | None = None
        if id == CHAIN:
            error = NotPermitted
        elif one is None:
            error = NotFound
        elif one.holds or self.children(id):
            error = Busy
        self.call(error, "remove", id)
        if error is None:
            del self.known[id]

    @rule(id=IDS)
    def hold(self, id: str) -> None:
        if one := self.known.get(id):
            self.warehouse.store.hold(id)
            one.holds += 1

    @precondition(lambda self: any(one.holds for one in self.known.values()))
    @rule()
    def release_all(self) -> None:
        for id, one in self.known.items():
            for _ in range(one.holds):
                self.warehouse.store.release(id)
            one.holds = 0

    @rule()
    def reopen(self) -> None:
        self.warehouse.reopen()
        for one in self.known.values():
            one.holds = 0

    @invariant()
    def the_store_is_what_the_model_is(self) -> None:
        store = self.warehouse.store
        assert {one.id: (one.kind.value, one.parent) for one in store} == {
            id: (one.kind, one.parent) for id, one in self.known.items()
        }
        for id, one in self.known.items():
            assert store.children(id) == self.children(id)
            assert store.is_held(id) == bool(one.holds)
            if one.kind != "view":
                assert sorted(path.name for path in store.upper(id).iterdir()) == sorted(one.files)
            assert (store.stack(id).upper is not None) == (one.kind == "active")
        assert len(self.warehouse.directories()) == sum(one.kind != "view" for one in self.known.values())
        assert store.strays() == []


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(max_examples=25, stateful_step_count=30)
