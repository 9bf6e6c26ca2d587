"""Which files the kernel refuses to execute, compared with the kernel's own answer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgfs.execution.runtimes.executable import WORD_MAX, refusal
from tests.support.programs import program

BUSYBOX = Path(program("busybox")).read_bytes()
FOREIGN = BUSYBOX[:18] + b"\x08\0" + BUSYBOX[20:]
DYNAMIC = Path(os.path.realpath(program("true"))).read_bytes()
FILES = {
    "native": BUSYBOX,
    "script": b"#!/bin/busybox true\n",
    "spaced": b"#! \t/bin/busybox true",
    "script-of-script": b"#!/bin/script\n",
    "without-interpreter": b"#!/bin/nothing\n",
    "interpreter-is-no-program": b"#!/bin/plain\n",
    "interpreter-is-a-directory": b"#!/bin\n",
    "interpreter-is-foreign": b"#!/bin/foreign\n",
    "interpreter-in-a-link-to-nothing": b"#!/bin/dangling\n",
    "nothing-behind": b"#!\n",
    "text": b"echo no\n",
    "empty": b"",
    "foreign": FOREIGN,
    "dynamic-without-loader": DYNAMIC,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("root")
    (path / "bin").mkdir()
    for name, data in {**FILES, "busybox": BUSYBOX, "plain": b"text"}.items():
        (path / "bin" / name).write_bytes(data)
        (path / "bin" / name).chmod(0o755 if name != "plain" else 0o644)
    (path / "bin/dangling").symlink_to("/bin/nowhere")
    yield path
    shutil.rmtree(path)


def said(root: Path, *args: str) -> int:
    """Return what imgfs reports about the file."""
    directory = os.open(root, os.O_PATH)
    try:
        return refusal({"args": args, "env": ["PATH=/nowhere:/bin"], "cwd": "/"}, directory)
    finally:
        os.close(directory)


def done(root: Path, *args: str) -> int:
    """Return the errno of execve(2), or 0 if it succeeds."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        try:
            os.chroot(root)
            os.execve(args[0] if "/" in args[0] else f"/bin/{args[0]}", args, {})
        except OSError as error:
            os.write(writing, bytes([error.errno or 255]))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as told:
        code = told.read()
    os.waitpid(pid, 0)
    return code[0] if code else 0


@pytest.mark.parametrize("name", FILES)
def test_the_kernel_agrees(root: Path, name: str) -> None:
    assert said(root, name) == said(root, f"/bin/{name}") == done(root, name)


def test_an_argument_may_be_too_long(root: Path) -> None:
    for length in (WORD_MAX - 1, WORD_MAX):
        assert said(root, "native", "x" * length) == done(root, "native", "x" * length)


def test_a_missing_program_is_left_to_the_runtime(root: Path) -> None:
    assert not said(root, "no-such-program")
    assert not said(root, "/no/such/program")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kept=st.sampled_from([BUSYBOX, DYNAMIC, FILES["script"], b"#!", b""]),
    at=st.integers(0, 130),
    put=st.binary(max_size=24),
)
def test_every_reported_refusal_is_refused_by_the_kernel(root: Path, kept: bytes, at: int, put: bytes) -> None:
    path = root / "bin/odd"
    path.write_bytes(kept[:at] + put + kept[at + len(put) :])
    path.chmod(0o755)
    assert not said(root, "odd") or done(root, "odd")
