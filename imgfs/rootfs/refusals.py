"""Why chains are not shown by the kernel: for good where that is the tree's own fault, else believed for a while."""

from __future__ import annotations

import math
from dataclasses import dataclass

import trio

from imgfs.errors import ImgfsError, TooLarge, Unsupported
from imgfs.oci.digest import Digest

REFUSED_SECONDS = 60.0
"""How long a refusal that may pass (a full disk) is believed."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    reason: str
    until: float


class Refusals:
    """What was refused last, by chain."""

    def __init__(self) -> None:
        self._refused: dict[Digest, _Refusal] = {}

    def note(self, chain_id: Digest, error: ImgfsError) -> None:
        """It was refused just now."""
        is_final = isinstance(error, Unsupported | TooLarge)
        until = math.inf if is_final else trio.current_time() + REFUSED_SECONDS
        self._refused[chain_id] = _Refusal(error.message, until)

    def clear(self, chain_id: Digest) -> None:
        """It went well."""
        self._refused.pop(chain_id, None)

    def hold(self, chain_id: Digest) -> bool:
        """Whether another attempt would be in vain."""
        refusal = self._refused.get(chain_id)
        return refusal is not None and trio.current_time() < refusal.until

    def reason(self, chain_id: Digest) -> str | None:
        """Why it was refused last; None where it was not."""
        refusal = self._refused.get(chain_id)
        return refusal.reason if refusal is not None else None
