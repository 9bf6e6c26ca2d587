"""Refusals of a registry by status: what to try before one is reported, and the error that it becomes.

This module decides; the exchange carries it out, each remedy once a call.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from imgfs.errors import AccessDenied, ImgfsError, NotFound, RateLimited, RegistryFailed
from imgfs.registry.auth.grants import Grant
from imgfs.registry.call import Call
from imgfs.registry.credentials.authfile import Login

if TYPE_CHECKING:
    from imgfs.registry.http.answer import Answer

_EXPIRED = frozenset({400, 401, 403})
"""Statuses with which storage refuses an expired address. Google's storage answers 400 (ExpiredToken), others 403."""
_CODE = re.compile(rb'"code"\s*:\s*"([A-Z_]{1,40})"')


class Remedy(Enum):
    """What to try before the exchange reports a refusal."""

    FRESH_GRANT = auto()
    """Get a grant that answers the challenge. It replaces the refused grant, if there was one."""
    CHANGED_LOGIN = auto()
    """Use the login that the auth files contain now, if it has changed."""
    UNASKED_LOGIN = auto()
    """Show the login although the registry did not ask for it."""
    FRESH_REDIRECT = auto()
    """Ask the registry again, because the address that it redirected to may have expired."""


@dataclass(frozen=True, slots=True)
class Again:
    """The request is to be sent again with `grant`, or without a grant if that is None."""

    grant: Grant | None


_OF_NOTHING = {401: Remedy.FRESH_GRANT, 403: Remedy.UNASKED_LOGIN, 404: Remedy.UNASKED_LOGIN}
_OF_A_GRANT = {401: Remedy.FRESH_GRANT, 403: Remedy.CHANGED_LOGIN}
"""Remedies by status, for requests without a grant and for requests with one."""


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


def error_code(body: bytes) -> str:
    """Return the first error code of a registry's JSON answer (distribution-spec, "Error Codes"), or ""."""
    found = _CODE.search(body)
    return found[1].decode() if found else ""


def answered(who: str, status: int, body: bytes) -> str:
    """Return the part of a message that says what `who` answered."""
    code = error_code(body)
    return f"{who} answered {status}{f' {code}' if code else ''}"


def own_failure(call: Call, status: int, said: str, login: Login | None, *, shown: bool) -> ImgfsError:
    """Return the error for `status` of the registry itself or of its token endpoint.

    A 404 of a token endpoint does not mean that the object is absent. `login` is the login that was available, if the
    client has searched for one; `shown` says whether the request contained it.
    """
    subject, absent = call.subject, call.kind != "token"
    if status == 404 and absent:
        advice = "make the repository first" if call.pushes else "check the repository and the tag or digest"
        return NotFound(f"{subject}: {said}; {advice}")
    if status in {401, 403}:
        return refused(call, said, login, shown=shown)
    if status == 429:
        return RateLimited(f"{subject}: {said}, also after waiting; it limits requests, wait some minutes or log in")
    if status >= 500:
        return RegistryFailed(f"{subject}: {said}; try again later")
    advice = "check that this host is a registry" if absent else "report it to the registry's operator"
    return RegistryFailed(f"{subject}: {said}; {advice}")


def refused(call: Call, said: str, login: Login | None, *, shown: bool) -> AccessDenied:
    """Return the error for a 401 or 403. It names the source of the login, or how to add one."""
    subject = call.subject
    if login is None:
        return AccessDenied(f"{subject}: {said} to an anonymous request; check the name, or log in")
    if login.credential is None:
        return AccessDenied(f"{subject}: {said} to an anonymous request; check the name, {login.advice(call.act)}")
    if not shown:
        return AccessDenied(f"{subject}: {said} and does not ask for the login from {login.source}; check the name")
    return AccessDenied(f"{subject}: {said} to the login from {login.source}; {login.advice(call.act)}")


def foreign_failure(status: int, subject: str, host: str, authority: str) -> ImgfsError:
    """Return the error for `status` of `authority`, to which the registry redirected.

    Its 404 does not mean that `subject` is absent.
    """
    said = f"{subject}: registry {host} sent imgfs to {authority}, which answered {status}"
    if status in {401, 403}:
        return AccessDenied(f"{said}, twice; check the clock of this machine and the registry's storage")
    if status == 429:
        return RateLimited(f"{said}, also after waiting; wait some minutes")
    return RegistryFailed(f"{said}; try again later, or report it to the registry's operator")
