"""The request to the fork server: a command line and inherited attributes, encoded in an in-memory file.

The caller sends that file with the descriptors of stdin, stdout, stderr, the working directory and a lifeline, which is
the read end of a pipe whose write end only the caller holds. The child answers TAKEN with its own pidfd. The caller
sends GO. At the end the child sends the exit code, or DECLINED if it did nothing and the caller has to run the command.
"""

from __future__ import annotations

import os
import sys

import imgfs

SOCKET = ".imgfs/forkserver"
"""Path below the mountpoint: a symbolic link to the socket of the fork server (SOCK_SEQPACKET)."""
TAKEN, GO, DECLINED = b"taken", b"go", b"declined"
FILES = 6
"""Number of descriptors: stdin, stdout, stderr, the working directory, the lifeline, the request."""
PATIENCE = 10.0
"""Seconds that each side waits for the other one until GO."""


class ForkRequest:
    """`words` start with the program's name. `variables` are NAME=VALUE. `program` is the result of program_here()."""

    __slots__ = ("program", "umask", "variables", "words")

    def __init__(self, words: list[bytes], variables: list[bytes], umask: int, program: list[bytes]) -> None:
        self.words = words
        self.variables = variables
        self.umask = umask
        self.program = program

    @classmethod
    def of_this_process(cls, words: list[str]) -> ForkRequest:
        """Return the request that describes this process."""
        umask = os.umask(0o077)
        os.umask(umask)
        variables = [name + b"=" + value for name, value in os.environb.items() if name]
        return cls([os.fsencode(word) for word in words], variables, umask, program_here())

    def encode(self) -> bytes:
        """Encode the request, with its parts separated by NUL. No part contains a NUL."""
        counts = [b"%d" % self.umask, b"%d" % len(self.words)]
        return b"\0".join([*self.program, *counts, *self.words, *self.variables])

    def file(self) -> int:
        """Write the request to a new in-memory file, which the caller closes.

        Raises OSError, also if RLIMIT_FSIZE is too small.
        """
        file = os.memfd_create("request")
        try:
            data = self.encode()
            while data:  # at RLIMIT_FSIZE the kernel accepts a part of the data and refuses the next write
                data = data[os.write(file, data) :]
        except BaseException:
            os.close(file)
            raise
        return file

    @classmethod
    def read(cls, file: int) -> ForkRequest:
        """Read a request from its file. Raises OSError, and the errors of `decode`."""
        return cls.decode(os.pread(file, os.fstat(file).st_size, 0))

    @classmethod
    def decode(cls, data: bytes) -> ForkRequest:
        """Decode the result of `encode`. Raises ValueError and IndexError for other data."""
        parts = data.split(b"\0")
        program, umask, end = parts[:3], int(parts[3]), 5 + int(parts[4])
        return cls(parts[5:end], parts[end:], umask, program)


def program_here() -> list[bytes]:
    """Identify the installed program.

    Caller and child must be the same version, because each runs only its own commands.
    """
    return [imgfs.__version__.encode(), os.fsencode(os.path.dirname(imgfs.__file__)), os.fsencode(sys.executable)]
