"""The example programs in docs/how-to/ and in docstrings run and print the documented output."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import imgfs.content
import imgfs.snapshots
from imgfs.execution.options import RuntimeProgram
from imgfs.execution.plugin import RUNTIME
from imgfs.plugins.contract import Plugin

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "docs/how-to/library.md"
PLUGINS = ROOT / "docs/how-to/plugins.md"

CONTENT = (
    "sha256:d831bbc2170e6f39627490ba2ed03e4eaff24ff73a04bbf07c57b9e2c0520af5 18 {'example.com/language': b'en'}\n"
    "b'Hello'\n"
)
SNAPSHOTS = "active/more active base {}\nbase committed None {'example.com/language': b'en'}\nHello from a snapshot.\n"


def example_of(docstring: str | None) -> str:
    """Return the program at the end of a docstring."""
    assert docstring is not None
    return textwrap.dedent(docstring[docstring.index("    import ") :])


def examples_of(page: str) -> list[str]:
    """Return the Python programs of a page."""
    return re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def run(program: str, directory: Path) -> str:
    """Run `program` in `directory` and return its output."""
    done = subprocess.run([sys.executable, "-c", program], cwd=directory, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_example_of_the_content_store_runs(tmp_path: Path) -> None:
    program = example_of(imgfs.content.__doc__)
    assert run(program, tmp_path) == CONTENT
    assert run(program, tmp_path) == CONTENT, "it leaves nothing behind"


def test_the_example_of_snapshots_runs(tmp_path: Path) -> None:
    assert run(example_of(imgfs.snapshots.__doc__), tmp_path) == SNAPSHOTS


def test_the_library_page_contains_the_examples_of_the_docstrings() -> None:
    shown = examples_of(LIBRARY.read_text())
    assert shown == [example_of(imgfs.content.__doc__), example_of(imgfs.snapshots.__doc__)]


def test_the_runtime_on_the_plugins_page_works() -> None:
    section = PLUGINS.read_text().partition("## An OCI runtime")[2]
    names: dict[str, object] = {}
    exec(re.findall(r"^```\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)[0], names)
    plugin = names["PLUGIN"]
    assert isinstance(plugin, Plugin)
    assert (plugin.kind, plugin.exports) == (RUNTIME, {"program": "PROGRAM"})
    assert plugin.make(None) == RuntimeProgram("ID", "PROGRAM")
