"""The private parts of other packages that imgfs uses: all of them, why, and what imgfs does in a version without them.

Nothing else of imgfs reads or replaces a private attribute of another package. Each part is looked at when it is first
needed. If it is missing, the log says so once, and imgfs uses the public way, which is slower but correct.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import ModuleType
from typing import Any

_log = logging.getLogger("imgfs.private_parts")


@dataclass(frozen=True, slots=True)
class PrivatePart:
    """Attributes of `package`, read one after the other; `purpose` and `instead` are for the log."""

    package: str
    path: tuple[str, ...]
    purpose: str
    instead: str


H11_STATE = PrivatePart(
    "httpcore",
    ("_stream", "_connection", "_h11_state", "trailing_data"),
    "to see whether more bytes came over a connection than its response announced",
    "each connection is closed after its response",
)
"""From the `stream` of an httpcore response to h11.Connection.trailing_data, which is public in h11."""
PYFUSE3_TRIO = PrivatePart(
    "pyfuse3",
    ("trio",),
    "to poll for the next request of the kernel before the daemon sleeps",
    "the daemon sleeps at once",
)
"""The name under which pyfuse3 has imported trio, and under which it looks trio up for each wait."""
PARTS = (H11_STATE, PYFUSE3_TRIO)

_missing: set[PrivatePart] = set()


def trailing_data(stream: object) -> bytes | None:
    """The bytes that came behind the response that `stream` is the body of; None if they cannot be seen."""
    found = _read(stream, H11_STATE)
    if isinstance(found, tuple) and found and isinstance(found[0], bytes | bytearray):
        return bytes(found[0])
    _report(H11_STATE)
    return None


def replace_trio(pyfuse3: ModuleType, trio: ModuleType, replacement: object) -> bool:
    """Let pyfuse3 use `replacement` in place of `trio`; returns whether it will."""
    if _read(pyfuse3, PYFUSE3_TRIO) is not trio:
        _report(PYFUSE3_TRIO)
        return False
    setattr(pyfuse3, PYFUSE3_TRIO.path[0], replacement)
    return True


def _read(holder: Any, part: PrivatePart) -> Any:
    for name in part.path:
        holder = getattr(holder, name, None)
    return holder


def _report(part: PrivatePart) -> None:
    """Tell the log that `part` is missing, the first time."""
    if part not in _missing:
        _missing.add(part)
        facts = {"part": ".".join((part.package, *part.path)), "purpose": part.purpose, "instead": part.instead}
        _log.warning("private part of another package is missing", extra=facts)
