"""Who sent the bytes of a blob: named when they turn out wrong, and left for that blob where there are others."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence

from imgfs.errors import SenderLeft, VerificationFailed
from imgfs.oci.digest import Digest
from imgfs.registry.hosts.endpoint import Endpoint
from imgfs.registry.hosts.health import Health

_KEPT = 1024
_log = logging.getLogger("imgfs.registry")


class Sent:
    """Who sent bytes of one blob, of those `able` to."""

    def __init__(self) -> None:
        self.able: frozenset[str] = frozenset()
        self.by: set[str] = set()
        """The hosts that were asked."""
        self.origins: set[str] = set()
        """Where the bytes came from: the hosts themselves, or where they redirect to."""

    def add(self, host: Endpoint, origin: str) -> None:
        """Bytes came from `origin`, which `host` led to."""
        self.by.add(host.authority)
        self.origins.add(origin)


class Senders:
    """Of the blobs of late, by registry and digest."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._sent: OrderedDict[tuple[str, Digest], Sent] = OrderedDict()

    def of(self, registry: str, digest: Digest, able: Sequence[Endpoint]) -> Sent:
        """To be told who sends the blob, of which `able` can be asked for it."""
        sent = self._sent.setdefault((registry, digest), Sent())
        sent.able = frozenset(one.authority for one in able)
        self._sent.move_to_end((registry, digest))
        if len(self._sent) > _KEPT:
            self._sent.popitem(last=False)
        return sent

    def blame(self, registry: str, digest: Digest, error: VerificationFailed) -> VerificationFailed:
        """The bytes were wrong. Returns what to raise; see Registry.blame."""
        sent = self._sent.pop((registry, digest), None)
        if sent is None or not sent.by:
            return error
        kind = SenderLeft if len(sent.able) > 1 and self._leave(sent, digest) else VerificationFailed
        names = ", ".join(sorted(sent.origins))
        return kind(f"{error.message}; sent by {names}: read again, or pull from another registry")

    def _leave(self, sent: Sent, digest: Digest) -> bool:
        """Leave the senders. Whether that leaves others, and fewer than before: else asking again would have no end."""
        before = {one for one in sent.able if not self._health.is_shunned(one, digest)}
        for one in sorted(sent.by):
            self._health.shun(one, digest)
            _log.warning("sent wrong bytes", extra={"host": one, "digest": digest})
        return bool(before - sent.by) and bool(before & sent.by)
