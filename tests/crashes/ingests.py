"""A worker on ingests: writes, resumes, renames, aborts, commits by mv, labels, removes blobs."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from imgfs.content.ingests.meta import decode
from imgfs.content.ingests.refs import ref_id
from imgfs.disk.durable import TEMPORARY
from imgfs.oci.digest import Digest
from tests.crashes.ledger import Bytes, Fact, Plain, Writing, noise
from tests.crashes.worker import Place, own
from tests.mount.scene import Scene

SIZES = (10, 5_000, 70_000, 300_000, 1_500_000)
_REFS = 4
_BLOBS = 12
_LABEL = "user.label.colour"


class Ingests(Place):
    """Facts: `ref/<ref>`, and `blob/<digest>` with the label of the blob."""

    def __init__(self, scene: Scene, name: str, seed: int) -> None:
        super().__init__(scene, name, seed)
        self._sizes: dict[str, int] = {}
        self._blobs: set[str] = set()
        """Every digest that was ever committed here, or may have been."""

    @property
    def _ingest(self) -> Path:
        return self.tree / "content/ingest"

    def step(self) -> None:
        refs = [key.removeprefix("ref/") for key in self.ledger.facts if key.startswith("ref/")]
        blobs = [key.removeprefix("blob/") for key in self.ledger.facts if key.startswith("blob/")]
        whole = [ref for ref in refs if self._writing(ref).floor == self._size(ref)]
        self.draw(
            [
                (6 if len(refs) < _REFS else 0, self._start),
                (8 if refs else 0, lambda: self._go_on(self.chance.choice(refs))),
                (1 if refs else 0, lambda: self._start_again(self.chance.choice(refs))),
                (1 if refs else 0, lambda: self._declare(self.chance.choice(refs))),
                (2 if refs else 0, lambda: self._rename(self.chance.choice(refs), self.new())),
                (1 if len(refs) > 1 else 0, lambda: self._rename(*self.chance.sample(refs, 2))),
                (1 if refs else 0, lambda: self._abort(self.chance.choice(refs))),
                (12 if whole else 0, lambda: self._commit(self.chance.choice(whole))),
                (2 if blobs else 0, lambda: self._label(self.chance.choice(blobs))),
                (len(blobs) - _BLOBS if len(blobs) > _BLOBS else 0, lambda: self._remove(self.chance.choice(blobs))),
            ]
        )

    def look(self) -> dict[str, Fact]:
        listed = set(os.listdir(self.tree / "content"))
        refs = own(os.listdir(self._ingest), self.name)
        return {f"ref/{ref}": self._seen(ref) for ref in refs} | {
            f"blob/{digest}": self._labelled(digest) for digest in sorted(self._blobs & listed)
        }

    def _seen(self, ref: str) -> Fact:
        """The bytes that the tree's size promises, read from the state directory: the tree lets no caller read them."""
        path, size = self._ingest / ref, (self._ingest / ref).stat().st_size
        total = os.getxattr(path, "user.imgfs.total") if "user.imgfs.total" in os.listxattr(path) else None
        data = self._directory(ref).joinpath("data").read_bytes()[:size]
        assert len(data) == size, f"{ref}: shows {size} bytes and has {len(data)}"
        return Bytes(data, None if total is None else int(total))

    def _directory(self, ref: str) -> Path:
        """Return the directory that holds the ingest's bytes.

        If the disk refused a rename half-way, the old directory stays until the next start, and perhaps also the
        directory of the ingest that the rename replaced.
        """
        places = self.scene.mount.state / "ingest"
        names = (name for name in os.listdir(places) if name != ref_id(ref) and not name.startswith(TEMPORARY))
        return next((places / name for name in names if _ref_in(places / name) == ref), places / ref_id(ref))

    def _labelled(self, digest: str) -> Fact:
        path = self.tree / "content" / digest
        assert Digest.of(path.read_bytes()) == digest
        return Plain(os.getxattr(path, _LABEL) if _LABEL in os.listxattr(path) else None)

    def _writing(self, ref: str) -> Writing:
        fact = self.ledger.facts[f"ref/{ref}"]
        assert isinstance(fact, Writing)
        return fact

    def _size(self, ref: str) -> int:
        return self._sizes[self._writing(ref).mark]

    def _start(self) -> None:
        ref = mark = self.new()
        self._sizes[mark] = self.chance.choice(SIZES)
        self._write(ref, Writing(mark, 0, 0, 0), None, os.O_CREAT)

    def _go_on(self, ref: str) -> None:
        writing = self._writing(ref)
        self._write(ref, writing, writing, os.O_CREAT | os.O_APPEND)

    def _start_again(self, ref: str) -> None:
        mark = self.new()
        self._sizes[mark] = self.chance.choice(SIZES)
        total = self._writing(ref).total
        if total is None or total >= self._sizes[mark]:
            self._write(ref, Writing(mark, 0, 0, 0, total), None, os.O_TRUNC)

    def _write(self, ref: str, writing: Writing, before: Writing | None, flags: int) -> None:
        """Write one piece, with or without fsync. What was acknowledged before stays, even if this write fails."""
        rest = self._sizes[writing.mark] - writing.floor
        piece = rest if self.chance.random() < 0.6 else self.chance.randint(0, rest)
        end, syncs = writing.floor + piece, self.chance.random() < 0.4
        after = replace(writing, floor=end, synced=end if syncs else writing.synced, top=end)
        between = replace(before or writing, top=end)
        with self.ledger.doing(
            f"write {ref} to {end} {'and sync' * syncs}", {f"ref/{ref}": after}, between={f"ref/{ref}": between}
        ):
            file = os.open(self._ingest / ref, os.O_WRONLY | flags)
            try:
                _write_all(file, noise(writing.mark, end)[writing.floor :])
                if syncs:
                    os.fsync(file)
            finally:
                os.close(file)

    def _declare(self, ref: str) -> None:
        writing, total = self._writing(ref), max(self._size(ref), self.chance.choice(SIZES))
        after = replace(writing, total=total)
        with self.ledger.doing(f"total of {ref} is {total}", {f"ref/{ref}": after}):
            os.setxattr(self._ingest / ref, "user.imgfs.total", b"%d" % total)

    def _rename(self, ref: str, new: str) -> None:
        after: dict[str, Fact | None] = {f"ref/{ref}": None, f"ref/{new}": self._writing(ref)}
        with self.ledger.doing(f"mv {ref} {new}", after):
            os.rename(self._ingest / ref, self._ingest / new)

    def _abort(self, ref: str) -> None:
        with self.ledger.doing(f"rm {ref}", {f"ref/{ref}": None}):
            os.unlink(self._ingest / ref)

    def _commit(self, ref: str) -> None:
        writing = self._writing(ref)
        if writing.total not in (None, writing.floor):
            return self._abort(ref)
        digest = Digest.of(noise(writing.mark, writing.floor))
        self._blobs.add(digest)
        with self.ledger.doing(f"commit {ref} {digest}", {f"ref/{ref}": None, f"blob/{digest}": Plain(None)}):
            os.rename(self._ingest / ref, self.tree / "content" / digest)
        return None

    def _label(self, digest: str) -> None:
        value = self.new().encode()
        with self.ledger.doing(f"label {digest} {value!r}", {f"blob/{digest}": Plain(value)}):
            os.setxattr(self.tree / "content" / digest, _LABEL, value)

    def _remove(self, digest: str) -> None:
        with self.ledger.doing(f"rm {digest}", {f"blob/{digest}": None}):
            os.unlink(self.tree / "content" / digest)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _ref_in(path: Path) -> str | None:
    """Return the ref that the record in a directory names, or None if the directory is just being removed."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return decode((path / "meta").read_bytes()).ref
    return None
