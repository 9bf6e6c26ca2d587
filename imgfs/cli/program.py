"""The program: a table of commands, each imported when it is called, and the place where errors become exit codes."""

from __future__ import annotations

import errno
import gc
import importlib
import os
from contextlib import suppress
from keyword import iskeyword
from typing import IO, Any

import click

from imgfs import __version__
from imgfs.cli.failure import EXIT_CODES, INTERRUPTED, from_error, from_os_error, report_line
from imgfs.errors import ImgfsError

_COMMANDS = {
    "mount": "imgfs.cli.service.mounting",
    "umount": "imgfs.cli.service.mounting",
    "pull": "imgfs.cli.images.pull",
    "push": "imgfs.cli.images.push",
    "ls": "imgfs.cli.images.ls",
    "status": "imgfs.cli.images.status",
    "inspect": "imgfs.cli.images.inspection",
    "referrers": "imgfs.cli.images.referrers",
    "tags": "imgfs.cli.images.tags",
    "tag": "imgfs.cli.images.names",
    "rm": "imgfs.cli.images.names",
    "import": "imgfs.cli.archives.importing",
    "export": "imgfs.cli.archives.exporting",
    "label": "imgfs.cli.store.label",
    "gc": "imgfs.cli.store.gc",
    "check": "imgfs.cli.store.check",
    "repair": "imgfs.cli.store.check",
    "snapshot": "imgfs.cli.snapshots.commands",
    "run": "imgfs.cli.containers.run",
    "start": "imgfs.cli.containers.run",
    "ps": "imgfs.cli.containers.ps",
    "exec": "imgfs.cli.containers.executing",
    "kill": "imgfs.cli.containers.ending",
    "wait": "imgfs.cli.containers.ending",
    "logs": "imgfs.cli.containers.logs",
    "delete": "imgfs.cli.containers.ending",
    "plugins": "imgfs.cli.service.plugins",
    "config": "imgfs.cli.service.config",
    "doctor": "imgfs.cli.service.doctor",
    "completion": "imgfs.cli.manual.completion",
    "man": "imgfs.cli.manual.man",
}


class _Misused(click.ClickException):
    """click's usage error. Keeps its exit code even if stderr cannot be written to."""

    def __init__(self, error: click.UsageError) -> None:
        super().__init__(error.message)
        self._error = error
        self.exit_code = error.exit_code  # pyright: ignore[reportAttributeAccessIssue] - a class variable in click

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the usage error; ignore a stderr that cannot be written to."""
        with suppress(OSError):
            self._error.show(file)


class Program(click.Group):
    """The group of all commands."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run as a program. For shell completion it loads imgfs's own completion classes first."""
        if "_IMGFS_COMPLETE" in os.environ:
            importlib.import_module("imgfs.cli.manual.completion")
        try:
            return super().main(*args, **extra)
        except OSError as error:
            failure = from_os_error(error, str(error.filename or "stdout"))
            failure.show()
            raise SystemExit(failure.exit_code) from None
        finally:
            gc.freeze()  # the process ends; a last garbage collection over all imported modules would take 7 ms

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the command line; usage errors become `_Misused`."""
        try:
            return super().make_context(*args, **extra)
        except click.UsageError as error:
            raise _Misused(error) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands in the order of the table."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command and return the command."""
        if cmd_name not in _COMMANDS:
            return None
        attribute = f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name
        return getattr(importlib.import_module(_COMMANDS[cmd_name]), attribute)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command. Every error becomes a message and an exit code."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _Misused(error) from None
        except KeyboardInterrupt:
            report_line("interrupted")
            raise click.exceptions.Exit(INTERRUPTED) from None
        except ImgfsError as error:
            raise from_error(error) from None
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            raise from_os_error(error, str(error.filename or "")) from None


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"{EXIT_CODES} The environment variable IMGFS_MOUNTPOINT names the mountpoint. More: `imgfs man`.",
)
@click.version_option(__version__, prog_name="imgfs")
def main() -> None:
    """Container images as files.

    `imgfs mount DIR` shows images/, content/ and snapshots/ below DIR. Reading an image that is not local fetches it.
    The other commands are shortcuts for operations on those files. `imgfs COMMAND --help` explains one command.
    """
