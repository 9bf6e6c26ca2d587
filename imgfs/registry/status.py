"""What a status that is no success means: which error, and what the user can do about it."""

from __future__ import annotations

import re

from imgfs.errors import AccessDenied, ImgfsError, NotFound, RateLimited, RegistryFailed
from imgfs.registry.call import Call
from imgfs.registry.credentials.credential import Login

_CODE = re.compile(rb'"code"\s*:\s*"([A-Z_]{1,40})"')


def error_code(body: bytes) -> str:
    """The first error code of a registry's JSON answer (distribution-spec, "Error Codes"), or "" """
    found = _CODE.search(body)
    return found[1].decode() if found else ""


def answered(who: str, status: int, body: bytes) -> str:
    """What `who` answered, as messages have it."""
    code = error_code(body)
    return f"{who} answered {status}{f' {code}' if code else ''}"


def own_failure(call: Call, status: int, said: str, login: Login | None, *, shown: bool) -> ImgfsError:
    """The error for `status` of the registry itself, or of its token endpoint, whose 404 tells of nothing absent.

    `login`: what there was to show, as far as somebody looked; and whether it was `shown`.
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
    """The error for a 401 or 403: whose login it was, or where none was found, and who can write one."""
    subject = call.subject
    if login is None:
        return AccessDenied(f"{subject}: {said} to an anonymous request; check the name, or log in")
    if login.credential is None:
        return AccessDenied(f"{subject}: {said} to an anonymous request; check the name, {login.advice(call.act)}")
    if not shown:
        return AccessDenied(f"{subject}: {said} and does not ask for the login from {login.source}; check the name")
    return AccessDenied(f"{subject}: {said} to the login from {login.source}; {login.advice(call.act)}")


def foreign_failure(status: int, subject: str, host: str, authority: str) -> ImgfsError:
    """The error for `status` of `authority`, which the registry redirected to; its 404 says nothing about `subject`."""
    said = f"{subject}: registry {host} sent imgfs to {authority}, which answered {status}"
    if status in {401, 403}:
        return AccessDenied(f"{said}, twice; check the clock of this machine and the registry's storage")
    if status == 429:
        return RateLimited(f"{said}, also after waiting; wait some minutes")
    return RegistryFailed(f"{said}; try again later, or report it to the registry's operator")
