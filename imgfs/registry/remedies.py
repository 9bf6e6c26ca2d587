"""What may cure a refusal, so that asking once more is worth it: by who refused, with which status, and what was shown.

Only decides; the exchange does it, each remedy once a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from imgfs.registry.auth.grants import Grant
from imgfs.registry.call import Call

if TYPE_CHECKING:
    from imgfs.registry.http.answer import Answer

_EXPIRED = frozenset({400, 401, 403})
"""What storages answer to an address whose time is over: Google's says 400 (ExpiredToken), others 403."""


class Remedy(Enum):
    """What to try before a refusal is believed."""

    FRESH_GRANT = auto()
    """One that answers the challenge, in place of none, or of the one that was refused."""
    CHANGED_LOGIN = auto()
    """That of another user, if there is one by now."""
    UNASKED_LOGIN = auto()
    """The one that there is, though the registry does not ask for it."""
    FRESH_REDIRECT = auto()
    """From the registry, in place of one that has expired."""


@dataclass(frozen=True, slots=True)
class Again:
    """Asking again is worth it, and shows `grant`; None: nothing."""

    grant: Grant | None


_OF_NOTHING = {401: Remedy.FRESH_GRANT, 403: Remedy.UNASKED_LOGIN, 404: Remedy.UNASKED_LOGIN}
_OF_A_GRANT = {401: Remedy.FRESH_GRANT, 403: Remedy.CHANGED_LOGIN}
"""By status, for requests that showed nothing, and for those that showed a grant."""


def remedies_for(call: Call, answer: Answer, grant: Grant | None) -> list[Remedy]:
    """Return what may cure `answer`, which refuses a `call` that showed `grant`, in the order to try it.

    An address that the registry redirected to may have expired, also one at the registry's own host.
    """
    found: list[Remedy] = []
    is_redirected = answer.request.foreign or answer.request.url != call.url
    if not answer.request.foreign and call.kind not in {"token", "ping"}:
        remedy = (_OF_NOTHING if grant is None else _OF_A_GRANT).get(answer.status)
        found += [remedy] if remedy is not None else []
    if is_redirected and answer.status in _EXPIRED:
        found.append(Remedy.FRESH_REDIRECT)
    return found
