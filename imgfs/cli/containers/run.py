"""`imgfs run` and `imgfs start`: what they take, and what they exit with."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from imgfs.cli.failure import INTERRUPTED, from_error, from_os_error
from imgfs.cli.options import Command, complete_name, mountpoint_option, quiet_option
from imgfs.cli.served import Declined, served
from imgfs.errors import ImgfsError

if TYPE_CHECKING:
    from imgfs.execution.launch import IdleSupervisor

FAILED = 125
"""The exit code where imgfs failed, not what was run."""
T = TypeVar("T")


class RunCommand(Command):
    """A command that exits as what it runs does: its own failures are told apart by FAILED."""

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
    """A shell's where the command was not found or cannot be executed, or somebody interrupted."""
    if error.errno == errno.ECANCELED:
        return INTERRUPTED
    return cast("int | None", getattr(error, "exit_code", None)) or FAILED


@click.command(cls=RunCommand, context_settings={"allow_interspersed_args": False})
@click.argument("image", metavar="IMAGE", shell_complete=complete_name)
@click.argument("arguments", nargs=-1, metavar="[CMD...]", type=click.UNPROCESSED)
@click.option("-i", "--interactive", is_flag=True, help="Pass stdin on.")
@click.option("-t", "--tty", "terminal", is_flag=True, help="Give it a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Leave it behind, and print its id.")
@click.option("--rm", "remove", is_flag=True, help="Delete it as soon as it has ended.")
@click.option("--name", "id", metavar="ID", help="How it is called. Default: 12 random hex digits.")
@click.option("-v", "--volume", "volumes", multiple=True, metavar="SRC:DST[:ro]", help="Show SRC of the host at DST.")
@click.option("-e", "--env", "variables", multiple=True, metavar="NAME[=VALUE]", help="Set a variable, or pass it on.")
@click.option("-w", "--workdir", metavar="DIR", help="Where it begins. Default: as the image says.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="Who it is, by name or number. Default: as the image says.")
@click.option(
    "--net", "network", type=click.Choice(["host", "none"]), default="none", show_default=True, help="Its network."
)
@click.option("--read-only", is_flag=True, help="It cannot write to its rootfs.")
@click.option("--entrypoint", metavar="PROGRAM", help="What to run in place of the image's Entrypoint.")
@click.option(
    "-m", "--memory", metavar="SIZE", help="What it may use, in bytes or with k, m, g; above that it is killed."
)
@mountpoint_option
@quiet_option
def run(image: str, mountpoint: str, *, quiet: bool, **wanted: Any) -> None:
    """Run a program in a container made of IMAGE.

    IMAGE is what `imgfs pull` takes; all of it comes here first. CMD takes the place of the image's Cmd. What the
    program writes to its rootfs is in a snapshot of its own, which stays until the container is deleted. Exits as the
    program does: its exit code, 128 + n after signal n; 127 where it is not found, 126 where it cannot be executed, and
    125 where imgfs failed, which leaves no container.
    """
    waiting = _supervisor(mountpoint, at_terminal=wanted["terminal"] or (wanted["interactive"] and os.isatty(0)))
    from imgfs.cli.containers.running import run_new

    run_new(waiting, mountpoint, image, quiet=quiet, **wanted)


@click.command(cls=RunCommand)
@click.argument("id", metavar="ID")
@click.option("-a", "--attach", is_flag=True, help="Stay in front until it has ended, and exit as it does.")
@click.option("-i", "--interactive", is_flag=True, help="Pass stdin on; with -a.")
@mountpoint_option
def start(id: str, mountpoint: str, *, attach: bool, interactive: bool) -> None:
    """Start a container again after it has ended.

    Its files are as they are now. Prints its id; with -a exits as the program does, otherwise as `imgfs run`.
    """
    waiting = _supervisor(mountpoint, at_terminal=attach and os.isatty(0))
    from imgfs.cli.containers.running import run_again

    run_again(waiting, mountpoint, id, attach=attach, interactive=interactive)


def _supervisor(mountpoint: str, *, at_terminal: bool) -> IdleSupervisor:
    """Begin with what takes longest: the rest is loaded and done beside it. Raises Declined."""
    by = served()
    if by and at_terminal:
        raise Declined
    if by:
        return by.waiting
    from imgfs.execution.launch import IdleSupervisor, check_caller

    check_caller()
    while (null := os.open(os.devnull, os.O_RDWR)) < 3:  # a stream that the shell closed; a socket would take its place
        pass
    os.close(null)
    return IdleSupervisor(os.path.abspath(mountpoint))
