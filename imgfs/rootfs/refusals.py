"""Why the kernel does not show a chain. A refusal because of the tree itself is final, any other is retried after a
while."""

from __future__ import annotations

import math
from dataclasses import dataclass

import trio

from imgfs.errors import ImgfsError, TooLarge, Unsupported
from imgfs.oci.digest import Digest

REFUSED_SECONDS = 60.0
"""How long a refusal that may pass (a full disk) suppresses another attempt."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    reason: str
    until: float


class Refusals:
    """The last refusal of each chain."""

    def __init__(self) -> None:
        self._refused: dict[Digest, _Refusal] = {}

    def note(self, chain_id: Digest, error: ImgfsError) -> None:
        """Record that the kernel refused the chain now."""
        is_final = isinstance(error, Unsupported | TooLarge)
        until = math.inf if is_final else trio.current_time() + REFUSED_SECONDS
        self._refused[chain_id] = _Refusal(error.message, until)

    def clear(self, chain_id: Digest) -> None:
        """Forget the refusal, because the chain was mounted."""
        self._refused.pop(chain_id, None)

    def hold(self, chain_id: Digest) -> bool:
        """Return whether another attempt should wait."""
        refusal = self._refused.get(chain_id)
        return refusal is not None and trio.current_time() < refusal.until

    def reason(self, chain_id: Digest) -> str | None:
        """Return why the chain was refused last, or None."""
        refusal = self._refused.get(chain_id)
        return refusal.reason if refusal is not None else None
