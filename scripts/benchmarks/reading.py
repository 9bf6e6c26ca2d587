"""Timed reads of a tree: compiles reader.c and runs it. The experiments decide what is read and compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .processes import run

SOURCE = Path(__file__).with_name("reader.c")
COLD, WARM = "cold", "warm"


@dataclass(frozen=True, slots=True)
class Measured:
    """Repeated passes over the same files. `amount` is the entries, files or bytes of one pass."""

    seconds: float
    amount: int
    passes: int

    @property
    def rate(self) -> float:
        """Return the amount a second."""
        return self.amount * self.passes / self.seconds


class Reader:
    """The program that reads; see reader.c for its arguments."""

    def __init__(self, work: Path) -> None:
        """Compile the program into `work` unless it is there and newer than its source. Raises Failed."""
        self._program = work / "reader"
        if not self._program.exists() or self._program.stat().st_mtime < SOURCE.stat().st_mtime:
            part = work / "reader.new"
            run("gcc", "-O2", "-o", part, SOURCE)
            part.rename(self._program)

    def measure(self, tree: Path, *words: str, state: str = WARM, timeout: float = 300) -> Measured:
        """Read in `tree`, cold or warm. Raises Failed."""
        said = run(self._program, tree, *words, *([COLD] if state == COLD else []), timeout=timeout)
        return Measured(**json.loads(said))
