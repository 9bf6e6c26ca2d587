"""content/ingest/ through the kernel, compared with a model: random sequences of file operations and kills."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from imgfs.oci.digest import Digest
from tests.mount.scene import Scene, serving

PIECES = [b"x", b"yy", b"z" * 5000]
PROMISE = f"layer-{Digest.of(b'xx')}"
"""Two pieces `x` make `xx`, so commits of this ref sometimes succeed."""
EXAMPLES = 20
REFS = ["a", "b%2Fc", PROMISE]

refs = st.sampled_from(REFS)
pieces = st.sampled_from(PIECES)
numbers = st.integers(0, 3)


@dataclass
class Draft:
    """The model of an ingest. `gone` is the errno that its writer gets after it was removed."""

    data: bytes = b""
    total: int | None = None
    expected: Digest | None = None
    is_live: bool = False
    gone: int = 0


@dataclass
class Writer:
    """An open descriptor."""

    file: int
    draft: Draft
    appends: bool


@dataclass
class Model:
    """The expected state. Methods apply an operation and return its errno, 0 for success."""

    drafts: dict[str, Draft] = field(default_factory=dict[str, Draft])
    stored: set[Digest] = field(default_factory=set[Digest])

    def open(self, ref: str, flags: int) -> int:
        draft = self.drafts.get(ref)
        if draft is not None and flags & os.O_EXCL:
            return errno.EEXIST
        if code := self._take(ref):
            return code
        draft = self.drafts.setdefault(ref, Draft())
        if flags & os.O_TRUNC:
            draft.data = b""
        draft.is_live = True
        return 0

    def _take(self, ref: str) -> int:
        """Take the writer's lock, for one operation or for longer."""
        draft = self.drafts.get(ref)
        if self._is_kept(ref):
            return self._drop(ref)
        if draft is not None and draft.is_live:
            return errno.EBUSY
        return self._drop(ref) if draft is not None and draft.expected in self.stored else 0

    def _is_kept(self, ref: str) -> bool:
        return ref == PROMISE and Digest(ref.removeprefix("layer-")) in self.stored

    def _drop(self, ref: str) -> int:
        if ref in self.drafts:
            self.drafts.pop(ref).gone = errno.EEXIST
        return errno.EEXIST

    def write(self, draft: Draft, offset: int, piece: bytes) -> int:
        if draft.gone:
            return draft.gone
        if offset not in (0, len(draft.data)):
            return errno.ERANGE
        if draft.total is not None and offset + len(piece) > draft.total:
            return errno.EFBIG
        draft.data = draft.data[:offset] + piece
        return 0

    def ftruncate(self, draft: Draft, size: int) -> int:
        if draft.gone:
            return draft.gone
        if size not in (0, len(draft.data)):
            return errno.EINVAL
        draft.data = draft.data[:size]
        return 0

    def truncate(self, ref: str, size: int) -> int:
        if ref not in self.drafts:
            return errno.ENOENT
        return self._take(ref) or self.ftruncate(self.drafts[ref], size)

    def declare_total(self, ref: str, total: int) -> int:
        draft = self.drafts.get(ref)
        if draft is None:
            return errno.ENOENT
        if total < len(draft.data):
            return errno.EFBIG
        draft.total = total
        return 0

    def declare_expected(self, ref: str, digest: Digest) -> int:
        draft = self.drafts.get(ref)
        if draft is None:
            return errno.ENOENT
        if digest in self.stored:
            return self._drop(ref)
        draft.expected = digest
        return 0

    def commit(self, ref: str, digest: Digest) -> int:
        draft = self.drafts.get(ref)
        if draft is None:
            return errno.ENOENT
        if draft.is_live:
            return errno.EBUSY
        if digest in self.stored:
            return self._drop(ref)
        right = Digest.of(draft.data, digest.algorithm) == digest
        if not right or draft.total not in (None, len(draft.data)) or draft.expected not in (None, digest):
            return errno.EBADMSG
        self.stored.add(digest)
        del self.drafts[ref]
        return 0

    def rename(self, ref: str, new: str) -> int:
        drafts = self.drafts
        if ref not in drafts:
            return errno.ENOENT
        if ref == new:
            return 0
        if drafts[ref].is_live or (new in drafts and drafts[new].is_live):
            return errno.EBUSY
        if self._is_kept(new):
            return self._drop(ref)
        drafts[new] = drafts.pop(ref)
        return 0

    def unlink(self, ref: str) -> int:
        if ref not in self.drafts:
            return errno.ENOENT
        self.drafts.pop(ref).gone = errno.ECANCELED
        return 0


