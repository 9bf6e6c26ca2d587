"""WWW-Authenticate (RFC 9110, 11.6.1; RFC 6750): header values in, challenges out. Pure, linear, never raises."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

HEADER_MAX = 64 << 10

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SEPARATOR = re.compile(r"[\s,]*")
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*+)"|([^\s,"]++))(?=[\s,]|\Z)', re.DOTALL)
_SCHEME = re.compile(rf"({_TOKEN})(?=[\s,]|\Z)")
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]++=*+(?=[ \t]*(?:,|\Z))")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


@dataclass(slots=True)
class Challenge:
    """One way to authenticate: a scheme and its parameters, names in lower case; of a repeated one the first counts."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict[str, str])


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """Read the values of all WWW-Authenticate headers of an answer.

    Stops at the first byte that fits no rule and keeps what came before it, as a challenge nobody can read is one that
    nobody can answer. Values beyond HEADER_MAX are cut.
    """
    return [challenge for value in values for challenge in _challenges(value[:HEADER_MAX])]


def _challenges(text: str) -> Iterator[Challenge]:
    current: Challenge | None = None
    position = _skip(text, 0)
    while position < len(text):
        if current is not None and (found := _PARAMETER.match(text, position)):
            name, quoted, plain = found.groups()
            current.parameters.setdefault(name.lower(), plain if quoted is None else _ESCAPE.sub(r"\1", quoted))
        elif found := _SCHEME.match(text, position):
            if current is not None:
                yield current
            current = Challenge(found[1].lower())
            found = _TOKEN68.match(text, found.end()) or found
        else:
            break
        position = _skip(text, found.end())
    if current is not None:
        yield current


def _skip(text: str, position: int) -> int:
    separator = _SEPARATOR.match(text, position)
    return separator.end() if separator else position


def bearer(challenges: Iterable[Challenge]) -> Challenge | None:
    """The first Bearer challenge that says where its tokens come from."""
    return next((one for one in challenges if one.scheme == "bearer" and one.parameters.get("realm")), None)
