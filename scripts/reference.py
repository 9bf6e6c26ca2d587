"""The pages of docs/reference/ that are made from the code: commands, configuration, errors, metrics.

`scripts/reference` writes them. A test compares them with the code (tests/docs/test_reference.py).
"""

from __future__ import annotations

import ast
import errno
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

import imgfs
from imgfs.cli import main
from imgfs.cli.failure import EXIT_CODES, exit_code
from imgfs.config.options import Option, options_of, table
from imgfs.config.toml import written
from imgfs.errors import ImgfsError
from imgfs.plugins.finding import find_plugins

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs/reference"
_MADE = "This page is made from the code by `scripts/reference`; change the code and run it again."
_ORIGINS = """\
The daemon reads `imgfs.toml` in the state directory, or the file that `--config` names. The environment variable
`IMGFS_` and the name in capitals overrides the file; `imgfs mount -o NAME=VALUE` overrides both. `imgfs config show`
prints each value and its origin."""
_ERRNO = {errno.EOPNOTSUPP: "EOPNOTSUPP"}
"""Names where Linux has two of one number."""
_KINDS = ("counter", "gauge", "histogram")


def pages() -> dict[Path, str]:
    """Every page with the text that it should have."""
    made = {"commands": commands, "configuration": configuration, "errors": errors, "metrics": metrics}
    return {REFERENCE / f"{name}.md": f"{page().rstrip()}\n" for name, page in made.items()}


def commands() -> str:
    """Every command with its arguments and options, in the order of `imgfs --help`."""
    lines = [
        "# Commands",
        "",
        _MADE,
        "",
        EXIT_CODES,
        "`imgfs COMMAND --help` and `imgfs man COMMAND` show the same.",
        "",
    ]
    top = click.Context(main, info_name="imgfs")
    for name in main.list_commands(top):
        command = main.get_command(top, name)
        assert command is not None
        lines += _command(command, click.Context(command, parent=top, info_name=name))
    return "\n".join(lines)


def _command(command: click.Command, ctx: click.Context) -> Iterator[str]:
    if command.hidden:
        return
    help = _paragraphs(command.help or command.get_short_help_str(200))
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    yield from (f"## {ctx.command_path}", "", "```", usage, "```", "", help, "")
    yield from _table("option", "meaning", _option_rows(command, ctx))
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None
            yield from _command(below, click.Context(below, parent=ctx, info_name=name))


def _option_rows(command: click.Command, ctx: click.Context) -> list[tuple[str, str]]:
    options = (one for one in command.get_params(ctx) if isinstance(one, click.Option) and "--help" not in one.opts)
    records = [record for one in options if (record := one.get_help_record(ctx))]
    return [(f"`{option}`", text) for option, text in records]


def _paragraphs(text: str) -> str:
    """Click's help as Markdown: `\\b` marks a paragraph whose lines stay as they are."""
    made: list[str] = []
    for paragraph in text.replace("\f", "").strip().split("\n\n"):
        if paragraph.startswith("\b\n"):
            made.append(f"```\n{paragraph[2:]}\n```")
        else:
            made.append(" ".join(paragraph.split()))
    return "\n\n".join(made)


def configuration() -> str:
    """Every option of the daemon, and of the plugins that come with imgfs."""
    lines = ["# Configuration", "", _MADE, "", _ORIGINS, ""]
    lines += ["## The daemon", "", *_options(table())]
    for found in find_plugins():
        if found.plugin and found.plugin.options and found.plugin.make.__module__.startswith("imgfs."):
            lines += [f"## [plugins.{found.plugin.name}]", "", *_options(options_of(found.plugin.options))]
    return "\n".join(lines)


def _options(options: Mapping[str, Option]) -> Iterator[str]:
    rows = [
        (f"`{name}`", "" if one.is_table else f"`{written(one.default)}`", one.expected, one.text)
        for name, one in options.items()
    ]
    yield from ("| option | default | value | meaning |", "|---|---|---|---|")
    yield from (f"| {' | '.join(map(_cell, row))} |" for row in rows)
    yield ""


def errors() -> str:
    """Every error class of the package with its errno and the exit code of the command line."""
    for module in pkgutil.walk_packages(imgfs.__path__, "imgfs."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    lines = ["# Errors", "", _MADE, "", EXIT_CODES, ""]
    lines += ["| class | base | errno | exit code | meaning |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in _error_rows(ImgfsError)]
    return "\n".join(lines)


def _error_rows(of: type[ImgfsError]) -> Iterator[tuple[str, ...]]:
    if not of.__module__.startswith("imgfs.") or of.__name__.startswith("_"):
        return
    meaning = " ".join((of.__doc__ or "").split("\n\n")[0].split())
    base = of.__bases__[0].__name__
    name = of.__name__ if of.__module__ == "imgfs.errors" else f"{of.__name__} ({of.__module__})"
    yield name, base, _ERRNO.get(of.errno) or errno.errorcode[of.errno], str(exit_code(of.errno)), meaning
    for below in sorted(of.__subclasses__(), key=lambda one: (one.__module__ != "imgfs.errors", one.__name__)):
        yield from _error_rows(below)


def metrics() -> str:
    """Every family that a room makes: name, kind and labels as they stand in the calls."""
    lines = ["# Metrics", "", _MADE, "", "`.imgfs/metrics` shows them in Prometheus's text format.", ""]
    found = sorted(
        {row for path in sorted((ROOT / "imgfs").rglob("*.py")) for row in _families(ast.parse(path.read_text()))}
    )
    lines += ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in found]
    return "\n".join(lines)


def _families(module: ast.Module) -> Iterator[tuple[str, str, str, str]]:
    values = dict(_assigned(module))
    for node in ast.walk(module):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in _KINDS
            and len(node.args) == 4
        ):
            name, help, labels = (_value(argument, values) for argument in node.args[:3])
            if not isinstance(name, str) or not isinstance(help, str) or not isinstance(labels, tuple):
                raise SystemExit(f"a metric whose name, help or labels are no constants: {ast.unparse(node)}")
            yield f"`{name}`", node.func.id, ", ".join(f"`{label}`" for label in labels), help


def _assigned(module: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Names of the module and of its functions, with what they were assigned."""
    for node in ast.walk(module):
        if isinstance(node, ast.Assign):
            (target,) = node.targets[:1]
            if isinstance(target, ast.Name):
                yield target.id, node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                yield from (
                    (one.id, value)
                    for one, value in zip(target.elts, node.value.elts, strict=True)
                    if isinstance(one, ast.Name)
                )


def _value(node: ast.expr, values: Mapping[str, ast.expr]) -> object:
    try:
        return ast.literal_eval(values.get(node.id, node) if isinstance(node, ast.Name) else node)
    except ValueError:
        return None


def _table(left: str, right: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    if rows:
        yield from (f"| {left} | {right} |", "|---|---|", *(f"| {_cell(a)} | {_cell(b)} |" for a, b in rows), "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
