"""`imgfs completion`: the script that teaches a shell to complete imgfs, and bash to complete names with colons.

Imported before click completes anything, so that the class below takes the place of click's own.
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

    To be written to /etc/bash_completion.d/imgfs, /usr/share/zsh/vendor-completions/_imgfs or
    /etc/fish/completions/imgfs.fish. Names complete from what is registered; no
    registry is asked.
    """
    complete = get_completion_class(shell)
    root = click.get_current_context().find_root()
    assert complete is not None
    click.echo(complete(root.command, {}, "imgfs", _VARIABLE).source())


@add_completion_class
class ColonBashComplete(BashComplete):
    """bash splits words at colons (COMP_WORDBREAKS), and every image name has one.

    So the words are taken from the line itself, and of each answer only what stands behind the last break typed goes
    back, because that is what bash replaces.
    """

    name = "bash"
    _kept = 0
    """How much of the word that is being typed bash keeps."""
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
        """The whole words before the one that is being typed, and that one."""
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)
        incomplete = "" if not words or line[-1:].isspace() else words.pop()
        self._kept = max(incomplete.rfind(mark) for mark in _BREAKS) + 1
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        """`type,value`, the value without what bash keeps."""
        return f"{item.type},{item.value[self._kept :]}"
