"""The order in which one call asks its hosts: which host is next after a failure, and which error the call raises."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from imgfs.aio.patience import Patience
from imgfs.errors import (
    AccessDenied,
    ImgfsError,
    Malformed,
    NotFound,
    RateLimited,
    RemoteError,
    TimedOut,
    TooLarge,
    Unreachable,
    VerificationFailed,
)
from imgfs.registry.hosts.endpoint import Endpoint
from imgfs.registry.hosts.health import Health
from imgfs.registry.retry import Pauses

FAULTS = (RemoteError, NotFound, VerificationFailed, Malformed, TooLarge)
"""Errors of one host after which the next host is asked."""

_WORDS = {
    NotFound: "has it not",
    AccessDenied: "denies access",
    RateLimited: "limits requests",
    TimedOut: "is too slow",
    Unreachable: "is not reached",
    VerificationFailed: "sent wrong bytes",
}
_log = logging.getLogger("imgfs.registry")


class Turns:
    """The hosts of one call for `what`, beginning with `current`.

    Hosts that are down, or that sent wrong bytes of `what`, come last.
    """

    def __init__(
        self,
        hosts: Sequence[Endpoint],
        what: str,
        health: Health,
        pauses: Pauses,
        idle_max: float,
        patience: Patience,
    ) -> None:
        self.what = what
        self.alone = len(hosts) == 1
        self._health = health
        self._pauses = pauses
        self.patience = patience
        self._idle_max = idle_max
        self._queue = self._ordered(hosts)
        self._errors: list[tuple[Endpoint, ImgfsError]] = []
        self._spent: list[Endpoint] = []
        self._given = False
        """Whether a host has sent a part of the object, so that a 404 of the registry does not end the call."""
        self._asked = trio.current_time()
        self._take()

    @property
    def current(self) -> Endpoint:
        """The host to ask now."""
        return self._queue[0]

    def spare(self) -> bool:
        """Whether the next host should be asked rather than the current one again."""
        behind = self._queue[1:]
        return bool(behind) and (any(map(self._usable, behind)) or not self._usable(self.current))

    def asked(self) -> None:
        """Record that the current host is asked only now, after a wait in a queue of imgfs."""
        self._asked = trio.current_time()

    def well(self) -> None:
        """Record that the current host succeeded."""
        if not self.alone:
            self._health.well(self.current.authority)

    def leave(self, error: ImgfsError) -> None:
        """Record that the current host failed, and turn to the next host.

        Raises the most informative error if no host or no time is left. Raises NotFound of the registry itself at once.
        """
        if self.alone:
            raise error
        self._learn(error)
        host = self.current
        self._errors.append((host, error))
        if isinstance(error, NotFound) and not host.mirror and not self._given:
            raise error
        if len(self._queue) == 1 or self.patience.idle > self._idle_max:
            raise self._told()
        if isinstance(error, Unreachable | TimedOut | RateLimited):
            self._spent.append(host)
        del self._queue[0]
        self._log_leaving(host, error)
        self._take()

    def pass_on(self, error: ImgfsError) -> bool:
        """Record that the current host broke off after it had sent something. Return whether another host is next.

        Hosts that failed before may be asked again, but come last if they are down.
        """
        host = self.current
        if isinstance(error, TimedOut):
            self._learn(error)
        self._errors.clear()
        self._given = True
        others = self._ordered([*self._queue[1:], *self._spent])
        self._spent.clear()
        up = [one for one in others if self._usable(one)]
        self._queue = [*up, host, *(one for one in others if one not in up)]
        if not up:
            return False
        self._log_leaving(host, error)
        self._take()
        return True

    def _take(self) -> None:
        self._asked = trio.current_time()
        self._health.probe(self.current.authority)

    def _ordered(self, hosts: Sequence[Endpoint]) -> list[Endpoint]:
        """Return the usable hosts first, then those whose wrong bytes are the oldest; otherwise in configured order.

        If several hosts sent wrong bytes, one of them may have been blamed wrongly, so each must get its turn.
        """
        return sorted(
            hosts, key=lambda one: (self._health.shunned_for(one.authority, self.what), not self._usable(one))
        )

    def _usable(self, host: Endpoint) -> bool:
        resting = self._health.is_down(host.authority) or self._pauses.resting(host.authority)
        return not resting and not self._lied(host)

    def _lied(self, host: Endpoint) -> bool:
        return self._health.is_shunned(host.authority, self.what)

    def _learn(self, error: ImgfsError) -> None:
        if isinstance(error, VerificationFailed):
            self._health.shun(self.current.authority, self.what)
        if isinstance(error, Unreachable | TimedOut):
            self._health.failed(self.current.authority, self._asked)

    def _log_leaving(self, host: Endpoint, error: ImgfsError) -> None:
        level = logging.DEBUG if isinstance(error, NotFound) else logging.WARNING
        facts = {"host": host.authority, "next": self.current.authority, "error": error.message}
        _log.log(level, "asking another host", extra=facts)

    def _told(self) -> ImgfsError:
        """Return the registry's own error, or else the first that is not NotFound, with a note on the other hosts."""
        chosen = min(self._errors, key=lambda one: (one[0].mirror, isinstance(one[1], NotFound)))
        others = [f"{host.authority} {_word(error)}" for host, error in self._errors if (host, error) != chosen]
        if not others:
            return chosen[1]
        return type(chosen[1])(f"{chosen[1].message}; {', '.join(dict.fromkeys(others))}")


def _word(error: ImgfsError) -> str:
    return next((word for kind, word in _WORDS.items() if isinstance(error, kind)), "failed")
