""".imgfs/plugins/<kind>/<id>/: what became of each installed plugin."""

from __future__ import annotations

from collections.abc import Mapping

from imgfs.fs.files import RenderedFile, constant
from imgfs.fs.fixed import FixedDirectory
from imgfs.fs.node import Directory, Node, Shown
from imgfs.plugins.options import render
from imgfs.plugins.running import Report


def plugins_directory(shown: Shown, reports: Mapping[str, Report]) -> Directory:
    """Kinds, in them ids, in them `status`, `config` and `exports`. Reports do not change after the start."""
    kinds: dict[bytes, dict[bytes, Node]] = {}
    for name, report in reports.items():
        kind, _, one = name.partition(".")
        kinds.setdefault(kind.encode(), {})[one.encode()] = _plugin(f".imgfs/plugins/{kind}/{one}", shown, report)
    top = {kind: FixedDirectory(f".imgfs/plugins/{kind.decode()}", shown, ones) for kind, ones in kinds.items()}
    return FixedDirectory(".imgfs/plugins", shown, top)


def _plugin(key: str, shown: Shown, report: Report) -> Directory:
    def file(name: str, text: str) -> tuple[bytes, Node]:
        return name.encode(), RenderedFile(f"{key}/{name}", shown, constant(text.encode(errors="backslashreplace")))

    files = [
        file("status", f"{report.status}\n"),
        file("config", render(report.settings)),
        file("exports", render(report.exports)),
    ]
    return FixedDirectory(key, shown, dict(files))
