"""Tables of the results and targets, as Markdown and JSON. Measures nothing and judges nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .processes import Failed, run
from .results import Results, Row, Unit
from .targets import Verdict

TITLES = {
    "P1": "P1: from nothing to the first file",
    "P2": "P2: the whole image made present, near",
    "P2 disk": "P2: disk taken after that",
    "P6": "P6: the kernel's view of a present image, warm",
    "P7": "P7: the same, cold",
    "P7 disk": "P7: the same, cold, on the machine's own disk",
    "P8": "P8: the FUSE view of a present image",
    "P9": "P9: the content store",
    "P10": "P10: the daemon",
    "P11": "P11: requests that a registry sees",
    "P12": "P12: cost against the number of what is known",
    "fetch": "Fetching: one large layer, many small ones",
    "metadata": "The kernel's metadata image of 104,000 files",
    "active": "A writable snapshot",
    "run": "A container of a present image that runs `true`, from the command to its end",
}
PACKAGES = ("containerd", "podman", "runc", "skopeo", "umoci", "docker-registry", "isal", "zstd", "erofs-utils")
FAILURE_SHOWN = 400
REMARKS = (
    "Near is loopback, far has 50 ms a round trip and 100 MB/s. Every run begins in a fresh directory; a daemon's own",
    "start is not in its figures. Cold means after `echo 3 > /proc/sys/vm/drop_caches`. The floor is curl, igzip or",
    "zstd, tar and two checksums, all layers at once; the pipeline is a few threads of Python, without fsync. Trees",
    "are read by one C program, by paths that begin at the root of the tree. A target that needs a figure which is",
    "missing is NOT met.",
)


@dataclass(frozen=True, slots=True)
class Setting:
    """The conditions that influence the figures, apart from the programs."""

    command: str
    repeats: int
    scratch: str
    imgfs: Path
    load: float

    def facts(self) -> dict[str, str]:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        return {
            "command": f"`{self.command}`",
            "machine": f"{os.cpu_count()} cores ({_processor()}), {memory:.0f} GiB, Linux {platform.release()}",
            "load average before": f"{self.load:.2f}",
            "rooms on": self.scratch,
            "programs": ", ".join(f"{name} {version}" for name, version in _versions(self.imgfs)),
            "figures": f"medians of {self.repeats} interleaved runs, in brackets the minimum, of rates the maximum",
        }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _versions(imgfs: Path) -> Iterable[tuple[str, str]]:
    yield "Python", platform.python_version()
    yield "imgfs", _said(imgfs, "--version").split()[-1]
    for package in (
        "containerd",
        "podman",
        "runc",
        "skopeo",
        "umoci",
        "docker-registry",
        "isal",
        "zstd",
        "erofs-utils",
    ):
        yield package, _said("dpkg-query", "-W", "-f", "${Version}", package)


def _said(*command: str | Path) -> str:
    try:
        return run(*command, timeout=30).strip() or "(unknown)"
    except Failed:
        return "(unknown)"


def markdown(results: Results, verdicts: Sequence[Verdict], setting: Setting) -> str:
    """Return the whole report."""
    lines = ["# Benchmarks", ""]
    lines += [f"- {name}: {fact}" for name, fact in setting.facts().items()]
    lines += ["", *REMARKS, ""]
    lines += ["## Targets", "", *_target_table(verdicts)]
    failures = dict[str, int]()
    for experiment in sorted({row.experiment for row in results}, key=list(TITLES).index):
        lines += ["", f"## {TITLES[experiment]}", "", *_pivot(results, experiment, failures)]
    if failures:
        lines += ["", "## Failures", ""] + [f"{number}. {text}" for text, number in failures.items()]
    return "\n".join(lines) + "\n"


def _target_table(verdicts: Sequence[Verdict]) -> list[str]:
    cells = [
        (
            verdict.experiment,
            verdict.case,
            verdict.measured,
            "not measured" if verdict.value is None else _number(verdict.value),
            f"{'>=' if verdict.at_least else '<='} {_number(verdict.bound)}",
            "met" if verdict.met else "**NOT met**",
        )
        for verdict in verdicts
    ]
    return _table(("", "case", "measured", "value", "target", ""), cells)


def _pivot(results: Results, experiment: str, failures: dict[str, int]) -> list[str]:
    """Return a table with a row for each case and a column for each contestant, and the notes below it."""
    rows = [row for row in results if row.experiment == experiment]
    names = list(dict.fromkeys(row.contestant for row in rows))
    cell_of = {(row.case, row.contestant): _cell(row, failures) for row in rows}
    units = {row.case: row.unit for row in rows}
    cells = [(case, unit.value, *(cell_of.get((case, name), "") for name in names)) for case, unit in units.items()]
    notes = list(_notes(rows))
    return _table(("case", "", *names), cells) + (["", *notes] if notes else [])


def _notes(rows: Iterable[Row]) -> Iterator[str]:
    """Yield one line for each note. A note that a contestant has in many cases is written once, without the cases."""
    noted = dict[tuple[str, str], list[str]]()
    for row in rows:
        if row.note:
            noted.setdefault((row.contestant, row.note), []).append(row.case)
    for (contestant, note), cases in noted.items():
        yield f"- {contestant}: {note}" if len(cases) > 2 else f"- {contestant}, {', '.join(cases)}: {note}"


def _cell(row: Row, failures: dict[str, int]) -> str:
    """Return median and best, and a number for the reason of a failure. Equal reasons share a number."""
    number = failures.setdefault(_failure(row), len(failures) + 1) if row.failures else 0
    mark = f" failed [{number}]" if row.failures else ""
    if row.median is None or row.best is None:
        return mark.strip()
    best = "" if row.unit is Unit.REQUESTS else f" ({_number(row.best)})"
    return f"{_number(row.median)}{best}{mark}"


def _failure(row: Row) -> str:
    text = " ".join(row.failures[-1].split())
    return f"{row.contestant}, {len(row.failures)} times: {text[-FAILURE_SHOWN:]}"


def _number(value: float) -> str:
    if value == int(value) and value < 1e5:
        return str(int(value))
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table whose columns also line up as plain text."""
    cells = [tuple(head), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    line: Callable[[Sequence[str]], str] = lambda row: f"| {' | '.join(map(str.ljust, row, widths))} |"  # noqa: E731
    return [line(cells[0]), line(["-" * width for width in widths]), *map(line, cells[1:])]


def as_json(results: Results, verdicts: Sequence[Verdict], setting: Setting) -> dict[str, Any]:
    """Return the report for programs, with every sample and every failure."""
    return {
        "setting": setting.facts(),
        "rows": [row.as_json() for row in results],
        "targets": [verdict.as_json() for verdict in verdicts],
    }
