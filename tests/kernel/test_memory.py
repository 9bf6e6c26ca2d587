"""Memory that is populated before its first use. The kernel's counter of page faults shows it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import mmap, os, resource, sys
from imgfs.kernel.memory import own_pages

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
pages = bytearray(1 << 24)
if not os.fork():
    own_pages()
    before = faults()
    for start in range(0, len(pages), mmap.PAGESIZE):
        pages[start] = 1
    os._exit(faults() - before > 100)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_child_writes_without_page_faults_for_any_file_names_in_its_maps(tmp_path: Path) -> None:
    file = os.fsencode(tmp_path) + b"/\xff\x85 x"
    with open(file, "wb") as made:
        made.write(b"x")
    assert subprocess.run([sys.executable, "-c", SCRIPT, file], check=False).returncode == 0
