"""Reads of a tree, timed from inside a small process, as a user's program would do them.

Imports nothing of the benchmark. Run: python -I -S readers.py walk DIR | files DIR COUNT | sequential FILE, with `cold`
at the end or not. A cold read drops the caches after choosing what to read. Prints JSON {"seconds": ..., "amount":
...}; the amount is entries, files or bytes.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time

PIECE = 1 << 20


def walk(top: str) -> int:
    """List every directory and lstat every entry; the count of entries."""
    count, waiting = 0, [top]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                count += 1
                os.lstat(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return count


def chosen_files(top: str, count: int) -> list[str]:
    """At most `count` regular files, the same ones in every view of a tree, in an order unlike the directory's."""
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names]
    regular = sorted(path for path in paths if not os.path.islink(path) and os.path.isfile(path))
    random.Random(count).shuffle(regular)
    return regular[:count]


def read_files(paths: list[str]) -> int:
    """Open, read and close each; the count of files."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        while os.read(handle, PIECE):
            pass
        os.close(handle)
    return len(paths)


def sequential(path: str) -> int:
    """Read one file from begin to end; its bytes."""
    buffer, total = bytearray(PIECE), 0
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            total += size
    return total


def forget() -> None:
    """Write back and drop clean pages, dentries and inodes."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def main() -> None:
    what, where, *rest = sys.argv[1:]
    cold = rest[-1:] == ["cold"]
    paths = chosen_files(where, int(rest[0])) if what == "files" else []
    if cold:
        forget()
    begin = time.perf_counter()
    amount = {"walk": lambda: walk(where), "files": lambda: read_files(paths), "sequential": lambda: sequential(where)}[
        what
    ]()
    print(json.dumps({"seconds": time.perf_counter() - begin, "amount": amount}))


if __name__ == "__main__":
    main()
