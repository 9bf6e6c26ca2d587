"""`imgfs run` and `imgfs start`: their options and exit codes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from imgfs.cli.failure import INTERRUPTED, from_error, from_os_error
from imgfs.cli.forked import Declined, forked_command
from imgfs.cli.options import Command, complete_name, mountpoint_option, quiet_option
from imgfs.errors import ImgfsError

if TYPE_CHECKING:
    from imgfs.execution.launch import IdleSupervisor

FAILED = 125
"""The exit code if imgfs itself fails, not the program."""
T = TypeVar("T")


class RunCommand(Command):
    """A command that exits with the exit code of the program it runs. Failures of imgfs exit with FAILED."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """As ever."""
        return _told(lambda: super(RunCommand, self).make_context(*args, **extra))

    def invoke(self, ctx: click.Context) -> Any:
        """As ever."""
        return _told(lambda: super(RunCommand, self).invoke(ctx))


def _told(work: Callable[[], T]) -> T:
    try:
        return work()
    except ImgfsError as error:
        failure = from_error(error)
        failure.exit_code = _exit_code(error)  # pyright: ignore[reportAttributeAccessIssue] - a class variable in click
        raise failure from None
    except click.ClickException as error:
        error.exit_code = FAILED  # pyright: ignore[reportAttributeAccessIssue]
        raise
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        failure = from_os_error(error, str(error.filename or ""))
        failure.exit_code = FAILED  # pyright: ignore[reportAttributeAccessIssue]
        raise failure from None


def _exit_code(error: ImgfsError) -> int:
    """Return a shell's exit code for a program that is missing or not executable, and for an interrupt; else FAILED."""
    if error.errno == errno.ECANCELED:
        return INTERRUPTED
    return cast("int | None", getattr(error, "exit_code", None)) or FAILED


@click.command(cls=RunCommand, context_settings={"allow_interspersed_args": False})
@click.argument("image", metavar="IMAGE", shell_complete=complete_name)
@click.argument("arguments", nargs=-1, metavar="[CMD...]", type=click.UNPROCESSED)
@click.option("-i", "--interactive", is_flag=True, help="Forward stdin.")
@click.option("-t", "--tty", "terminal", is_flag=True, help="Allocate a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Run in the background and print the ID.")
@click.option("--rm", "remove", is_flag=True, help="Delete the container when it has ended.")
@click.option("--name", "id", metavar="ID", help="The container's ID. Default: 12 random hex digits.")
@click.option(
    "-v", "--volume", "volumes", multiple=True, metavar="SRC:DST[:ro]", help="Bind-mount SRC of the host at DST."
)
@click.option("-e", "--env", "variables", multiple=True, metavar="NAME[=VALUE]", help="Set a variable, or copy it.")
@click.option("-w", "--workdir", metavar="DIR", help="The working directory. Default: the image's.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="The user, by name or number. Default: the image's.")
@click.option(
    "--net", "network", type=click.Choice(["host", "none"]), default="none", show_default=True, help="The network."
)
@click.option("--read-only", is_flag=True, help="Make the rootfs read-only.")
@click.option("--entrypoint", metavar="PROGRAM", help="Replace the image's Entrypoint.")
@click.option("-m", "--memory", metavar="SIZE", help="Memory limit in bytes, or with the suffix k, m or g.")
@mountpoint_option
@quiet_option
def run(image: str, mountpoint: str, *, quiet: bool, **wanted: Any) -> None:
    """Run a program in a new container made of IMAGE.

    IMAGE is a name or digest as for `imgfs pull`; all of it is fetched first. CMD replaces the image's Cmd. The
    container's changes are in a snapshot that stays until the container is deleted. The command exits with the
    program's exit code, 128 + n after signal n, 127 if the program is not found, 126 if it cannot be executed, and 125
    if imgfs fails; then no container is left.
    """
    waiting = _supervisor(mountpoint, at_terminal=wanted["terminal"] or (wanted["interactive"] and os.isatty(0)))
    from imgfs.cli.containers.foreground import run_new

    run_new(waiting, mountpoint, image, quiet=quiet, **wanted)


@click.command(cls=RunCommand)
@click.argument("id", metavar="ID")
@click.option("-a", "--attach", is_flag=True, help="Stay in the foreground and exit with the program's exit code.")
@click.option("-i", "--interactive", is_flag=True, help="Forward stdin; needs -a.")
@mountpoint_option
def start(id: str, mountpoint: str, *, attach: bool, interactive: bool) -> None:
    """Start an ended container again, on its files as they are now.

    The command prints the ID. With -a it exits as `imgfs run` does.
    """
    waiting = _supervisor(mountpoint, at_terminal=attach and os.isatty(0))
    from imgfs.cli.containers.foreground import run_again

    run_again(waiting, mountpoint, id, attach=attach, interactive=interactive)


def _supervisor(mountpoint: str, *, at_terminal: bool) -> IdleSupervisor:
    """Start the supervisor first, because that takes longest; the rest is loaded meanwhile. Raises Declined."""
    by = forked_command()
    if by and at_terminal:
        raise Declined
    if by:
        return by.waiting
    from imgfs.execution.launch import IdleSupervisor, check_caller

    check_caller()
    while (
        null := os.open(os.devnull, os.O_RDWR)
    ) < 3:  # a standard stream that the shell closed: a socket must not get its number
        pass
    os.close(null)
    return IdleSupervisor(os.path.abspath(mountpoint))
