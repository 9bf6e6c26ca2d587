"""`imgfs exec`: run another program in a running container."""

from __future__ import annotations

import errno
import os
import sys

import click

from imgfs.cli.containers.lookup import complete_container, existing, has_ended, state
from imgfs.cli.containers.run import FAILED, RunCommand
from imgfs.cli.failure import Failure
from imgfs.cli.options import mountpoint_option
from imgfs.cli.tree import Tree


@click.command("exec", cls=RunCommand, context_settings={"allow_interspersed_args": False})
@click.argument("id", metavar="ID", shell_complete=complete_container)
@click.argument("command", nargs=-1, required=True, metavar="CMD...", type=click.UNPROCESSED)
@click.option("-i", "--interactive", is_flag=True, help="Forward stdin.")
@click.option("-t", "--tty", "terminal", is_flag=True, help="Use the terminal at stdin.")
@click.option("-e", "--env", "variables", multiple=True, metavar="NAME[=VALUE]", help="Set a variable, or copy it.")
@click.option("-w", "--workdir", metavar="DIR", help="The working directory. Default: the container's.")
@mountpoint_option
def exec(
    id: str,
    command: tuple[str, ...],
    *,
    interactive: bool,
    terminal: bool,
    variables: tuple[str, ...],
    workdir: str | None,
    mountpoint: str,
) -> None:
    """Run another program in the running container ID.

    The program has the container's user and environment. The command exits with the program's exit code, 128 + n after
    signal n, 127 if the program is not found, 126 if it cannot be executed, and 125 if imgfs fails.
    """
    from imgfs.cli.containers.site import state_of
    from imgfs.execution.bundle.overrides import parse_variable
    from imgfs.execution.records.records import ContainerRecords
    from imgfs.execution.removal import runtime_of
    from imgfs.execution.runtimes.exec import ExecRequest, execute
    from imgfs.execution.runtimes.runtime import RuntimeFailed

    tree = Tree.open(mountpoint)
    one = existing(tree, id)
    found = state(tree, one)
    if has_ended(found):
        raise Failure(f"container {one}: is not running; `imgfs start {one}` starts it", errno.ESRCH)
    if terminal and not sys.stdin.isatty():
        raise click.UsageError("-t: stdin is not a terminal")
    env = dict(parse_variable(text, os.environ) for text in variables)
    try:
        spec = tree.read_json(f"{tree.container(one)}/config.json")
    except OSError as error:
        raise tree.container_failure(error, one) from None
    entry = ExecRequest(command, terminal=terminal, interactive=interactive, cwd=workdir, env=env)
    records = ContainerRecords(state_of(tree))
    record = records.get(one)
    container, root = record.container(), f"/proc/{found.get('pid')}/root"
    try:
        code = execute(runtime_of(records, record, container), container.runtime_id, spec, entry, root)
    except RuntimeFailed as error:
        code = error.exit_code or FAILED  # crun, runc and youki print the reason on stderr themselves
    raise SystemExit(code)
