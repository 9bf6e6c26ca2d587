"""The command line: sugar over files. What costs time to import is imported by the command that needs it."""

from imgfs.cli.program import main

__all__ = ["main"]
