"""The command line: shortcuts for file operations in the mount. Commands import slow modules only when needed."""

from imgfs.cli.program import main

__all__ = ["main"]
