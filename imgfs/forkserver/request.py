"""What the starter is asked for: a command line, and what a child would inherit, as the bytes of a file.

Beside the file come the descriptors of stdin, stdout, stderr, the directory and the life: the end of a pipe whose other
end only the asking process holds. Then the starter's child says TAKEN,
with a pidfd of itself; the asking one GO; and the child at last the exit code, or
DECLINED: nothing was done, and the asking one does it.
"""

from __future__ import annotations

import os
import sys

import imgfs

SOCKET = ".imgfs/forkserver"
"""Below the mountpoint: a link to the starter's socket (SOCK_SEQPACKET)."""
TAKEN, GO, DECLINED = b"taken", b"go", b"declined"
FILES = 6
"""stdin, stdout, stderr, the directory, the life, the request."""
PATIENCE = 10.0
"""Seconds that either side waits for the other until GO."""


class ForkRequest:
    """`words` begin with how the program is called; `variables` are NAME=VALUE; `program` is program_here()."""

    __slots__ = ("program", "umask", "variables", "words")

    def __init__(self, words: list[bytes], variables: list[bytes], umask: int, program: list[bytes]) -> None:
        self.words = words
        self.variables = variables
        self.umask = umask
        self.program = program

    @classmethod
    def of_this_process(cls, words: list[str]) -> ForkRequest:
        """What this process would do itself."""
        umask = os.umask(0o077)
        os.umask(umask)
        variables = [name + b"=" + value for name, value in os.environb.items() if name]
        return cls([os.fsencode(word) for word in words], variables, umask, program_here())

    def encode(self) -> bytes:
        """As bytes; none of the parts holds a NUL."""
        counts = [b"%d" % self.umask, b"%d" % len(self.words)]
        return b"\0".join([*self.program, *counts, *self.words, *self.variables])

    def file(self) -> int:
        """A file of those bytes, in memory; the caller closes it. Raises OSError, also where none may be so long."""
        file = os.memfd_create("request")
        try:
            data = self.encode()
            while data:  # at the limit for files (setrlimit(2)) the kernel takes a part, and refuses the next one
                data = data[os.write(file, data) :]
        except BaseException:
            os.close(file)
            raise
        return file

    @classmethod
    def read(cls, file: int) -> ForkRequest:
        """What is in such a file. Raises OSError, and as `decode`."""
        return cls.decode(os.pread(file, os.fstat(file).st_size, 0))

    @classmethod
    def decode(cls, data: bytes) -> ForkRequest:
        """What `encode` made. Raises ValueError and IndexError for what it did not make."""
        parts = data.split(b"\0")
        program, umask, end = parts[:3], int(parts[3]), 5 + int(parts[4])
        return cls(parts[5:end], parts[end:], umask, program)


def program_here() -> list[bytes]:
    """Which program this is: of two versions neither does what the other one is asked for."""
    return [imgfs.__version__.encode(), os.fsencode(os.path.dirname(imgfs.__file__)), os.fsencode(sys.executable)]
