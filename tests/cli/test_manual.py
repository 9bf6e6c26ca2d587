"""Manual pages say all that the help says."""

from __future__ import annotations

import itertools

import click
import pytest

from imgfs.cli import main
from imgfs.cli.man import command_page, program_page
from tests.cli.conftest import Run
from tests.support.programs import run as run_program

CONTEXT = click.Context(main, info_name="imgfs")
NAMES = main.list_commands(CONTEXT)


def command(name: str) -> click.Command:
    found = main.get_command(CONTEXT, name)
    assert found is not None
    return found


def spellings(one: click.Command) -> list[str]:
    return [text.replace("-", r"\-") for option in one.params for text in option.opts if text.startswith("-")]


@pytest.mark.parametrize("name", NAMES)
def test_the_program_page_has_every_command_and_option(name: str) -> None:
    section = program_page(main, CONTEXT).partition(f".SS imgfs {name} ")[2].partition(".SS ")[0]
    assert section
    assert all(text in section for text in spellings(command(name)))


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_a_command_has_its_options_and_the_exit_codes(name: str) -> None:
    page = command_page(command(name), click.Context(command(name), parent=CONTEXT, info_name=name))
    assert all(text in page for text in spellings(command(name)))
    assert ".SH EXIT STATUS" in page
    assert "IMGFS_MOUNTPOINT" in page


def test_the_command_prints_both_kinds(run: Run) -> None:
    assert run("man").stdout == program_page(main, CONTEXT) + "\n"
    assert r".TH IMGFS\-PULL 1" in run("man", "pull").stdout


def test_commands_of_a_command_are_in_both_pages(run: Run) -> None:
    for page in (run("man").stdout, run("man", "snapshot").stdout):
        assert all(f".SS imgfs snapshot {name} " in page for name in ("ls", "prepare", "commit", "export"))
        assert r"\fB\-o, \-\-output FILE\fR" in page


def test_groff_reads_the_page_without_a_warning(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("man") / "imgfs.1"
    path.write_text(run("man").stdout)
    words = run_program("groff", "-man", "-Tascii", "-P-c", path).split()
    assert (b"`imgfs", b"pull") in itertools.pairwise(words)  # it fills lines with blanks
