"""The way to the host of one URL, as far as it is not the same for all."""

from __future__ import annotations

from dataclasses import dataclass, field

from imgfs.registry.http.addresses import Reach
from imgfs.registry.http.trust import SYSTEM, Trust


@dataclass(frozen=True, slots=True)
class Route:
    """How a connection to one host is made: whom TLS believes, through which proxy, and how long it may take.

    `permitted` are the inner networks the host may be in; None: any.
    """

    permitted: Reach | None = None
    trust: Trust = SYSTEM
    proxy: str = field(default="", repr=False)
    """Instead of the environment's."""
    connect: float | None = None
    """Seconds; None for the limit that holds for all."""
