"""The login for a repository: precedence of files, helpers and entries, and when each is read or called again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from imgfs.registry.credentials.authfile import Credential, Login
from imgfs.registry.credentials.store import PROGRAM_SECONDS, TROUBLE_SECONDS, Credentials
from tests.registry.credentials.desk import NOT_FOUND, Desk, answer, entry

HOST = "r.example"


def of(desk: Desk, chosen: Path | None = None) -> Credentials:
    return Credentials(chosen, desk.identity)


async def user(credentials: Credentials, repository: str = "a/b", host: str = HOST) -> str:
    """The user that is logged in; "" if there is none."""
    credential = (await credentials.find(host, repository)).credential
    return credential.username if credential else ""


async def test_without_any_file_access_is_anonymous(desk: Desk) -> None:
    login = await of(desk).find(HOST, "a")
    assert login == Login(HOST)
    assert "there is no auth file" in login.advice()
    assert f"`skopeo login {HOST}`" in login.advice()


async def test_the_first_file_with_a_login_counts(desk: Desk) -> None:
    desk.login(desk.docker, "docker")
    configuration = desk.home / ".config/containers/auth.json"
    assert await user(of(desk)) == "docker"
    desk.login(configuration, "configuration")
    assert await user(of(desk)) == "configuration"
    desk.login(desk.auth, "runtime")
    login = await of(desk).find(HOST, "a")
    assert login.credential == Credential("runtime", "p")
    assert login.source == str(desk.auth)
    assert login.consulted == (str(desk.auth), str(configuration), str(desk.docker))
    assert await user(of(desk), host="other.example") == ""


async def test_a_shorter_key_of_an_earlier_file_goes_before_a_longer_one_of_a_later(desk: Desk) -> None:
    desk.login(desk.auth, "whole host")
    desk.write(desk.docker, auths={f"{HOST}/a/b": entry("repository", "p")})
    assert await user(of(desk), "a/b") == "whole host"


async def test_a_placeholder_is_no_login(desk: Desk) -> None:
    desk.write(desk.auth, auths={HOST: {}})
    desk.login(desk.docker, "docker")
    assert await user(of(desk)) == "docker"


async def test_a_chosen_file_is_the_only_one(desk: Desk, tmp_path: Path) -> None:
    desk.login(desk.auth, "runtime")
    assert await user(of(desk, tmp_path / "gone")) == ""
    assert await user(of(desk, desk.login(tmp_path / "chosen", "chosen"))) == "chosen"


async def test_a_helper_goes_before_a_store_and_a_store_before_an_entry(desk: Desk) -> None:
    desk.program("helper", answer("helper"))
    desk.program("store", answer("store"))
    auths = {"auths": {HOST: entry("entry", "p")}}
    desk.write(desk.docker, **auths)
    assert await user(of(desk)) == "entry"
    desk.write(desk.docker, **auths, credsStore="store")
    assert await user(of(desk)) == "store"
    desk.write(desk.docker, **auths, credsStore="store", credHelpers={HOST: "helper"})
    login = await of(desk).find(HOST, "a")
    assert login.source == f"docker-credential-helper ({desk.docker})"
    assert await user(of(desk), host="other.example") == "store"


async def test_a_store_without_a_login_leaves_it_to_the_entries_and_a_helper_does_not(desk: Desk) -> None:
    desk.program("none", NOT_FOUND)
    auths = {"auths": {HOST: entry("entry", "p")}}
    desk.write(desk.docker, **auths, credsStore="none")
    assert await user(of(desk)) == "entry"
    desk.write(desk.docker, **auths, credHelpers={HOST: "none"})
    login = await of(desk).find(HOST, "a")
    assert (login.credential, login.troubles) == (None, ())


async def test_the_hub_is_asked_for_under_both_of_its_names(desk: Desk) -> None:
    desk.program("store", f"if server == 'docker.io': {answer('hub')}\nelse: {NOT_FOUND}")
    desk.write(desk.docker, credsStore="store")
    assert await user(of(desk), host="registry-1.docker.io") == "hub"
    assert desk.calls == ["https://index.docker.io/v1/", "docker.io"]


async def test_unusable_logins_are_reported_and_access_is_anonymous(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.write(desk.auth, auths={HOST: {"auth": "canary"}})
    desk.docker.parent.mkdir()
    desk.docker.write_text("canary")
    configuration = desk.write(desk.home / ".config/containers/auth.json", credHelpers={HOST: "gone"})
    with caplog.at_level(logging.WARNING, "imgfs.registry"):
        login = await of(desk).find(HOST, "a")
    assert login.credential is None
    assert login.troubles == (
        f"{desk.auth}: its entry for {HOST} is no base64 of user:password",
        f"{configuration}: docker-credential-gone, which it names, is not in PATH",
        f"{desk.docker}: not the JSON of an auth file",
    )
    assert login.troubles[1] in login.advice()
    assert [vars(record)["reason"] for record in caplog.records if hasattr(record, "reason")] == [*login.troubles]
    assert "canary" not in f"{login}{caplog.text}"


async def test_an_invalid_file_is_reported(desk: Desk) -> None:
    desk.auth.mkdir(parents=True)
    assert (await of(desk).find(HOST, "a")).troubles == (f"{desk.auth}: it is no regular file",)


async def test_a_later_login_hides_the_trouble_before_it(desk: Desk) -> None:
    desk.write(desk.auth, credHelpers={HOST: "gone"})
    desk.login(desk.docker, "docker")
    assert await user(of(desk)) == "docker"


async def test_a_login_and_a_logout_are_noticed(desk: Desk) -> None:
    credentials = of(desk)
    assert await user(credentials) == ""
    desk.login(desk.auth, "one")
    assert await user(credentials) == "one"
    desk.login(desk.auth, "two")
    assert await user(credentials) == "two"
    desk.auth.unlink()
    assert await user(credentials) == ""


async def test_the_answer_of_a_program_is_cached_and_renewed_after_a_refusal(mock_clock: MockClock, desk: Desk) -> None:
    desk.program("store", answer("one"))
    desk.write(desk.docker, credsStore="store")
    credentials = of(desk)
    assert await user(credentials) == "one"
    desk.program("store", answer("two"))
    assert await user(credentials, "other/repository") == "one"
    fresh = (await credentials.find(HOST, "a/b", fresh=True)).credential
    assert fresh == Credential("two", "s")
    desk.program("store", answer("three"))
    mock_clock.jump(PROGRAM_SECONDS - 1)
    assert await user(credentials) == "two"
    mock_clock.jump(2)
    assert await user(credentials) == "three"
    assert len(desk.calls) == 3


async def test_the_failure_of_a_program_is_cached_briefly(mock_clock: MockClock, desk: Desk) -> None:
    desk.program("store", "sys.exit(1)")
    desk.write(desk.docker, credsStore="store")
    credentials = of(desk)
    assert await user(credentials) == ""
    desk.program("store", answer("one"))
    assert await user(credentials) == ""
    mock_clock.jump(TROUBLE_SECONDS + 1)
    assert await user(credentials) == "one"


async def test_concurrent_searches_call_a_program_once(desk: Desk) -> None:
    asked: list[str] = []
    answering = trio.Event()

    async def ask(name: str, server: str, environment: Mapping[str, str]) -> Credential:
        asked.append(server)
        await answering.wait()
        return Credential("u", "s")

    desk.write(desk.docker, credsStore="store")
    credentials = Credentials(None, desk.identity, ask)
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(user, credentials, f"team/{number}")
        while not asked:
            await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked(0.01)
        answering.set()
    assert asked == [HOST]


async def test_no_repr_shows_a_login(desk: Desk) -> None:
    desk.program("store", answer("canary-user", "canary-secret"))
    desk.write(desk.docker, credsStore="store", auths={"s.example": entry("canary-user", "canary-password")})
    credentials = of(desk)
    logins = [await credentials.find(host, "a") for host in (HOST, "s.example")]
    assert all(login.credential for login in logins)
    assert "canary" not in f"{logins} {vars(credentials)} {[login.advice() for login in logins]}"
