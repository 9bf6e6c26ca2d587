"""Two workers on content that can be fetched again: one pulls, reads and removes images, one collects garbage."""

from __future__ import annotations

import os
from pathlib import Path

from imgfs.oci.digest import chain_ids
from imgfs.testing import build
from tests.crashes.ledger import Fact, Image
from tests.crashes.worker import Place
from tests.mount.scene import Scene, small, status_of, until

NAMED, WHOLE = Image(whole=False), Image(whole=True)
_IMAGES = 5


class Pulls(Place):
    """Facts: `<repository>`, named or whole; `lease/<repository>` and `view/<repository>`.

    A lease (by manifest) and a view (by chain) keep an image without its name. Kept images are read without the
    registry.
    """

    def __init__(self, scene: Scene, name: str, seed: int) -> None:
        super().__init__(scene, name, seed)
        self._images: dict[str, build.Image] = {}
        for number in range(_IMAGES):
            repository = f"{name}{number}"
            self._images[repository] = small(repository, layers=1 + number % 3)
            scene.serve(self._images[repository], repository)

    def step(self) -> None:
        named = [repository for repository in self._images if repository in self.ledger.facts]
        whole = [repository for repository in named if self.ledger.facts[repository] == WHOLE]
        held = [key for key in self.ledger.facts if "/" in key]
        self.draw(
            [
                (4, lambda: self._pull(self.chance.choice(list(self._images)))),
                (3 if whole else 0, lambda: self._read(self.chance.choice(whole))),
                (2 if whole else 0, lambda: self._lease(self.chance.choice(whole))),
                (2 if whole else 0, lambda: self._view(self.chance.choice(whole))),
                (4 if named else 0, lambda: self._forget(self.chance.choice(named))),
                (4 if held else 0, lambda: self._read_held(self.chance.choice(held))),
                (3 if held else 0, lambda: self._let_go(self.chance.choice(held))),
            ]
        )

    def look(self) -> dict[str, Fact]:
        """Look, and also read all bytes of each image that must be whole, without the registry.

        After a refused pull other blobs may still be in flight, so the worker waits for them.
        """
        until(lambda: not os.listdir(self.tree / ".imgfs/transfers"))
        listed, leases = self._listed(), os.listdir(self.tree / ".imgfs/leases")
        views = os.listdir(self.tree / "snapshots")
        found: dict[str, Fact] = {}
        with self.scene.silence():
            for repository in self._images:
                if f"{repository}:1" in listed:
                    found[repository] = self._seen(repository)
                if f"of-{repository}" in leases and os.listdir(self._lease_of(repository)):
                    found[f"lease/{repository}"] = WHOLE
                if self._view_of(repository).name in views:
                    found[f"view/{repository}"] = WHOLE
            for key in found:
                if "/" in key:
                    self._read_held(key)
        return found

    def _listed(self) -> list[str]:
        host = self.scene.images / self.scene.registry.host
        return os.listdir(host) if self.scene.registry.host in os.listdir(self.scene.images) else []

    def _seen(self, repository: str) -> Fact:
        if not status_of(self.scene.name(repository))["complete"]:
            return NAMED
        self._read(repository)
        return WHOLE

    def _lease_of(self, repository: str) -> Path:
        return self.tree / ".imgfs/leases" / f"of-{repository}"

    def _view_of(self, repository: str) -> Path:
        return self.tree / "snapshots" / f"of-{repository}"

    def _pull(self, repository: str) -> None:
        between = {repository: self.ledger.facts.get(repository, NAMED)}
        with self.ledger.doing(f"pull {repository}", {repository: WHOLE}, between=between):
            (self.scene.name(repository) / "pull").read_bytes()

    def _read(self, repository: str) -> None:
        made = self._images[repository]
        directory = self.scene.directory(made.digest)
        assert (directory / "manifest.json").read_bytes() == made.document
        assert (directory / "config.json").read_bytes() == made.config
        self._read_rootfs(self.scene.name(repository) / "rootfs", repository)

    def _read_rootfs(self, rootfs: Path, repository: str) -> None:
        last = len(self._images[repository].layers) - 1
        assert (rootfs / "mark").read_text() == f"{repository}/{last}\n"
        for number in range(last + 1):
            data = f"file of {repository}/{number}\n" * 100
            assert (rootfs / f"{number}/link").read_text() == data

    def _read_held(self, key: str) -> None:
        kind, _, repository = key.partition("/")
        made = self._images[repository]
        chain = self.tree / "snapshots" / chain_ids(made.diff_ids)[-1]
        if kind == "lease":
            assert (self.tree / "content" / made.digest).read_bytes() == made.document
        self._read_rootfs((self._view_of(repository) if kind == "view" else chain) / "rootfs", repository)

    def _lease(self, repository: str) -> None:
        lease = self._lease_of(repository)
        with self.ledger.doing(f"lease {repository}", {f"lease/{repository}": WHOLE}):
            if not lease.exists():
                lease.mkdir()
            if not (lease / "image").is_symlink():
                (lease / "image").symlink_to(f"../../../content/{self._images[repository].digest}")

    def _view(self, repository: str) -> None:
        view = self._view_of(repository)
        with self.ledger.doing(f"view {repository}", {f"view/{repository}": WHOLE}):
            if not view.is_symlink():
                view.symlink_to(chain_ids(self._images[repository].diff_ids)[-1])

    def _forget(self, repository: str) -> None:
        with self.ledger.doing(f"rm {repository}", {repository: None}):
            self.scene.name(repository).unlink()

    def _let_go(self, key: str) -> None:
        kind, _, repository = key.partition("/")
        with self.ledger.doing(f"let go of {key}", {key: None}):
            if kind == "view":
                self._view_of(repository).unlink()
            else:
                (self._lease_of(repository) / "image").unlink()


class Collector(Place):
    """Collects garbage. It has no facts: it removes only content that was promised to no worker."""

    def step(self) -> None:
        with self.ledger.doing("collect garbage", {}):
            os.setxattr(self.tree / ".imgfs", "user.imgfs.gc", b"collect")

    def look(self) -> dict[str, Fact]:
        return {}
