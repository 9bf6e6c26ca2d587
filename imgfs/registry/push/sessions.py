"""Uploads that have begun and are not over, so that the next push of the blob goes on. In memory only.

A session's URL may be as good as a login, so it is on no disk and in no message: after a restart of the daemon an
upload begins anew.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import trio

from imgfs.oci.digest import Digest

KEPT_MAX = 256
KEPT_SECONDS = 3600.0
"""Registries forget sessions after some hours or days; one that is gone costs a request."""


@dataclass(frozen=True, slots=True)
class Place:
    """A blob on its way into a repository of a server."""

    base: str
    repository: str
    digest: Digest


class Sessions:
    """The URLs at which uploads go on."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Place, tuple[str, float]] = OrderedDict()
        self._spare: dict[Place, str] = {}
        self.undivided: set[str] = set()
        """Servers that take no blob in parts."""

    def get(self, place: Place) -> str | None:
        """Where the upload of `place` goes on, if one was broken off."""
        url, until = self._kept.get(place, ("", 0.0))
        return url if trio.current_time() < until else None

    def keep(self, place: Place, url: str) -> None:
        """The upload of `place` goes on at `url`."""
        self._kept[place] = url, trio.current_time() + KEPT_SECONDS
        self._kept.move_to_end(place)
        if len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)

    def drop(self, place: Place) -> None:
        """The upload of `place` is over."""
        self._kept.pop(place, None)

    def spare(self, place: Place, url: str) -> bool:
        """An upload was opened that nobody had asked for, by a refused mount; returns whether there is a use for it."""
        if len(self._spare) >= KEPT_MAX:
            return False
        return self._spare.setdefault(place, url) == url

    def take(self, place: Place) -> str:
        """The spare upload of `place`, which is the caller's from now on; "" if there is none."""
        return self._spare.pop(place, "")
