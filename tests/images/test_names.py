"""Image names: created, replaced, renamed, removed, listed by component; every change is durable."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from imgfs.database.database import Database
from imgfs.errors import AlreadyExists, ImgfsError, Invalid, NotFound
from imgfs.images.names import NAME_MAX, SCHEMA, Names, check_name, is_local_name, reference_of
from imgfs.oci.digest import Digest

A, B = Digest.of(b"a"), Digest.of(b"b")
X, Y, Z = "h.io/team/x:1", "h.io/team/x:2", "h.io/y:1"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "imgfs.db", [SCHEMA])
    yield opened
    opened.close()


@pytest.fixture
def names(database: Database) -> Names:
    return Names(database)


@pytest.mark.parametrize("name", ["mytool:1", "registry.test", "localhost:5000"])
def test_a_name_that_is_only_a_host_is_explained(name: str) -> None:
    with pytest.raises(Invalid, match="is a registry's host"):
        check_name(name)


async def test_a_created_name_is_there_and_after_reopening(names: Names, database: Database) -> None:
    made = await names.create(X, A)
    for opened in (names, Names(database)):
        assert (opened.get(X), list(opened), len(opened), opened.of(A)) == (made, [made], 1, [made])
        assert opened.digests() == [A]
    assert made.reference == reference_of(X)


async def test_a_taken_name_is_refused_and_stays(names: Names, database: Database) -> None:
    made = await names.create(X, A)
    with pytest.raises(AlreadyExists, match="ln -sfn"):
        await names.create(X, B)
    assert names.get(X) == Names(database).get(X) == made


async def test_the_second_of_two_concurrent_creates_is_refused(names: Names, database: Database) -> None:
    refused: list[AlreadyExists] = []

    async def create(digest: Digest) -> None:
        try:
            await names.create(X, digest)
        except AlreadyExists as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(create, A)
        nursery.start_soon(create, B)
    assert len(refused) == 1
    assert names.get(X) == Names(database).get(X)
    assert len(names.digests()) == 1


async def test_putting_replaces(names: Names, database: Database) -> None:
    await names.put(X, A)
    made = await names.put(X, B)
    for opened in (names, Names(database)):
        assert (opened.get(X), opened.of(A), opened.of(B), opened.digests()) == (made, [], [made], [B])


async def test_removing_a_name_keeps_the_others(names: Names, database: Database) -> None:
    await names.put(X, A)
    kept = await names.put(Y, A)
    await names.remove(X)
    for opened in (names, Names(database)):
        assert (opened.get(X), opened.of(A)) == (None, [kept])
    with pytest.raises(NotFound):
        await names.remove(X)


async def test_renaming_moves_and_replaces_in_one_step(names: Names, database: Database) -> None:
    await names.put(X, A)
    await names.put(Y, B)
    await names.rename(X, Y)
    for opened in (names, Names(database)):
        assert [(one.name, one.digest) for one in opened] == [(Y, A)]
        assert opened.digests() == [A]
    with pytest.raises(NotFound):
        await names.rename(X, Z)
    with pytest.raises(NotFound):
        await names.rename(X, X)
    with pytest.raises(Invalid):
        await names.rename(Y, "a/b")
    await names.rename(Y, Y)
    assert names.get(Y)


async def test_components_below_a_directory(names: Names) -> None:
    for name in (X, Y, Z, "g.io/a:1", "tool"):
        await names.put(name, A)
    assert names.below("") == ["g.io", "h.io", "tool"]
    assert names.below("h.io") == ["team", "y:1"]
    assert names.below("h.io/team") == ["x:1", "x:2"]
    assert names.below("h.io/nothing") == names.below("h.io/team/x:1") == []
    await names.remove(X)
    assert names.below("h.io/team") == ["x:2"]
    await names.remove(Y)
    assert (names.below("h.io"), names.below("h.io/team")) == (["y:1"], [])
    await names.remove(Z)
    assert names.below("") == ["g.io", "tool"]


async def test_names_come_sorted(names: Names) -> None:
    for name in (Z, X, "tool", Y):
        await names.put(name, A)
    assert [one.name for one in names] == [one.name for one in names.of(A)] == sorted([Z, X, "tool", Y])


@pytest.mark.parametrize(
    "name",
    [X, f"h.io/x@{A}", "localhost:5000/x:1", "tool", "alpine:3.20", "CuAb12Xy", "ü", "with space", "a" * 255],
)
def test_names_that_may_be_registered(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/",
        "a/b",
        "a/b:1",
        "h.io",
        "h.io/x",
        "h.io/X:1",
        "h.io/../x:1",
        "h.io//x:1",
        "a\nb",
        "a\0b",
        str(A),
    ],
)
async def test_names_that_are_refused(names: Names, name: str) -> None:
    await refused(names, name)


@pytest.mark.parametrize(
    "name", ["localhost", "h:1", "a" * 256, "ü" * 128, "\udcff", chr(0xD800), f"h.io/{'a' * NAME_MAX}:1"]
)
async def test_more_names_that_are_refused(names: Names, name: str) -> None:
    await refused(names, name)


async def refused(names: Names, name: str) -> None:
    for change in (names.create, names.put):
        with pytest.raises(Invalid):
            await change(name, A)
    assert list(names) == []


@given(st.text())
def test_any_text_is_accepted_or_refused_as_a_local_name(text: str) -> None:
    if is_local_name(text):
        assert "/" not in text
        assert reference_of(text) is None


PLACES = st.sampled_from([X, Y, Z, "tool", "h.io/team:1", "team", "a/b", "h.io/x"])
DIGESTS = st.sampled_from([A, B])


class NamesAgainstADictionary(RuleBasedStateMachine):
    """Runs every operation on the table and on a dictionary, with occasional restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.database = Database(Path(self.directory.name) / "imgfs.db", [SCHEMA])
        self.names = Names(self.database)
        self.model: dict[str, Digest] = {}

    def teardown(self) -> None:
        self.database.close()
        self.directory.cleanup()

    def attempt(self, *call: object) -> type[ImgfsError] | None:
        async def run() -> None:
            operation, *arguments = call
            await getattr(self.names, str(operation))(*arguments)

        try:
            trio.run(run)
        except ImgfsError as error:
            return type(error)
        return None

    @staticmethod
    def invalid(name: str) -> bool:
        return name in ("a/b", "h.io/x")

    @rule(name=PLACES, digest=DIGESTS)
    def create(self, name: str, digest: Digest) -> None:
        expected = AlreadyExists if name in self.model else Invalid if self.invalid(name) else None
        assert self.attempt("create", name, digest) == expected
        if expected is None:
            self.model[name] = digest

    @rule(name=PLACES, digest=DIGESTS)
    def put(self, name: str, digest: Digest) -> None:
        expected = Invalid if self.invalid(name) else None
        assert self.attempt("put", name, digest) == expected
        if expected is None:
            self.model[name] = digest

    @rule(name=PLACES)
    def remove(self, name: str) -> None:
        expected = None if name in self.model else NotFound
        assert self.attempt("remove", name) == expected
        self.model.pop(name, None)

    @rule(old=PLACES, new=PLACES)
    def rename(self, old: str, new: str) -> None:
        expected = Invalid if self.invalid(new) else None if old in self.model else NotFound
        assert self.attempt("rename", old, new) == expected
        if expected is None:
            self.model[new] = self.model.pop(old)

    @rule()
    def restart(self) -> None:
        self.names = Names(self.database)

    @invariant()
    def every_view_of_the_table_agrees(self) -> None:
        assert {one.name: one.digest for one in self.names} == self.model
        assert self.names.digests() == sorted(set(self.model.values()))
        for digest in (A, B):
            assert [one.name for one in self.names.of(digest)] == sorted(
                k for k, v in self.model.items() if v == digest
            )
        for prefix in ("", "h.io", "h.io/team"):
            start = prefix and f"{prefix}/"
            below = {name[len(start) :].partition("/")[0] for name in self.model if name.startswith(start)}
            assert self.names.below(prefix) == sorted(below)


TestNamesAgainstADictionary = NamesAgainstADictionary.TestCase
TestNamesAgainstADictionary.settings = settings(max_examples=25, stateful_step_count=20)
