"""Two workers on rows: one registers, replaces, renames and removes names, the other does the same with leases."""

from __future__ import annotations

import os
from pathlib import Path

from imgfs.oci.digest import Digest
from tests.crashes.ledger import Fact, Plain
from tests.crashes.worker import Place, own

_MOST = 8
_EXPIRES = "user.imgfs.expires"
_MOMENTS = (b"2199-01-31T12:00:00Z", b"2200-01-31T12:00:00Z")


class Names(Place):
    """Facts: `<name>`, its digest. Names have no host, so no other worker uses them; the digests need not exist."""

    @property
    def _images(self) -> Path:
        return self.tree / "images"

    def step(self) -> None:
        names = list(self.ledger.facts)
        self.draw(
            [
                (4 if len(names) < _MOST else 0, self._link),
                (3 if names else 0, lambda: self._put(self.chance.choice(names))),
                (2 if names else 0, lambda: self._rename(self.chance.choice(names), self.new())),
                (1 if len(names) > 1 else 0, lambda: self._rename(*self.chance.sample(names, 2))),
                (2 if names else 0, lambda: self._remove(self.chance.choice(names))),
            ]
        )

    def look(self) -> dict[str, Fact]:
        return {name: Plain(os.readlink(self._images / name)) for name in own(os.listdir(self._images), self.name)}

    def _digest(self) -> Digest:
        return Digest.of(self.new().encode())

    def _link(self) -> None:
        name, digest = self.new(), self._digest()
        with self.ledger.doing(f"ln -s {digest} {name}", {name: Plain(digest)}):
            os.symlink(digest, self._images / name)

    def _put(self, name: str) -> None:
        """`ln -sfn`: make a private link under another name, then rename it."""
        digest = self._digest()
        private = self._images / f"Cu{self.new()}"
        with self.ledger.doing(f"ln -sfn {digest} {name}", {name: Plain(digest)}):
            os.symlink(digest, private)
            os.rename(private, self._images / name)

    def _rename(self, name: str, new: str) -> None:
        with self.ledger.doing(f"mv {name} {new}", {name: None, new: self.ledger.facts[name]}):
            os.rename(self._images / name, self._images / new)

    def _remove(self, name: str) -> None:
        with self.ledger.doing(f"rm {name}", {name: None}):
            os.unlink(self._images / name)


class Leases(Place):
    """Facts: `<lease>`, its expiry and links."""

    @property
    def _leases(self) -> Path:
        return self.tree / ".imgfs/leases"

    def step(self) -> None:
        leases = list(self.ledger.facts)
        linked = [lease for lease in leases if self._told(lease)[1]]
        self.draw(
            [
                (4 if len(leases) < _MOST else 0, self._make),
                (5 if leases else 0, lambda: self._link(self.chance.choice(leases))),
                (2 if leases else 0, lambda: self._expire(self.chance.choice(leases))),
                (2 if linked else 0, lambda: self._unlink(self.chance.choice(linked))),
                (2 if leases else 0, lambda: self._remove(self.chance.choice(leases))),
            ]
        )

    def look(self) -> dict[str, Fact]:
        return {lease: self._seen(self._leases / lease) for lease in own(os.listdir(self._leases), self.name)}

    def _seen(self, path: Path) -> Fact:
        expires = os.getxattr(path, _EXPIRES) if _EXPIRES in os.listxattr(path) else None
        return Plain((expires, {name: os.readlink(path / name) for name in os.listdir(path)}))

    def _told(self, lease: str) -> tuple[bytes | None, dict[str, str]]:
        fact = self.ledger.facts[lease]
        assert isinstance(fact, Plain)
        assert isinstance(fact.value, tuple)
        expires, links = fact.value
        return expires, links

    def _make(self) -> None:
        lease = self.new()
        with self.ledger.doing(f"mkdir {lease}", {lease: Plain((None, {}))}):
            os.mkdir(self._leases / lease)

    def _link(self, lease: str) -> None:
        expires, links = self._told(lease)
        name = self.new()
        target = f"../../../content/{Digest.of(name.encode())}"
        with self.ledger.doing(f"ln -s {target} {lease}/{name}", {lease: Plain((expires, links | {name: target}))}):
            os.symlink(target, self._leases / lease / name)

    def _expire(self, lease: str) -> None:
        moment = self.chance.choice(_MOMENTS)
        with self.ledger.doing(f"{lease} expires {moment!r}", {lease: Plain((moment, self._told(lease)[1]))}):
            os.setxattr(self._leases / lease, _EXPIRES, moment)

    def _unlink(self, lease: str) -> None:
        expires, links = self._told(lease)
        name = self.chance.choice(sorted(links))
        left = {other: target for other, target in links.items() if other != name}
        with self.ledger.doing(f"rm {lease}/{name}", {lease: Plain((expires, left))}):
            os.unlink(self._leases / lease / name)

    def _remove(self, lease: str) -> None:
        with self.ledger.doing(f"rmdir {lease}", {lease: None}):
            os.rmdir(self._leases / lease)
