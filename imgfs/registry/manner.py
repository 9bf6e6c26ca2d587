"""How a URL is reached, as far as it is not the same for all."""

from __future__ import annotations

from dataclasses import dataclass, field

from imgfs.registry.addresses import Reach
from imgfs.registry.trust import SYSTEM, Trust


@dataclass(frozen=True, slots=True)
class Manner:
    """How to reach one URL: whom TLS believes, through which proxy, and how long a connection may take to come about.

    `permitted` are the inner networks it may be in; None: any.
    """

    permitted: Reach | None = None
    trust: Trust = SYSTEM
    proxy: str = field(default="", repr=False)
    connect: float | None = None
