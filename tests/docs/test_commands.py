"""The commands that the pages show exist, and have the options that are shown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from imgfs.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/how-to").glob("*.md"))]
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(imgfs [^`]+)`")
CALL = re.compile(r"(?:^|[|;&(]\s*|\$ )imgfs (.*?)(?=$|[|;&)]|\s+#)", re.MULTILINE)
PLACEHOLDERS = {"--help", "COMMAND"}


def calls(page: Path) -> Iterator[str]:
    """What follows `imgfs` in the examples of a page, and in what it quotes."""
    text = page.read_text()
    for block in BLOCK.findall(text):
        yield from CALL.findall(block)
    for quoted in INLINE.findall(BLOCK.sub("", text)):
        yield from CALL.findall(quoted)


def complaint(call: str) -> str | None:
    """What is wrong with one call: an unknown command, or an option that it does not have."""
    words = shlex.split(call.replace("'", ""), comments=True)
    if not words or words[0] in PLACEHOLDERS or words[0].startswith("-"):
        return None
    command: click.Command | None = main
    context = click.Context(main, info_name="imgfs")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command, word = command.get_command(context, words[0]), words.pop(0)
        if command is None:
            return f"imgfs {call}: no command {word!r}"
    assert command is not None
    known = {name for one in command.get_params(context) for name in (*one.opts, *one.secondary_opts)}
    stops_at_word = not command.context_settings.get("allow_interspersed_args", command.allow_interspersed_args)
    for word in words:
        if not word.startswith("-"):
            if stops_at_word:
                break
            continue
        name = word.partition("=")[0]
        if name != "--help" and name not in known and not all(f"-{letter}" in known for letter in name[1:]):
            return f"imgfs {call}: no option {name}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_exist(page: Path) -> None:
    assert not [wrong for call in calls(page) if (wrong := complaint(call))]


def test_an_unknown_command_and_option_are_found() -> None:
    assert complaint("fetch app:1")
    assert complaint("pull --fast app:1")
    assert not complaint("run --rm app:1 sh -c 'exit 3'")
