"""The process of a container: the image's configuration (image-spec, config.md, "config") with the caller's overrides.

Pure. Image configs are untrusted input.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

import msgspec

from imgfs.errors import Invalid, Malformed
from imgfs.execution.bundle.overrides import WORDS_MAX, Overrides
from imgfs.execution.bundle.users import User
from imgfs.execution.signals import signal_number
from imgfs.oci.manifest import ImageConfig, check_depth, parse_config

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOST_NAME_MAX = 64


class Process(msgspec.Struct, frozen=True):
    """What execve(2) and the kernel need."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: User
    terminal: bool


def arguments(image: ImageProcess, wish: Overrides, subject: str) -> tuple[str, ...]:
    """Return the command: entrypoint and arguments. Another entrypoint drops the image's Cmd.

    Raises Invalid if it is empty.
    """
    if wish.entrypoint is None:
        entrypoint, rest = image.entrypoint, wish.arguments or image.cmd
    else:
        entrypoint, rest = (wish.entrypoint,) if wish.entrypoint else (), wish.arguments
    if not (entrypoint or rest) or not (*entrypoint, *rest)[0]:
        raise Invalid(f"{subject}: has neither Entrypoint nor Cmd; give the command after the image's name")
    return (*entrypoint, *rest)


def working_directory(image: ImageProcess, wish: Overrides) -> str:
    """Return an absolute path without `..`. A path that leads out of the root ends at the root."""
    text = image.working_dir if wish.working_dir is None else wish.working_dir
    return posixpath.normpath("/" + text.lstrip("/"))


def environment(image: ImageProcess, wish: Overrides, user: User, hostname: str) -> tuple[str, ...]:
    """Return `NAME=VALUE` strings, each name once: defaults, then the image's, then the caller's. Raises Invalid."""
    found: dict[str, str] = {"PATH": PATH, "HOSTNAME": hostname, "HOME": user.home}
    if wish.terminal:
        found["TERM"] = "xterm"
    for one in image.env:
        name, equals, value = one.partition("=")
        if not (name and equals):
            raise Invalid(f"image config: Env: {one[:80]!r}, expected NAME=VALUE; rebuild the image")
        found[name] = value
    for name, value in (wish.env or _NONE).items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = value
    return tuple(f"{name}={value}" for name, value in found.items())


_NONE: Mapping[str, str | None] = {}


class _Process(msgspec.Struct, rename="pascal"):
    user: str | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str | None = None
    stop_signal: str | None = None
    labels: dict[str, str] | None = None


class _ProcessConfig(msgspec.Struct):
    config: _Process | None = None


class ImageProcess(msgspec.Struct, frozen=True):
    """The process that an image configures."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    stop_signal: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict[str, str])


def parse_process(data: bytes) -> tuple[ImageConfig, ImageProcess]:
    """Parse an image config. Raises Malformed, TooLarge, and Invalid for values that no process can have."""
    config = parse_config(data)
    check_depth(data, "image config")
    try:
        said = msgspec.json.decode(data, type=_ProcessConfig).config or _Process()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"image config: {error}") from None
    process = ImageProcess(
        said.user or "",
        tuple(said.env or ()),
        tuple(said.entrypoint or ()),
        tuple(said.cmd or ()),
        said.working_dir or "",
        said.stop_signal or "",
        said.labels or {},
    )
    _check(process)
    return config, process


def _check(process: ImageProcess) -> None:
    labels = [text for pair in process.labels.items() for text in pair]
    words = [*process.env, *process.entrypoint, *process.cmd, process.user, process.working_dir, *labels]
    if any("\0" in word for word in words):
        raise Invalid("image config: a NUL in an argument, variable, user or label; rebuild the image")
    if sum(len(word) for word in words) > WORDS_MAX:
        raise Invalid(f"image config: arguments, environment and labels are over {WORDS_MAX} bytes")
    if process.stop_signal:
        signal_number(process.stop_signal, "image config: StopSignal")
