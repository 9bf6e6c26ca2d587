"""Manual pages say all that the help says."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from imgfs.cli import main
from imgfs.cli.manual.man import command_page, program_page
from imgfs.cli.manual.roff import escaped
from imgfs.cli.service.mount_helper import EXITS, FLAGS
from imgfs.cli.service.mount_options import SPELLINGS
from imgfs.config.options import table
from tests.cli.conftest import Run
from tests.support.programs import program

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


def test_options_and_the_helper_have_pages_of_their_own(run: Run) -> None:
    page = run("man", "imgfs.toml").stdout
    assert page.startswith(r".TH IMGFS.TOML 5 ")
    assert all(rf"\fB{name}\fR" in page for name in table())
    text = " ".join(page.split()).replace(r"\&", "")
    assert all(escaped(option.text).replace(r"\&", "") in text for option in table().values())
    assert ".SS [plugins.compression.xz]" in page
    assert r"\fBmemory_mib\fR" in page
    assert "A whole number; default 128." in text
    page = run("man", "mount.imgfs").stdout
    assert page.startswith(r".TH MOUNT.IMGFS 8 ")
    assert all(rf"\fB{escaped(name)}\fR" in page for name, _ in (*SPELLINGS, *FLAGS, *EXITS))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages, as `--directory` writes them."""
    directory = tmp_path_factory.mktemp("man")
    done = CliRunner().invoke(main, ["man", "--directory", str(directory)])
    assert done.exit_code == 0, done.output
    return directory


def test_all_pages_are_written_where_man_looks_for_them(pages: Path) -> None:
    expected = {"man1/imgfs.1", "man5/imgfs.toml.5", "man8/mount.imgfs.8", *(f"man1/imgfs-{name}.1" for name in NAMES)}
    assert {str(path.relative_to(pages)) for path in pages.rglob("*.?")} == expected


def test_one_page_or_all(run: Run, tmp_path: Path) -> None:
    assert run("man", "pull", "--directory", str(tmp_path)).exit_code == 2
    assert list(tmp_path.glob("man*")) == []


def test_groff_sets_all_pages_without_a_warning(pages: Path) -> None:
    files = sorted(path for path in pages.rglob("*") if path.is_file())
    done = subprocess.run([program("groff"), "-ww", "-man", "-Tascii", "-P-c", *files], capture_output=True, check=True)
    assert done.stderr == b""
    words = done.stdout.split()
    assert (b"`imgfs", b"mount") in itertools.pairwise(words)  # it fills lines with blanks
