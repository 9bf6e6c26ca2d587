""".imgfs/plugins/<kind>/<id>/: what became of each installed plugin."""

from __future__ import annotations

from collections.abc import Mapping

from imgfs.fs.caller import Caller
from imgfs.fs.files import RenderedFile, constant
from imgfs.fs.node import Directory, Listing, Node, Shown, missing
from imgfs.plugins.options import render
from imgfs.plugins.running import Report


class Fixed(Directory):
    """A directory whose children are known when it is made and stay as they are."""

    __slots__ = ("_children",)

    def __init__(self, key: str, shown: Shown, children: Mapping[bytes, Node]) -> None:
        super().__init__(key, shown)
        self._children = children

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        if name not in self._children:
            raise missing(name)
        return self._children[name]

    async def entries(self, caller: Caller) -> Listing:
        return list(self._children.items())


def plugins_directory(shown: Shown, reports: Mapping[str, Report]) -> Directory:
    """Kinds, in them ids, in them `status`, `config` and `exports`. Reports do not change after the start."""
    kinds: dict[bytes, dict[bytes, Node]] = {}
    for name, report in reports.items():
        kind, _, one = name.partition(".")
        kinds.setdefault(kind.encode(), {})[one.encode()] = _plugin(f".imgfs/plugins/{kind}/{one}", shown, report)
    top = {kind: Fixed(f".imgfs/plugins/{kind.decode()}", shown, ones) for kind, ones in kinds.items()}
    return Fixed(".imgfs/plugins", shown, top)


def _plugin(key: str, shown: Shown, report: Report) -> Directory:
    def file(name: str, text: str) -> tuple[bytes, Node]:
        return name.encode(), RenderedFile(f"{key}/{name}", shown, constant(text.encode(errors="backslashreplace")))

    files = [
        file("status", f"{report.status}\n"),
        file("config", render(report.settings)),
        file("exports", render(report.exports)),
    ]
    return Fixed(key, shown, dict(files))
