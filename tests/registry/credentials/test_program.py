"""Credential helpers, as small scripts: the protocol, failures, and that no error or log contains their output."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from imgfs.errors import AccessDenied
from imgfs.registry.credentials.authfile import Credential
from imgfs.registry.credentials.program import OUTPUT_MAX, PATIENCE, ask_program
from tests.registry.credentials.desk import NOT_FOUND, Desk, answer


async def ask(desk: Desk, name: str = "x", server: str = "r.example") -> Credential | None:
    return await ask_program(name, server, desk.identity.environment)


async def test_a_program_is_asked_for_the_server_and_answers(desk: Desk) -> None:
    desk.program("x", answer("user", "secret"))
    assert await ask(desk) == Credential("user", "secret")
    assert desk.calls == ["r.example"]


async def test_an_identity_token_is_one(desk: Desk) -> None:
    desk.program("x", answer("<token>", "secret"))
    assert await ask(desk) == Credential(identity_token="secret")


async def test_a_program_that_has_none_says_so(desk: Desk) -> None:
    desk.program("x", NOT_FOUND)
    assert await ask(desk) is None


async def test_a_program_that_does_not_listen_may_answer(desk: Desk) -> None:
    path = desk.bin / "docker-credential-x"
    path.write_text('#!/bin/sh\nexec 0<&-\necho \'{"Username":"u","Secret":"s"}\'\n')
    path.chmod(0o755)
    assert await ask(desk, server="r" * 100_000) == Credential("u", "s")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("print('canary'); sys.exit(3)", "failed with status 3"),
        ("print('canary', file=sys.stderr); sys.exit(1)", "failed with status 1"),
        ("os.kill(os.getpid(), 9)", "failed with status -9"),
        ("print('canary')", "no JSON object"),
        ("pass", "no JSON object"),
        ("print('[\"canary\"]')", "no JSON object"),
        ("print(json.dumps({'Username': 1, 'Secret': 'canary'}))", "no Username and Secret"),
        (f"print('canary' * {OUTPUT_MAX})", f"more than {OUTPUT_MAX} bytes"),
        ("while True: print('canary' * 9999)", f"more than {OUTPUT_MAX} bytes"),
    ],
)
async def test_the_failure_of_a_program_is_reported_without_its_output(desk: Desk, body: str, said: str) -> None:
    desk.program("x", body)
    with pytest.raises(AccessDenied, match=said) as caught:
        await ask(desk)
    assert "docker-credential-x" in caught.value.message
    assert "canary" not in caught.value.message


async def test_a_missing_program_is_reported(desk: Desk) -> None:
    with pytest.raises(AccessDenied, match="docker-credential-x, which it names, is not in PATH"):
        await ask(desk)


async def test_a_program_that_cannot_run_is_reported(desk: Desk) -> None:
    desk.program("x", "").write_text("#!/nowhere/python\n")
    with pytest.raises(AccessDenied, match=r"could not be started \(No such file"):
        await ask(desk)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "x y", "x\n", "x" * 65, "é"])
async def test_a_program_name_cannot_be_a_path_or_an_option(desk: Desk, name: str) -> None:
    with pytest.raises(AccessDenied, match="no program name"):
        await ask(desk, name)


async def test_a_program_is_given_no_secret_and_no_descriptor(desk: Desk, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    desk.program(
        "x",
        f"open({str(seen)!r}, 'w').write(json.dumps([open('/proc/self/cmdline').read(), dict(os.environ), "
        f"os.listdir('/proc/self/fd'), os.getcwd(), os.getsid(0) == os.getpid()]))\n{answer('u')}",
    )
    with (tmp_path / "held").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        await ask(desk)
    command, environment, descriptors, directory, is_leader = json.loads(seen.read_text())
    assert command.rstrip("\0").split("\0")[-2:] == [str(desk.bin / "docker-credential-x"), "get"]
    assert environment == environment | dict(desk.identity.environment)
    assert len(descriptors) <= 5
    assert (directory, is_leader) == ("/", True)


def hang(desk: Desk, tmp_path: Path) -> Path:
    """Write a program that starts another one, sends both process IDs through a pipe, and waits forever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    told = f"open({str(pipe)!r}, 'w').write(f'{{os.getpid()}} {{child}}')"
    desk.program("x", f"import signal\nchild = os.fork()\nif child: {told}\nsignal.pause()")
    return pipe


def open_processes(pipe: Path) -> list[int]:
    return [os.pidfd_open(int(number)) for number in pipe.read_text().split()]


async def assert_ended(processes: list[int]) -> None:
    for process in processes:
        await trio.lowlevel.wait_readable(process)
        os.close(process)


async def test_a_program_that_hangs_is_killed_with_what_it_started(
    mock_clock: MockClock, desk: Desk, tmp_path: Path
) -> None:
    pipe = hang(desk, tmp_path)
    refused: list[AccessDenied] = []

    async def asking() -> None:
        with pytest.raises(AccessDenied, match=f"did not answer within {PATIENCE:g} s") as caught:
            await ask(desk)
        refused.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(asking)
        processes = await trio.to_thread.run_sync(open_processes, pipe)
        mock_clock.jump(PATIENCE + 1)
    assert refused
    await assert_ended(processes)


async def test_a_program_is_killed_when_its_last_caller_is_cancelled(desk: Desk, tmp_path: Path) -> None:
    pipe = hang(desk, tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, desk)
        processes = await trio.to_thread.run_sync(open_processes, pipe)
        nursery.cancel_scope.cancel()
    await assert_ended(processes)
