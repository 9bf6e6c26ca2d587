"""`imgfs doctor`: check whether this host has what imgfs needs, and suggest a cure for each problem."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imgfs.cli.failure import Failure, printable
from imgfs.cli.options import Command, format_option
from imgfs.cli.service.serving_options import asked_for, config_option, mount_options_option, state_of, state_option
from imgfs.cli.silence import silent
from imgfs.cli.table import render_json
from imgfs.errors import ImgfsError

if TYPE_CHECKING:
    from imgfs.config import Settings
    from imgfs.doctor.diagnosis import Diagnosis

_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@click.command(cls=Command)
@state_option
@config_option
@mount_options_option
@format_option("table")
def doctor(state: Path | None, config_path: Path | None, options: tuple[str, ...], form: str) -> None:
    """Check whether this host has what imgfs needs.

    Checks FUSE, the kernel, the disk of the state directory, the configuration, logins and certificates. Prints a line
    for each, with a cure for each problem. Changes nothing and sends no request. The exit code is 1 if a check fails;
    warnings do not count. `imgfs check` looks for damage in the state directory.
    """
    from imgfs.doctor.examination import examine

    asked = asked_for(options, state, config_path)
    chosen = state_of(asked)
    with silent():
        found = list(examine(chosen, _settings(asked.config, chosen, asked.given), os.environ))
    if form == "json":
        click.echo(render_json([asdict(one) for one in found]))
    else:
        for line in _lines(found):
            click.echo(line)
    if failed := [one.subject for one in found if one.grade == "fail"]:
        raise Failure(f"doctor: failed checks: {', '.join(failed)}", errno.EIO)


def _settings(path: Path | None, state: Path, given: Sequence[tuple[str, str]]) -> Settings | ImgfsError:
    from imgfs.config import load_settings

    try:
        return load_settings(path, state, os.environ, given)
    except ImgfsError as error:
        return error


def _lines(found: Sequence[Diagnosis]) -> list[str]:
    lines: list[str] = []
    for one in found:
        lines.append(printable(f"{_MARKS[one.grade]}  {one.subject}: {one.what}"))
        if one.cure:
            lines.append(printable(f"      -> {one.cure}"))
    return lines
