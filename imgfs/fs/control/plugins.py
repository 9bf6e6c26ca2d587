""".imgfs/plugins/<kind>/<id>/: the status of each installed plugin."""

from __future__ import annotations

from collections.abc import Mapping

from imgfs.aio.threads import run_disk
from imgfs.fs.files import RenderedFile, constant
from imgfs.fs.node import Directory, FixedDirectory, Node, Shown
from imgfs.plugins.options import render
from imgfs.plugins.started import PluginReport


def plugins_directory(shown: Shown, reports: Mapping[str, PluginReport]) -> Directory:
    """Directories by kind and ID, with `status`, `config` and `exports`. Only `status` may change after the start."""
    kinds: dict[bytes, dict[bytes, Node]] = {}
    for name, report in reports.items():
        kind, _, one = name.partition(".")
        kinds.setdefault(kind.encode(), {})[one.encode()] = _plugin(f".imgfs/plugins/{kind}/{one}", shown, report)
    top = {kind: FixedDirectory(f".imgfs/plugins/{kind.decode()}", shown, ones) for kind, ones in kinds.items()}
    return FixedDirectory(".imgfs/plugins", shown, top)


def _plugin(key: str, shown: Shown, report: PluginReport) -> Directory:
    async def status() -> bytes:
        return _encoded(f"{await run_disk(lambda: report.status)}\n")

    documents = {
        "status": status,
        "config": constant(_encoded(render(report.settings))),
        "exports": constant(_encoded(render(report.exports))),
    }
    files = {name.encode(): RenderedFile(f"{key}/{name}", shown, made) for name, made in documents.items()}
    return FixedDirectory(key, shown, files)


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")
