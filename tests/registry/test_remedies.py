"""The remedies for a refusal."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from imgfs.registry.auth.grants import Grant
from imgfs.registry.call import Call
from imgfs.registry.credentials.authfile import Login
from imgfs.registry.hosts.endpoint import endpoint
from imgfs.registry.http.answer import Answer
from imgfs.registry.http.request import Request
from imgfs.registry.refusals import Remedy, remedies_for

GRANT = Grant("Bearer canary", 0.0, Login("registry.example"))
CALL = Call("blob", endpoint("registry.example"), "team/app", "https://registry.example/v2/", "x")


class Refusal:
    """The part of an Answer that the remedies use."""

    def __init__(self, status: int, *, foreign: bool = False, path: str = "") -> None:
        self.status = status
        self.request = Request("GET", CALL.url + path, "x", foreign=foreign)


def remedy(status: int, *, foreign: bool = False, grant: Grant | None = None, kind: str = "blob") -> Remedy | None:
    refusal = cast(Answer, Refusal(status, foreign=foreign))
    found = remedies_for(replace(CALL, kind=kind), refusal, grant)
    assert len(found) < 2
    return found[0] if found else None


def test_an_address_at_the_same_host_may_have_expired_too() -> None:
    refusal = cast(Answer, Refusal(403, path="storage?signature=x"))
    assert remedies_for(CALL, refusal, None) == [Remedy.UNASKED_LOGIN, Remedy.FRESH_REDIRECT]
    assert remedies_for(CALL, cast(Answer, Refusal(404, path="storage")), None) == [Remedy.UNASKED_LOGIN]


@pytest.mark.parametrize(
    ("status", "unshown", "shown"),
    [
        (400, None, None),
        (401, Remedy.FRESH_GRANT, Remedy.FRESH_GRANT),
        (403, Remedy.UNASKED_LOGIN, Remedy.CHANGED_LOGIN),
        (404, Remedy.UNASKED_LOGIN, None),
        (429, None, None),
        (500, None, None),
    ],
)
def test_what_a_registry_refuses_may_be_cured_by_what_is_shown(
    status: int, unshown: Remedy | None, shown: Remedy | None
) -> None:
    assert (remedy(status), remedy(status, grant=GRANT)) == (unshown, shown)


@pytest.mark.parametrize("status", [400, 401, 403])
@pytest.mark.parametrize("grant", [None, GRANT])
def test_what_a_storage_refuses_may_have_expired(status: int, grant: Grant | None) -> None:
    assert remedy(status, foreign=True, grant=grant) is Remedy.FRESH_REDIRECT


@pytest.mark.parametrize("status", [404, 429, 500])
def test_what_a_storage_has_not_a_login_does_not_bring(status: int) -> None:
    assert remedy(status, foreign=True) is None


@pytest.mark.parametrize("kind", ["token", "ping"])
@pytest.mark.parametrize("status", [401, 403, 404])
def test_who_asks_for_a_grant_needs_none(kind: str, status: int) -> None:
    assert remedy(status, kind=kind) is remedy(status, kind=kind, grant=GRANT) is None
