"""The benchmark's command line: run experiments, print and write the report.

It ends every process that it started, also after a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from . import (
    contacts,
    fetch,
    ingests,
    kernel_views,
    memory,
    metadata,
    report,
    runs,
    scale,
    starts,
    targets,
    views,
    writable,
)
from .bench import Bench, say
from .disks import RAM, Rooms, scratch
from .images import Catalogue
from .processes import Failed, adopt_orphans, stop_all
from .servers import Registry

EXPERIMENTS: Mapping[str, tuple[Callable[[Bench], None], ...]] = {
    "P1": (starts.first_cat,),
    "P2": (starts.pull,),
    "P6": (kernel_views.warm,),
    "P7": (kernel_views.cold, kernel_views.cold_on_disk),
    "P8": (views.read_views,),
    "P9": (ingests.throughput, ingests.commits, ingests.slow_commits, ingests.memory),
    "P10": (memory.start, memory.view, memory.loading),
    "P11": (contacts.requests,),
    "P12": (scale.cost,),
    "fetch": (fetch.single, fetch.small_layers, memory.loading),
    "metadata": (metadata.measure,),
    "active": (writable.compare_active,),
    "run": (runs.compare_runs,),
}
PUBLISHED_REPEATS = 5
ROOT = Path(__file__).resolve().parents[2]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure imgfs side by side with its peers. As root."
    )
    parser.add_argument(
        "--work", type=Path, default=Path("/var/tmp/imgfs-bench"), help="images and registry, kept (%(default)s)"
    )
    parser.add_argument(
        "--scratch", default=RAM, help="'ram' (a fresh ext4 in /dev/shm, the default) or a directory with a short path"
    )
    parser.add_argument(
        "--imgfs", type=Path, default=Path(sys.executable).parent / "imgfs", help="the program (%(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=PUBLISHED_REPEATS, help="runs of each case (%(default)s)")
    parser.add_argument("--only", type=_words, default=(), help=f"experiments, of {','.join(EXPERIMENTS)}")
    parser.add_argument(
        "--images", type=_words, default=(), help="images for P1, P2, P6 to P8, fetch and active, for example tiny,base"
    )
    parser.add_argument("--full", action="store_true", help="also python: Debian with numpy and pandas")
    parser.add_argument("--write", action="store_true", help="write BENCHMARKS.md; at least 5 repeats")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    options = parser.parse_args()
    if unknown := set(options.only) - EXPERIMENTS.keys():
        parser.error(f"--only: {', '.join(sorted(unknown))}: not among {', '.join(EXPERIMENTS)}")
    if options.write and options.repeats < PUBLISHED_REPEATS:
        parser.error(f"--write: {options.repeats} repeats, a published figure needs at least {PUBLISHED_REPEATS}")
    if not options.imgfs.exists():
        parser.error(f"--imgfs: {options.imgfs} does not exist: ./scripts/setup installs it into .venv")
    if os.geteuid():
        parser.error("mounts, chroots and cache drops need root")
    return options


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _run_all(options: argparse.Namespace, work: Path) -> Bench:
    with scratch(options.scratch) as top, scratch(str(work)) as disk, Registry(work) as registry:
        bench = Bench(
            work=work,
            imgfs=options.imgfs,
            repeats=options.repeats,
            only_images=options.images,
            full=options.full,
            catalogue=Catalogue(work),
            registry=registry,
            rooms=Rooms(top),
            disk=Rooms(disk),
        )
        for name in options.only or EXPERIMENTS:
            for experiment in EXPERIMENTS[name]:
                experiment(bench)
        return bench


def _publish(options: argparse.Namespace, bench: Bench, load: float) -> None:
    verdicts = list(targets.verdicts(bench.results))
    place = "a fresh ext4 on a loop device in RAM" if options.scratch == RAM else f"a directory, {options.scratch}"
    command = shlex.join(["./scripts/bench", *sys.argv[1:]])
    setting = report.Setting(command, options.repeats, place, options.imgfs, load)
    text = report.markdown(bench.results, verdicts, setting)
    print(text)
    if options.write:
        (ROOT / "BENCHMARKS.md").write_text(text)
    if options.json:
        options.json.write_text(json.dumps(report.as_json(bench.results, verdicts, setting), indent=1))


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    adopt_orphans()
    load = os.getloadavg()[0]
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    try:
        bench = _run_all(options, work)
    except Failed as error:
        say(f"bench: {error}")
        return 1
    finally:
        stop_all()
    _publish(options, bench, load)
    return 0


if __name__ == "__main__":
    sys.exit(main())
