"""The process of a container: what the image says, with what somebody wants laid over it. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

import msgspec

from imgfs.errors import Invalid
from imgfs.execution.bundle.image import ImageProcess
from imgfs.execution.bundle.users import User
from imgfs.execution.bundle.wish import Wish

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOST_NAME_MAX = 64


class Process(msgspec.Struct, frozen=True):
    """What execve(2) and the kernel get."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: User
    terminal: bool


def arguments(image: ImageProcess, wish: Wish, subject: str) -> tuple[str, ...]:
    """The command: entrypoint and arguments. Another entrypoint drops the image's Cmd. Raises Invalid without any."""
    if wish.entrypoint is None:
        entrypoint, rest = image.entrypoint, wish.arguments or image.cmd
    else:
        entrypoint, rest = (wish.entrypoint,) if wish.entrypoint else (), wish.arguments
    if not (entrypoint or rest) or not (*entrypoint, *rest)[0]:
        raise Invalid(f"{subject}: has neither Entrypoint nor Cmd; say what to run behind the image's name")
    return (*entrypoint, *rest)


def working_directory(image: ImageProcess, wish: Wish) -> str:
    """An absolute path without `..`: what would lead out of the root stays at it."""
    text = image.working_dir if wish.working_dir is None else wish.working_dir
    return posixpath.normpath("/" + text.lstrip("/"))


def environment(image: ImageProcess, wish: Wish, user: User, hostname: str) -> tuple[str, ...]:
    """`NAME=VALUE`, each name once: defaults, over them the image's, over them what is wished. Raises Invalid."""
    found: dict[str, str] = {"PATH": PATH, "HOSTNAME": hostname, "HOME": user.home}
    if wish.terminal:
        found["TERM"] = "xterm"
    for one in image.env:
        name, equals, value = one.partition("=")
        if not (name and equals):
            raise Invalid(f"image config: Env: {one[:80]!r}, expected NAME=VALUE; the image has to be built anew")
        found[name] = value
    for name, value in (wish.env or _NONE).items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = value
    return tuple(f"{name}={value}" for name, value in found.items())


_NONE: Mapping[str, str | None] = {}
