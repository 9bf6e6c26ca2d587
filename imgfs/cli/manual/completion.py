"""`imgfs completion`: print a completion script, and let bash complete names with colons.

The program imports this module before click completes anything, so that the class below replaces click's class.
"""

from __future__ import annotations

import os

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from imgfs.cli.options import Command

_VARIABLE = "_IMGFS_COMPLETE"
_BREAKS = ":@="


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    Write it to /etc/bash_completion.d/imgfs, /usr/share/zsh/vendor-completions/_imgfs or
    /etc/fish/completions/imgfs.fish. Registered names are completed; no request is sent.
    """
    complete = get_completion_class(shell)
    root = click.get_current_context().find_root()
    assert complete is not None
    click.echo(complete(root.command, {}, "imgfs", _VARIABLE).source())


@add_completion_class
class ColonBashComplete(BashComplete):
    """Completion for bash, which splits words at colons (COMP_WORDBREAKS), while every image name contains one.

    The class splits the command line itself. It returns only the part of each candidate after the last break, because
    bash replaces only that part.
    """

    name = "bash"
    _kept = 0
    """The number of characters of the incomplete word that bash keeps."""
    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n'
    local completion
    local response
    response=$(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" %(complete_var)s=bash_complete "$1")
    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        if [[ $type == dir ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == file ]]; then
            COMPREPLY=()
            compopt -o default
        else
            COMPREPLY+=("$value")
        fi
    done
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the complete words, and the incomplete last word."""
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)
        incomplete = "" if not words or line[-1:].isspace() else words.pop()
        self._kept = max(incomplete.rfind(mark) for mark in _BREAKS) + 1
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        """Format as `type,value`, the value without the part that bash keeps."""
        return f"{item.type},{item.value[self._kept :]}"