class Machine(RuleBasedStateMachine):
    """Runs each operation in the model and through the mount, and compares the results."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.mount = scene.mount
        self.ingest = scene.mount.content / "ingest"
        self.model = Model()
        self.writers: list[Writer] = []
        self.lives = 2

    def teardown(self) -> None:
        for writer in self.writers:
            os.close(writer.file)
        for ref in self.model.drafts:
            os.unlink(self.ingest / ref)
        for digest in self.model.stored:
            os.unlink(self.mount.content / digest)

    def attempt(self, expected: int, operation: Callable[[], object]) -> None:
        """Assert that the operation gets `expected`."""
        got = 0
        try:
            operation()
        except OSError as error:
            got = error.errno or -1
        assert errno.errorcode.get(got) == errno.errorcode.get(expected)

    @precondition(lambda self: len(self.writers) < 4)
    @rule(
        ref=refs,
        access=st.sampled_from([os.O_WRONLY, os.O_RDWR]),
        flags=st.sets(st.sampled_from([os.O_TRUNC, os.O_APPEND, os.O_EXCL]), max_size=2),
    )
    def open(self, ref: str, access: int, flags: set[int]) -> None:
        chosen = access | os.O_CREAT | sum(flags)
        expected = self.model.open(ref, chosen)

        def operation() -> None:
            file = os.open(self.ingest / ref, chosen)
            self.writers.append(Writer(file, self.model.drafts[ref], os.O_APPEND in flags))

        self.attempt(expected, operation)

    @rule(ref=refs, piece=pieces, flag=st.sampled_from([os.O_TRUNC, os.O_APPEND]))
    def bring(self, ref: str, piece: bytes, flag: int) -> None:
        """Open, write and close."""
        chosen = os.O_WRONLY | os.O_CREAT | flag
        expected = self.model.open(ref, chosen)
        if not expected:
            draft = self.model.drafts[ref]
            expected = self.model.write(draft, len(draft.data), piece)
            draft.is_live = False

        def operation() -> None:
            file = os.open(self.ingest / ref, chosen)
            try:
                os.write(file, piece)
            finally:
                os.close(file)

        self.attempt(expected, operation)

    @rule(ref=refs, piece=pieces, algorithm=st.sampled_from(["sha256", "sha512"]))
    def bring_all(self, ref: str, piece: bytes, algorithm: str) -> None:
        """Commit immediately, while the kernel still releases the writer."""
        self.bring(ref, piece, os.O_TRUNC)
        self.commit(ref, True, algorithm)

    @precondition(lambda self: self.writers)
    @rule(number=numbers, where=st.sampled_from(["end", "end", "end", "start", "beyond", "before"]), piece=pieces)
    def write(self, number: int, where: str, piece: bytes) -> None:
        writer = self.writers[number % len(self.writers)]
        length = len(writer.draft.data)
        offset = {"end": length, "start": 0, "beyond": length + 1, "before": max(length - 1, 0)}[where]
        if writer.appends:
            expected = self.model.write(writer.draft, length, piece)
            self.attempt(expected, lambda: os.write(writer.file, piece))
        else:
            expected = self.model.write(writer.draft, offset, piece)
            self.attempt(expected, lambda: os.pwrite(writer.file, piece, offset))

    @precondition(lambda self: self.writers)
    @rule(number=numbers, size=st.sampled_from([0, 1, 2, None]))
    def ftruncate(self, number: int, size: int | None) -> None:
        writer = self.writers[number % len(self.writers)]
        chosen = len(writer.draft.data) if size is None else size
        self.attempt(self.model.ftruncate(writer.draft, chosen), lambda: os.ftruncate(writer.file, chosen))

    @precondition(lambda self: self.writers)
    @rule(number=numbers)
    def fsync(self, number: int) -> None:
        writer = self.writers[number % len(self.writers)]
        self.attempt(writer.draft.gone, lambda: os.fsync(writer.file))

    @precondition(lambda self: self.writers)
    @rule(number=numbers)
    def close(self, number: int) -> None:
        writer = self.writers.pop(number % len(self.writers))
        os.close(writer.file)
        writer.draft.is_live = False

    @precondition(lambda self: self.model.drafts)
    @rule(ref=refs, size=st.sampled_from([0, 1, 2]))
    def truncate(self, ref: str, size: int) -> None:
        self.attempt(self.model.truncate(ref, size), lambda: os.truncate(self.ingest / ref, size))

    @precondition(lambda self: self.model.drafts)
    @rule(ref=refs, total=st.sampled_from([0, 2, 5001]))
    def declare_total(self, ref: str, total: int) -> None:
        expected = self.model.declare_total(ref, total)
        self.attempt(expected, lambda: os.setxattr(self.ingest / ref, "user.imgfs.total", b"%d" % total))

    @precondition(lambda self: self.model.drafts)
    @rule(ref=refs, data=pieces, algorithm=st.sampled_from(["sha256", "sha512"]))
    def declare_expected(self, ref: str, data: bytes, algorithm: str) -> None:
        digest = Digest.of(data, algorithm)
        expected = self.model.declare_expected(ref, digest)
        self.attempt(expected, lambda: os.setxattr(self.ingest / ref, "user.imgfs.expected", digest.encode()))

    @precondition(lambda self: self.model.drafts)
    @rule(ref=refs, fact=st.sampled_from(["total", "expected"]))
    def take_back(self, ref: str, fact: str) -> None:
        draft = self.model.drafts.get(ref)
        expected = errno.ENOENT if draft is None else 0 if getattr(draft, fact) is not None else errno.ENODATA
        if draft is not None:
            setattr(draft, fact, None)
        self.attempt(expected, lambda: os.removexattr(self.ingest / ref, f"user.imgfs.{fact}"))

    @precondition(lambda self: self.model.drafts)
    @rule(ref=refs, right=st.sampled_from([True, True, True, False]), algorithm=st.sampled_from(["sha256", "sha512"]))
    def commit(self, ref: str, right: bool, algorithm: str) -> None:
        draft = self.model.drafts.get(ref, Draft())
        digest = Digest.of(draft.data if right else b"wrong", algorithm)
        expected = self.model.commit(ref, digest)
        self.attempt(expected, lambda: os.rename(self.ingest / ref, self.mount.content / digest))

    @precondition(lambda self: self.model.drafts)
    @rule(ref=refs)
    def commit_malformed(self, ref: str) -> None:
        expected = errno.EPERM if ref in self.model.drafts else errno.ENOENT
        self.attempt(expected, lambda: os.rename(self.ingest / ref, self.mount.content / "sha256:x"))

    @precondition(lambda self: self.model.drafts)
    @rule(ref=refs, new=refs)
    def rename(self, ref: str, new: str) -> None:
        self.attempt(self.model.rename(ref, new), lambda: os.rename(self.ingest / ref, self.ingest / new))

    @precondition(lambda self: self.model.drafts)
    @rule(ref=refs)
    def unlink(self, ref: str) -> None:
        self.attempt(self.model.unlink(ref), lambda: os.unlink(self.ingest / ref))

    @precondition(lambda self: self.model.drafts)
    @rule(ref=refs)
    def read(self, ref: str) -> None:
        expected = errno.EPERM if ref in self.model.drafts else errno.ENOENT
        self.attempt(expected, (self.ingest / ref).read_bytes)

    @precondition(lambda self: self.model.stored)
    @rule(number=numbers)
    def forget(self, number: int) -> None:
        digest = sorted(self.model.stored)[number % len(self.model.stored)]
        self.model.stored.remove(digest)
        self.attempt(0, lambda: os.unlink(self.mount.content / digest))

    @precondition(lambda self: self.lives and len(self.model.drafts) > 1)
    @rule(how=st.sampled_from(["kill", "kill", "stop"]))
    def restart(self, how: str) -> None:
        self.lives -= 1
        if how == "stop":
            for _ in range(len(self.writers)):
                self.close(0)
        getattr(self.mount, how)()
        for writer in self.writers:
            with suppress(OSError):
                os.close(writer.file)
            writer.draft.is_live = False
        self.writers.clear()
        self.mount.start()

    @invariant()
    def the_tree_shows_the_model(self) -> None:
        with os.scandir(self.ingest) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries}
        assert sizes == {ref: len(draft.data) for ref, draft in self.model.drafts.items()}
        for ref, draft in self.model.drafts.items():
            self._compare_facts(ref, draft)
        for writer in self.writers:
            assert bool(os.fstat(writer.file).st_nlink) == (self._named(writer.draft) is not None)
        assert {name for name in os.listdir(self.mount.content) if name != "ingest"} == self.model.stored

    def _compare_facts(self, ref: str, draft: Draft) -> None:
        path = self.ingest / ref
        facts = {name.removeprefix("user.imgfs."): os.getxattr(path, name).decode() for name in os.listxattr(path)}
        assert facts.get("total") == (None if draft.total is None else str(draft.total))
        assert facts.get("expected") == draft.expected
        algorithm = draft.expected.algorithm if draft.expected else None
        if "digest" in facts:
            digest = Digest(facts["digest"])
            assert digest == Digest.of(draft.data, digest.algorithm)
            assert algorithm in (None, digest.algorithm)

    def _named(self, draft: Draft) -> str | None:
        return next((ref for ref, one in self.model.drafts.items() if one is draft), None)


def test_any_sequence_of_operations_does_what_the_model_does(tmp_path: Path) -> None:
    with serving(tmp_path) as scene:

        class OnOneMount(Machine):
            def __init__(self) -> None:
                super().__init__(scene)

        run_state_machine_as_test(OnOneMount, settings=settings(max_examples=EXAMPLES, stateful_step_count=30))
